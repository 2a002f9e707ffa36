"""Unchanged crops of what a run learns from, as its encoder will see them.

Letters: B crops, C H W an image.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cytofm_cli.encoders.torch_encoder import fit_square
from cytofm_cli.pretrain.plan import Plan

N_CROPS: Final = 2048
_AT_A_TIME: Final = 64


def middle_crops(plan: Plan) -> Tensor:
    """Return the middle of some tiles or cells, the same ones for ever: uint8 (B, 3, S, S).

    Every slide gives as many, spread over it. Of a cell it is the middling global view, which is
    the crop that the encoder states; of a tile all of it.
    """
    index, view = plan.index, plan.recipe.views[0]
    share = math.sqrt(sum(view.scale) / 2) if index.unit == "cell" else 1.0
    side = max(1, round(share * index.tile_px))
    crops = []
    tiles = _spread([slide.n_tiles for slide in index.slides])
    for at in range(0, len(tiles), _AT_A_TIME):
        batch = index.read(tiles[at : at + _AT_A_TIME], plan.ncp)
        first = (batch.tile_BCHW.shape[-1] - side) // 2
        middle = batch.tile_BCHW[..., first : first + side, first : first + side]
        px = view.size_px
        crops.append(fit_square(middle, resize_px=px, input_px=px, interpolation="bicubic"))
    return torch.cat(crops)


def _spread(sizes: list[int]) -> list[int]:
    """Return numbers of tiles, as many of each slide and evenly spread over it."""
    each = -(-N_CROPS // len(sizes))
    first, tiles = 0, []
    for size in sizes:
        rows = np.unique(np.linspace(0, size - 1, min(each, size)).round().astype(int))
        tiles += (first + rows).tolist()
        first += size
    return tiles
