"""Whether the levels of a pyramid show one picture.

Two fields of 1024 and 512 px in one file look like a pyramid in every tag. So pages of the main
chain are compared with the level above them at a few places, at the size of a stamp; SubIFDs
are smaller copies by definition. Costs some tens of milliseconds, once a slide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import Level
from cytofm_cli.slides.pyramid import Pyramid
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Box

Read = Callable[[int, Box], NDArray[np.uint8]]

_STAMP_PX: Final = 16
_MOST_PX: Final = 512  # side of what is read of the finer level at a place
# Copies of one picture differ by compression and rounding, in grey levels or in contrast only.
_SAME_LEVELS: Final = 12.0
_SAME_CORRELATION: Final = 0.5


def keep_same(pyramid: Pyramid, read: Read) -> Pyramid:
    """Drop the levels that show another picture, and say so.

    Args:
        pyramid: as its directories look.
        read: (level, box) → (box.h, box.w, 3) uint8, with the levels of `pyramid`.
    """
    kept = [0]
    for level in range(1, len(pyramid.levels)):
        directory = pyramid.channels[level][0]
        if directory.sub is not None or _same(pyramid, kept[-1], level, directory, read):
            kept.append(level)
    if len(kept) == len(pyramid.levels):
        return pyramid
    n_lost = len(pyramid.levels) - len(kept)
    note = f"{n_lost} smaller pictures in the file show something else and are no levels."
    return replace(pyramid.only(kept), notes=(*pyramid.notes, note))


def _same(pyramid: Pyramid, fine: int, coarse: int, directory: Directory, read: Read) -> bool:
    scale = pyramid.levels[coarse].downsample / pyramid.levels[fine].downsample
    pairs = []
    try:
        for box in _places(directory, max(_STAMP_PX, int(_MOST_PX / scale))):
            above = _above(box, pyramid.levels[coarse], pyramid.levels[fine])
            pairs.append((_stamp(read(coarse, box)), _stamp(read(fine, above))))
    except SlideError:
        return True  # damage is told where it is read
    a, b = (np.concatenate(stamps).reshape(-1, 3) for stamps in zip(*pairs, strict=True))
    if np.abs(a - b).mean() <= _SAME_LEVELS:
        return True
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum()) >= _SAME_CORRELATION * math.sqrt((a**2).sum() * (b**2).sum() + 1)


def _places(directory: Directory, side: int) -> list[Box]:
    """Choose up to three boxes: in the tiles of most bytes, which hold most of the picture."""
    width, height = directory.size_px
    tile, grid = directory.tile_px or directory.size_px, directory.grid
    counts = directory.byte_counts[: grid.w * grid.h]
    order = np.argsort(-counts, kind="stable")
    boxes = []
    for index in {int(order[rank]) for rank in (0, order.size // 8, order.size // 2)}:
        row, column = divmod(index, grid.w)
        x, y = column * tile.w, row * tile.h
        w, h = min(side, tile.w, width - x), min(side, tile.h, height - y)
        boxes.append(Box(x, y, w, h))
    return boxes


def _above(box: Box, coarse: Level, fine: Level) -> Box:
    x_scale = fine.size_px.w / coarse.size_px.w
    y_scale = fine.size_px.h / coarse.size_px.h
    x, y = math.floor(box.x * x_scale), math.floor(box.y * y_scale)
    right = min(fine.size_px.w, math.ceil((box.x + box.w) * x_scale))
    bottom = min(fine.size_px.h, math.ceil((box.y + box.h) * y_scale))
    return Box(x, y, right - x, bottom - y)


def _stamp(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    from PIL import Image

    small = Image.fromarray(pixels).resize((_STAMP_PX, _STAMP_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float64)
