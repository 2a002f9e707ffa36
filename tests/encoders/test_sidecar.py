"""What a file beside a weight file states of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.recorded import digest_of_weights
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.errors import WeightsError
from cytofm_cli.evaluate.choice import choose

NAME = "timm/vit_tiny_patch16_224"
TEXT = """\
input_px = 64
resize_px = 80
mpp = 0.25
mean = [0.7, 0.5, 0.6]
std = [0.2, 0.2, 0.1]
interpolation = "bilinear"
pooling = "cls+mean"
license = "CC-BY-4.0"
"""


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model(NAME.removeprefix("timm/"), num_classes=0).state_dict(), path)
    return path


def test_sidecar__none_is_nothing_and_mistakes_name_file_and_key(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    beside = tmp_path / "w.pth.toml"
    assert sidecar(weights) == {}
    for text, said in (
        ("input = 64", "w.pth.toml: unknown key 'input'"),
        ("input_px = 64.5", "input_px = 64.5: must be a number of pixels"),
        ("input_px = true", "input_px = True: must be a number of pixels"),
        ("mpp = 0", "mpp = 0: must be µm/px"),
        ("mean = [123.7, 116.3, 103.5]", "three numbers from 0 to 1"),
        ("std = [0.2, 0.2, 0]", "three numbers above 0"),
        ('pooling = "max"', "cls, cls\\+mean, mean, pool"),
        ("licence = ''", "must be a text"),
        ("mpp 0.5", "cannot be read as TOML"),
    ):
        beside.write_text(text)
        with pytest.raises(WeightsError, match=said):
            sidecar(weights)


def test_digest_of_weights__a_mistake_is_found_before_any_slide(vit: Path) -> None:
    beside = vit.with_name("vit.pth.toml")
    beside.write_text("mp = 0.25")
    try:
        with pytest.raises(WeightsError, match="unknown key 'mp'"):
            digest_of_weights(EmbedConfig(encoder=NAME, weights=vit))
    finally:
        beside.unlink()
    assert len(digest_of_weights(EmbedConfig(encoder=NAME, weights=vit)) or "") == 64


def test_load_encoder__takes_what_is_stated_and_assumes_nothing_else(vit: Path) -> None:
    beside = vit.with_name("vit.pth.toml")
    beside.write_text(TEXT)
    try:
        spec = load_encoder(NAME, weights=vit, device="cpu").spec
        told = load_encoder(NAME, weights=vit, device="cpu", input_px=96, pooling="cls").spec
        (choice,) = choose([f"{NAME}={vit}"], weights=None, random_weights=False, seed=0)
    finally:
        beside.unlink()
    assert (spec.input_px, spec.resize_px, spec.mpp, spec.dim) == (64, 80, 0.25, 384)
    assert (spec.mean, spec.std) == ((0.7, 0.5, 0.6), (0.2, 0.2, 0.1))
    assert (spec.interpolation, spec.pooling, spec.licence) == ("bilinear", "cls+mean", "CC-BY-4.0")
    assert spec.assumed == ()
    assert spec.positions == "14x14 → 4x4"
    assert (told.input_px, told.pooling, told.dim) == (96, "cls", 192)
    (plain,) = choose([f"{NAME}={vit}"], weights=None, random_weights=False, seed=0)
    assert choice.identity() != plain.identity()  # other vectors: kept features do not serve
    assert choice.identity()["stated"]["mpp"] == 0.25
    assert "stated" not in plain.identity()
