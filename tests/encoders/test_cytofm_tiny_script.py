"""`examples/cytofm_tiny/train.py`, which made cytofm-tiny, still runs: two fields, one step."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.encoders.load import load_encoder

from ..two_fields import draw_field  # noqa: TID252 - of all tests

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "cytofm_tiny" / "train.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cytofm_tiny_train", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def test_script__describes_nuclei_and_writes_an_encoder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name, picture in (("a", draw_field()), ("b", draw_field()[::-1])):
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images.csv").write_text("image,group\na.png,g1\nb.png,g2\n")
    stores = tmp_path / "stores"
    cytofm.tile([tmp_path / "images"], stores, tile_px=256, foreground="none", slide_mpp=0.25)
    cytofm.detect([stores])
    nuclei = script.read(tmp_path, stores, ["g1", "g2"])
    assert nuclei.crop_N3SS.shape[1:] == (3, 128, 128) and len(nuclei.rows) == 2
    # Hand-made features of two squares, eleven measurements of the outline and their logarithms.
    n_targets = 2 * load_encoder("handcrafted", device="cpu").spec.dim + 2 * 11
    assert nuclei.target_NE.shape == (len(nuclei.crop_N3SS), n_targets)
    assert nuclei.target_NE.mean(0).abs().max() < 0.5 and nuclei.target_NE.std(0).max() > 0.5

    monkeypatch.setattr(script, "PER_SLIDE", 2)
    script.train(nuclei, tmp_path / "tiny.safetensors", steps=1)
    encoder = load_encoder(str(tmp_path / "tiny.safetensors"), device="cpu")
    said = encoder.spec
    assert (said.name, said.dim, said.cell_um) == ("cytofm-tiny", 384, 18.0)
