"""Files that name their own architecture: what `cytofm pretrain` writes opens by itself."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from cytofm_cli.encoders import weights
from cytofm_cli.encoders.base import EncoderSpec, store_key
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.errors import UsageError, WeightsError

_SPEC = EncoderSpec(
    name="my/sr-dino",
    dim=192,
    input_px=96,
    mpp=0.25,
    cell_um=17.9,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    pooling="cls+mean",
    licence="CC0",
)


def _exported(folder, **metadata):
    config = SrVitConfig(size="tiny", img_px=96, h=8, registers=2)
    torch.manual_seed(0)
    model = SrVit(config).eval()
    path = folder / "encoder.safetensors"
    weights.write_encoder(
        path, model.state_dict(), _SPEC, arch="sr-vit-tiny", config=config.to_record()
    )
    if metadata:
        state = weights.read_state(path)
        description = {
            "format": weights.FORMAT,
            "name": "x",
            "arch": "sr-vit-tiny",
            "config": json.dumps(config.to_record()),
            "mean": "[0.5, 0.5, 0.5]",
            "std": "[0.5, 0.5, 0.5]",
            "input_px": "96",
            "resize_px": "null",
            "mpp": "null",
            "interpolation": "bicubic",
            "pooling": "cls",
            "licence": "CC0",
        }
        save_file(state, path, metadata=description | metadata)
    return path, model


def test_write_encoder__opens_by_its_file_alone(tmp_path):
    path, model = _exported(tmp_path)
    encoder = load_encoder(str(path), device="cpu")
    spec = encoder.spec
    assert (spec.name, spec.dim, spec.input_px, spec.mpp) == ("my/sr-dino", 384, 96, 0.25)
    assert (spec.mean, spec.std) == (_SPEC.mean, _SPEC.std)
    assert (spec.pooling, spec.licence) == ("cls+mean", "CC0")
    assert spec.weights_sha256 == weights.sha256(path)
    assert store_key(spec) == "my.sr-dino"
    assert encoder.model.config == model.config
    assert encoder.report.added == ()
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.safetensors"]
    assert spec.cell_um == 17.9
    older, _ = _exported(tmp_path, name="older")  # from before crops were written down
    assert load_encoder(str(older), device="cpu").spec.cell_um is None


@pytest.mark.parametrize(
    "metadata",
    [
        {"name": "../../escape"},
        {"arch": "other.safetensors"},
        {"arch": "unheard-of"},
        {"config": "not json"},
        {"config": "[]"},
        {"config": '{"size": "gigantic"}'},
        {"config": '{"checkpoint_path": "/etc/passwd"}'},
        {"arch": "timm/vit_tiny_patch16_224", "config": '{"checkpoint_path": "/etc/passwd"}'},
        {"mean": "[1, 2]"},
        {"input_px": '"96"'},
        {"input_px": "-3"},
        {"input_px": "95"},
        {"mpp": "true"},
        {"cell_um": "-1"},
        {"cell_um": '"18"'},
        {"pooling": "everything"},
        {"interpolation": "nearest"},
    ],
)
def test_load_encoder__a_file_that_lies_about_itself_is_refused(tmp_path, metadata):
    path, _ = _exported(tmp_path, **metadata)
    with pytest.raises((WeightsError, UsageError)):
        load_encoder(str(path), device="cpu")


def test_load_encoder__a_file_that_says_nothing_is_refused_with_a_hint(tmp_path):
    state = SrVit(SrVitConfig(size="tiny", img_px=32)).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        with pytest.raises(WeightsError, match="does not name its architecture") as caught:
            load_encoder(str(tmp_path / name))
        assert "--weights" in caught.value.hint
    with pytest.raises(WeightsError, match="no such file"):
        load_encoder(str(tmp_path / "none.safetensors"))


_WRITE = """
import sys, torch
from pathlib import Path
from cytofm_cli.encoders import weights
from cytofm_cli.encoders.base import EncoderSpec
state = {name: torch.arange(6.0).view(2, 3) * i for i, name in enumerate("cab")}
spec = EncoderSpec(name="größe/x", dim=3, input_px=32, licence="CC0 \\"quoted\\" \\n", mpp=0.25)
weights.write_encoder(Path(sys.argv[1]), state, spec, arch="sr-vit-tiny", config={"b": 1, "a": 2})
"""


@pytest.mark.slow
def test_write_encoder__writes_the_same_bytes_in_every_process(tmp_path):
    digests = set()
    for seed in range(2):  # with 14 keys in a random order, two equal ones are no chance
        path = tmp_path / f"{seed}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([sys.executable, "-c", _WRITE, str(path)], env=environment, check=True)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    described = weights.read_description(tmp_path / "0.safetensors")
    assert (described.name, described.config) == ("größe/x", {"b": 1, "a": 2})
    assert described.expects["licence"] == 'CC0 "quoted" \n'
    state = weights.read_state(tmp_path / "0.safetensors")
    assert {name: value[1, 2].item() for name, value in state.items()} == {"c": 0, "a": 5, "b": 10}


def test_load__a_file_of_another_network_cannot_join_pixels(tmp_path):
    path, _ = _exported(
        tmp_path, arch="timm/vit_tiny_patch16_224", config="{}", pooling="cls+mean+pixels"
    )
    with pytest.raises(UsageError, match="only an SR-ViT joins"):
        load_encoder(str(path), device="cpu")
