"""The catalogue: every entry can be built, and is as large as its authors say."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cytofm_cli.encoders import catalogue
from cytofm_cli.encoders.base import EncoderRequest
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.models import timm as timm_plugin
from cytofm_cli.encoders.torch_encoder import fit_square
from cytofm_cli.errors import UsageError

TIMM_ENTRIES = [entry for plugin, entry in catalogue.entries().values() if plugin == "timm"]


@pytest.mark.parametrize("entry", TIMM_ENTRIES, ids=lambda entry: entry.name)
def test_entry__builds_and_agrees_with_itself(entry):
    found = catalogue.resolve(entry.name)
    request = EncoderRequest(
        name=found.name,
        model=found.model,
        builder=dict(found.builder),
        expects=dict(found.expects),
    )
    outline = timm_plugin.network_outline(request)
    spec = timm_plugin._spec(request, outline)
    assert spec.dim == entry.dim
    assert (spec.input_px, spec.mean, spec.std) == (entry.input_px, *entry.norm)
    if hasattr(outline, "patch_embed"):
        (rows, _), (side, _) = outline.patch_embed.grid_size, outline.patch_embed.patch_size
        assert rows * side == entry.input_px
    millions = sum(p.numel() for p in outline.parameters()) / 1e6
    assert millions == pytest.approx(entry.params_m, rel=0.02)


def test_describe__lists_everything_without_torch():
    code = (
        "import sys\n"
        "from cytofm_cli.encoders import catalogue\n"
        "rows = {row.name: row for row in catalogue.describe()}\n"
        "assert {'handcrafted', 'sr-vit-tiny', 'uni', 'cytofm', 'timm/<name>'} <= set(rows)\n"
        "assert not rows['handcrafted'].needs_weights\n"
        "assert rows['uni'].gated and rows['uni'].dim == 1024\n"
        "how = rows['smart-ccs'].preparation\n"
        "assert (how['resize_px'], how['mean'], how['pooling']) == (244, (0.5, 0.5, 0.5), 'cls')\n"
        "assert not {'torch', 'timm', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_describe__dimensions_of_our_own_are_true():
    for name in ("handcrafted", "sr-vit-nano", "sr-vit-tiny", "sr-vit-tiny-p14"):
        options = {} if name == "handcrafted" else {"random_weights": True}
        encoder = load_encoder(name, device="cpu", **options)
        entry = catalogue.entries()[name][1]
        assert encoder.spec.dim == entry.dim
        assert encoder.spec.input_px == entry.input_px


def test_resolve__typos_get_a_suggestion():
    with pytest.raises(UsageError) as caught:
        catalogue.resolve("sr-vit-tinny")
    assert "sr-vit-tiny" in caught.value.hint


def test_fit_square__is_pillow_like_and_cuts_the_centre():
    pixels = np.zeros((1, 3, 40, 80), np.uint8)
    pixels[..., 20:60] = 200
    found = fit_square(
        torch.from_numpy(pixels), resize_px=20, input_px=20, interpolation="bilinear"
    )
    assert found.shape == (1, 3, 20, 20)
    assert found.dtype == torch.uint8
    assert (found[..., 2:-2] == 200).all()  # 20 × 40 after resizing: columns 10 to 30 stay
    cropped = fit_square(
        torch.zeros(1, 3, 512, 512, dtype=torch.uint8),
        resize_px=256,
        input_px=224,
        interpolation="bicubic",
    )
    assert cropped.shape == (1, 3, 224, 224)


def test_fit_square__antialiases():
    stripes = np.zeros((1, 3, 64, 64), np.uint8)
    stripes[..., ::2] = 255
    found = fit_square(
        torch.from_numpy(stripes), resize_px=16, input_px=16, interpolation="bicubic"
    )
    inner = found[..., 4:-4].int()
    assert (inner - 127).abs().max() <= 2
