"""Files as authors publish them: by name alone, the features are those of the authors' network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from cytofm_cli.encoders import catalogue
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import UsageError, WeightsError

from . import vit_reference as reference
from .vit_reference import Shape

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 4}


@dataclass(frozen=True)
class Layout:
    """How a network is published: its shape, its names, its file, its settings made small."""

    shape: Shape
    names: Callable[[Any], Any]
    suffix: str = ".pth"
    builder: dict[str, Any] = field(default_factory=dict)


GATED = Shape(patch_px=16, swiglu=True)
# 86 of 32 · 4 · 2 / 3, twice; the ratio that timm is told gives both halves of the gate.
NARROW = {"mlp_ratio": 172 / 32}
LAYOUTS = {
    "unicas": Layout(GATED, reference.as_timm, builder=NARROW),
    "crown": Layout(GATED, reference.as_chunks, builder=NARROW),
    "smart-ccs": Layout(Shape(), reference.as_teacher),
    **{f"dinobloom-{size}": Layout(Shape(), reference.as_teacher) for size in "sbl"},
    "dinobloom-g": Layout(Shape(swiglu=True), reference.as_teacher, builder=NARROW),
    **{f"reddino-{n}": Layout(Shape(), reference.as_timm, ".safetensors") for n in "sbl"},
    **{
        f"hibou-{size}": Layout(Shape(registers=4), reference.as_hugging_face, ".safetensors")
        for size in "bl"
    },
    "openmidnight": Layout(
        Shape(registers=4, swiglu=True), reference.as_chunks, ".pt", builder=NARROW
    ),
    "lunit-s8": Layout(Shape(patch_px=8, scale=None), reference.as_timm),
    "lunit-s16": Layout(Shape(patch_px=16, scale=None), reference.as_timm),
    "uni": Layout(Shape(patch_px=16), reference.as_timm, ".bin"),
    "gpfm": Layout(Shape(), reference.as_teacher),
    "prov-gigapath": Layout(GATED, reference.as_timm, ".bin", builder=NARROW),
    "kaiko-b16": Layout(Shape(patch_px=16, scale=None), reference.as_timm),
    "ibot-s16": Layout(Shape(patch_px=16, scale=None), reference.as_timm),
}


def write(folder: Path, layout: Layout) -> tuple[Path, reference.State]:
    state = reference.random_state(layout.shape)
    path = folder / f"published{layout.suffix}"
    if layout.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in layout.names(state).items()}, path)
    else:
        torch.save(layout.names(state), path)
    return path, state


@pytest.mark.parametrize("name", LAYOUTS)
def test_features__are_those_of_the_authors_network(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    path, state = write(tmp_path, layout)
    encoder = load_encoder(name, weights=path, device="cpu", builder=SMALL | layout.builder)
    entry = catalogue.entries()[name][1]
    side = entry.resize_px or entry.input_px
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    found = encoder.encode(encoder.prepare(pixels))
    cut = (side - 224) // 2
    x = torch.from_numpy(pixels[:, cut : cut + 224, cut : cut + 224]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in entry.norm)
    wanted = reference.class_token(state, layout.shape, (x - mean) / std).numpy()
    assert found == pytest.approx(wanted, rel=0, abs=1e-5 * np.abs(wanted).max())
    assert encoder.spec.positions is None and not encoder.spec.assumed
    assert encoder.spec.licence == entry.licence


def test_features__of_other_numbers_differ(tmp_path: Path) -> None:
    path, state = write(tmp_path, LAYOUTS["crown"])
    encoder = load_encoder("crown", weights=path, device="cpu", builder=SMALL | NARROW)
    changed = state | {"blocks.3.ls2.gamma": state["blocks.3.ls2.gamma"] * 1.01}
    x = torch.zeros(1, 3, 224, 224)
    mean, std = (torch.tensor(v)[:, None, None] for v in catalogue.entries()["crown"][1].norm)
    found = encoder.encode(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    other = reference.class_token(changed, GATED, (x - mean) / std).numpy()
    assert np.abs(found - other).max() > 1e-3


def test_resnet50_layer3__is_torchvisions_third_stage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = resnet50().eval()
    path = tmp_path / "resnet50-0676ba61.pth"
    torch.save(network.state_dict(), path)
    encoder = load_encoder("resnet50-layer3", weights=path, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (encoder.spec.mean, encoder.spec.std))
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1((x - mean) / std))))
        x = network.layer3(network.layer2(network.layer1(x)))
    found = encoder.encode(encoder.prepare(pixels))
    assert encoder.spec.dim == 1024
    np.testing.assert_allclose(found, x.mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_arch_of_a_sidecar__a_file_alone_is_an_encoder(tmp_path: Path) -> None:
    path, state = write(tmp_path, LAYOUTS["crown"])
    beside = path.with_name("published.pth.toml")
    words = "\n".join(f"{key} = {value!r}" for key, value in (SMALL | NARROW).items())
    beside.write_text(
        'arch = "timm/vit_large_patch16_224"\ninput_px = 224\nmean = [0.5, 0.5, 0.5]\n'
        "std = [0.25, 0.25, 0.25]\nlicence = 'ours'\n[builder]\ninit_values = 1e-5\n"
        f"mlp_layer = 'swiglu_packed'\nact_layer = 'silu'\n{words}\n"
    )
    encoder = load_encoder(str(path), device="cpu")
    assert (encoder.spec.name, encoder.spec.dim, encoder.spec.licence) == ("published", 32, "ours")
    x = (torch.zeros(1, 3, 224, 224) - 0.5) / 0.25
    wanted = reference.class_token(state, GATED, x).numpy()
    found = encoder.encode(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('arch = "published.pth"', "arch names another file"),
        (
            'arch = "timm/resnet50"\n[builder]\ncheckpoint_path = "x"',
            "no setting 'checkpoint_path'",
        ),
        ("builder = 3", "must be a table of numbers and words"),
        ('arch = "timm/resnet50"\n[builder]\nlast_stage = 5', "last_stage is 1, 2 or 3"),
    ],
)
def test_arch_of_a_sidecar__mistakes_are_named(text: str, said: str, tmp_path: Path) -> None:
    path, _ = write(tmp_path, LAYOUTS["lunit-s16"])
    path.with_name("published.pth.toml").write_text(text)
    with pytest.raises((WeightsError, UsageError), match=said):
        load_encoder(str(path), device="cpu")
