"""What replaces all that lies outside of what is kept: one function for each `NcpConfig.fill`.

Perturb before crop and resize, at the tile's own resolution: radii are physical.

Letters: G tiles, N = H · W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cytofm_cli.units import Box
from cytofm_cli.views import draws, pixels, shuffle
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.scene import Scene


def perturb(
    scene: Scene,
    outside_GN: Tensor,
    key_G: draws.Keys,
    config: NcpConfig,
    within_GN: Tensor | None = None,
) -> Tensor:
    """Replace what lies outside ("shuffle pixels"); the rest stays bit for bit: int32 (G, H, W).

    Args:
        scene: G tiles.
        outside_GN: bool, from `scene.outside_mask`.
        key_G: one key per noise.
        config: its `fill` and `block_px` matter here.
        within_GN: bool; if given, shuffled pixels are dealt only where it is true, in this
            order, from all of the outside: what `perturb_box` does for one tile.
    """
    word_GN = scene.word_BN
    shape = (-1, scene.height, scene.width)
    word_GHW, outside_GHW = word_GN.view(shape), outside_GN.view(shape)
    if config.fill == "none":
        return word_GHW
    if config.fill == "window":
        return _shuffle_windows(word_GHW, outside_GHW, key_G, config.block_px)
    if config.fill == "blocks":
        return _shuffle_blocks(word_GHW, outside_GHW, key_G, config.block_px)
    if config.fill in ("mean", "blur"):
        fill = _mean_fill if config.fill == "mean" else _blur_fill
        return torch.where(outside_GHW, fill(word_GHW, outside_GHW), word_GHW)
    return shuffle.shuffle_outside(word_GN, outside_GN, key_G, within_GN).view(shape)


def perturb_box(
    scene: Scene, outside_1N: Tensor, key_1: draws.Keys, config: NcpConfig, box: Box
) -> Tensor:
    """Perturb one tile, on the host, and return only a box of it: int32 words (h, w).

    A crop shows a part of the permutation only, so only that part is drawn.
    """
    shape = (scene.height, scene.width)
    if config.fill == "pixels":
        return shuffle.deal_box(scene.word_BN.view(shape), outside_1N.view(shape), key_1, box)
    window = (0, slice(box.y, box.y + box.h), slice(box.x, box.x + box.w))
    return perturb(scene, outside_1N, key_1, config)[window]


def _shuffle_windows(word_GHW: Tensor, outside_GHW: Tensor, key_G: draws.Keys, side: int) -> Tensor:
    n_tiles, height, width = word_GHW.shape
    word, outside = _to_blocks(word_GHW, side), _to_blocks(outside_GHW, side)
    per_tile = len(word) // n_tiles
    keys = draws.fold(key_G[:, None], np.arange(per_tile)).ravel()
    mixed = shuffle.shuffle_outside(word, outside, keys)
    return _from_blocks(mixed, n_tiles, height, width, side)


def _shuffle_blocks(word_GHW: Tensor, outside_GHW: Tensor, key_G: draws.Keys, side: int) -> Tensor:
    """Permute the blocks that lie outside entirely; blocks across an edge stay."""
    n_tiles, height, width = word_GHW.shape
    word = _to_blocks(word_GHW, side)
    n_blocks = len(word) // n_tiles
    free = _to_blocks(outside_GHW, side).all(1).view(n_tiles, n_blocks)
    number = torch.arange(n_blocks, device=word.device).expand(n_tiles, -1)
    moved = shuffle.shuffle_outside(number, free, key_G)
    start = torch.arange(n_tiles, device=word.device).unsqueeze(1) * n_blocks
    mixed = word[(moved + start).view(-1)]
    return _from_blocks(mixed, n_tiles, height, width, side)


def _to_blocks(image_GHW: Tensor, side: int) -> Tensor:
    """Cut images into (G · blocks, side²); what hangs over is padded with 0, that is inside."""
    n_images, height, width = image_GHW.shape
    rows, columns = -(-height // side), -(-width // side)
    over = (0, columns * side - width, 0, rows * side - height)
    padded = torch.nn.functional.pad(image_GHW, over)
    cut = padded.view(n_images, rows, side, columns, side).transpose(2, 3)
    return cut.reshape(-1, side * side)


def _from_blocks(block: Tensor, n_images: int, height: int, width: int, side: int) -> Tensor:
    rows, columns = -(-height // side), -(-width // side)
    image = block.view(n_images, rows, columns, side, side).transpose(2, 3)
    return image.reshape(n_images, rows * side, columns * side)[:, :height, :width].contiguous()


def _mean_fill(word_GHW: Tensor, outside_GHW: Tensor) -> Tensor:
    weight = outside_GHW.unsqueeze(1).float()
    total = (pixels.unpack(word_GHW).float() * weight).sum((2, 3), keepdim=True)
    mean = total / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return pixels.pack(mean.round().to(torch.uint8)).expand_as(word_GHW)


def _blur_fill(word_GHW: Tensor, _outside_GHW: Tensor) -> Tensor:
    """Blur so much (down to a sixteenth and up) that no nucleus can be told."""
    size = word_GHW.shape[-2:]
    small = (max(1, size[0] // 16), max(1, size[1] // 16))
    resize = torch.nn.functional.interpolate
    rgb = resize(pixels.unpack(word_GHW).float(), small, mode="area")
    rgb = resize(rgb, size, mode="bicubic", align_corners=False)
    return pixels.pack(rgb.round_().clamp_(0, 255).to(torch.uint8))
