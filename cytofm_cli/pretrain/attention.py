"""What the class token looks at: pictures of a few tiles that stay the same all run long.

Letters: B images, C H W an image, N tokens, P patches, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cytofm_cli.encoders.attention import CLASS_TOKEN, patch_attention
from cytofm_cli.encoders.torch_encoder import fit_square
from cytofm_cli.pictures.colours import shade
from cytofm_cli.pictures.sheet import Image, below, beside, labelled
from cytofm_cli.pretrain.backbone import VitTrunk
from cytofm_cli.pretrain.base import Backbone
from cytofm_cli.pretrain.tile_index import TileIndex
from cytofm_cli.views.ncp import PRESETS
from cytofm_cli.views.stored import draw_lots


def choose_tiles(index: TileIndex, n: int, seed: int) -> NDArray[np.uint8]:
    """Read `n` random tiles, (n, H, W, 3), with nuclei as far as there are such tiles."""
    slides = index.slides
    lots = [draw_lots(seed, slide.slide_id, np.arange(slide.n_tiles)) for slide in slides]
    bare_N = np.concatenate([slide.bare_N for slide in slides])
    chosen = np.lexsort((np.concatenate(lots), bare_N))[:n].tolist()
    pixels_BCHW = index.read(chosen, PRESETS["none"]).tile_BCHW
    return pixels_BCHW.permute(0, 2, 3, 1).contiguous().numpy()


def class_attention(backbone: Backbone, x_BCHW: Tensor) -> Tensor | None:
    """Return the attention from the class token to the patches, in the last block.

    Args:
        backbone: any trunk; it is used as it is, in training or not.
        x_BCHW: normalised images.

    Returns:
        float32 (B, heads, rows, columns), shares of what the class token attends to; None: the
        trunk has no class token, or no attention that can be looked at.
    """
    if not isinstance(backbone, VitTrunk):
        return None
    found = patch_attention(backbone.trunk, x_BCHW)
    if found is None or found.query != CLASS_TOKEN:
        return None
    weights: Tensor = found.patches_BHP.float()
    return weights.reshape(*weights.shape[:2], *found.grid)


def draw_attention(
    backbone: Backbone,
    pixels_BHWC: NDArray[np.uint8],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size_px: int,
) -> Image | None:
    """Draw tiles beside the attention of the last block: mean over heads, then each head.

    Each map is scaled to its own largest value: black is 0, light yellow the patch most looked at.

    Args:
        backbone: any trunk; it is put in evaluation for the while.
        pixels_BHWC: uint8 RGB tiles.
        mean: normalisation, RGB in 0 … 1.
        std: likewise.
        size_px: side of the square that the trunk sees, whole patches.

    Returns:
        uint8 (H, W, 3); None: see `class_attention`.
    """
    x_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
    x_BCHW = fit_square(x_BCHW, resize_px=size_px, input_px=size_px, interpolation="bicubic")
    device = next(backbone.parameters()).device
    shift, scale = (torch.tensor(tuple(v), device=device).view(1, 3, 1, 1) for v in (mean, std))
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            seen_BCHW = (x_BCHW.to(device).float() / 255 - shift) / scale
            maps = class_attention(backbone, seen_BCHW)
    finally:
        backbone.train(was_training)
    if maps is None:
        return None
    strips = []
    for number, (tile, heads) in enumerate(zip(x_BCHW, maps.cpu(), strict=True), start=1):
        panels = [labelled(np.ascontiguousarray(tile.permute(1, 2, 0)), f"tile {number}")]
        panels.append(labelled(_heat(heads.mean(0), size_px), "mean"))
        panels += [labelled(_heat(h, size_px), f"head {i}") for i, h in enumerate(heads, start=1)]
        strips.append(beside(panels))
    return below(strips)


def _heat(map_HW: Tensor, size_px: int) -> Image:
    """Colour a map, scaled to its largest value."""
    level_HW = map_HW / map_HW.max().clamp_min(1e-12)
    level_HW = functional.interpolate(level_HW[None, None], size=(size_px, size_px))[0, 0]
    return shade(level_HW.numpy(), "inferno")
