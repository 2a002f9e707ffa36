"""Which patches the student does not see: blocks, drawn by counter.

Bao et al., ICLR 2022 (BEiT), alg. 1, with the ratios of iBOT and DINOv2. A view's mask depends
on its key alone: not on the batch, its order or the process. Unlike theirs, the number of masked
patches is exact: what blocks leave open is filled up by single patches.

Letters: B tiles, V views, G = V · B images, N patches, M masked patches of all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.views.draws import Keys, Stream, fold, uniform

_RATIO, _BLOCKS, _FILL = range(3)
_ATTEMPTS: Final = 40  # blocks tried for a mask; about 10 fill the largest one
_ASPECT: Final = 0.3  # height over width is between this and 1 over this

Masks = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PatchMasks:
    """Masks of images and where their masked patches are, image after image.

    Attributes:
        mask_GN: bool, True where masked.
        index_M: int64, g · N + n of each masked patch.
        weight_M: float32, 1 / (masked patches of the image · G), so that a weighted sum is the
            mean over images of the mean over patches.
    """

    mask_GN: Tensor
    index_M: Tensor
    weight_M: Tensor


def draw_masks(
    keys_B: Keys,
    n_views: int,
    grid: tuple[int, int],
    *,
    chance: float,
    ratio: tuple[float, float],
    device: torch.device,
    min_patches: int = 4,
) -> PatchMasks:
    """Draw the masks of views: none, or a share of the patches.

    Args:
        keys_B: one key a tile and visit.
        n_views: V; image v · B + b is view v of tile b.
        grid: rows and columns of patches.
        chance: probability that a view is masked at all.
        ratio: smallest and largest share of masked patches, drawn uniformly.
        device: where the tensors shall be.
        min_patches: smallest block; smaller rests are filled by single patches.
    """
    keys_GV = fold(fold(keys_B, Stream.MASK)[None, :], np.arange(n_views)[:, None])
    keys_G = keys_GV.reshape(-1)
    draw_G2 = uniform(fold(keys_G, _RATIO), 2)
    share_G = ratio[0] + (ratio[1] - ratio[0]) * draw_G2[:, 1]
    n_patches = math.prod(grid)
    count_G = np.floor(share_G * n_patches + 0.5).astype(np.int64)
    count_G[draw_G2[:, 0] >= chance] = 0
    mask_GN = block_masks(keys_G, grid, count_G, min_patches=min_patches)
    index_M = mask_GN.reshape(-1).nonzero()[0]
    weight_M = 1 / (np.maximum(count_G, 1)[index_M // n_patches] * len(keys_G))
    return PatchMasks(
        mask_GN=torch.from_numpy(mask_GN).to(device),
        index_M=torch.from_numpy(index_M).to(device),
        weight_M=torch.from_numpy(weight_M.astype(np.float32)).to(device),
    )


def block_masks(
    keys_G: Keys,
    grid: tuple[int, int],
    count_G: Sequence[int] | NDArray[np.int64],
    *,
    min_patches: int,
) -> Masks:
    """Mask exactly `count_G` patches of each image by blocks: bool (G, N).

    A block has an area between `min_patches` and what is still to mask, and a height over width
    between 0.3 and 3.3, log-uniform; one that would mask too much is drawn again.
    """
    rows, columns = grid
    row_R, column_C = np.arange(rows), np.arange(columns)
    left_G = np.asarray(count_G, np.int64).copy()
    mask_GRC = np.zeros((len(left_G), rows, columns), bool)
    draws_GA4 = uniform(fold(keys_G, _BLOCKS), 4 * _ATTEMPTS).reshape(-1, _ATTEMPTS, 4)
    for attempt in range(_ATTEMPTS):
        open_G = (left_G >= min_patches).nonzero()[0]
        if not len(open_G):
            break
        area, shape, y, x = draws_GA4[open_G, attempt].T
        area = min_patches + (left_G[open_G] - min_patches) * area
        aspect = _ASPECT ** (1 - 2 * shape)
        height = np.clip(np.rint(np.sqrt(area * aspect)), 1, rows)
        width = np.clip(np.rint(np.sqrt(area / aspect)), 1, columns)
        top, start = np.floor(y * (rows - height + 1)), np.floor(x * (columns - width + 1))
        in_row = (row_R >= top[:, None]) & (row_R < (top + height)[:, None])
        in_column = (column_C >= start[:, None]) & (column_C < (start + width)[:, None])
        new = in_row[:, :, None] & in_column[:, None, :] & ~mask_GRC[open_G]
        n_new = new.sum((1, 2))
        fits = n_new <= left_G[open_G]
        mask_GRC[open_G[fits]] |= new[fits]
        left_G[open_G[fits]] -= n_new[fits]
    return _fill(mask_GRC.reshape(len(left_G), -1), left_G, keys_G)


def _fill(mask_GN: Masks, left_G: NDArray[np.int64], keys_G: Keys) -> Masks:
    """Mask `left_G` more patches of each image, any that are open."""
    order_GN = uniform(fold(keys_G, _FILL), mask_GN.shape[1])
    order_GN[mask_GN] = 2.0  # behind all open ones
    rank_GN = order_GN.argsort(1, kind="stable").argsort(1, kind="stable")
    return mask_GN | (rank_GN < left_G[:, None])
