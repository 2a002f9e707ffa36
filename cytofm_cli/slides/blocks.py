"""A picture of the whole slide, made block by block: memory does not grow with the slide.

Blocks that a damaged file cannot give are white, as glass is, so that one bad tile does not
cost the slide; a file that gives no more than half of them is refused.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import SlideInfo, finest_level_for, overview_size, slide_error
from cytofm_cli.units import Box

_log = logging.getLogger(__name__)

_BLOCK_PX = 2048
WHITE = 255


def overview_by_blocks(
    info: SlideInfo, downsample: float, read: Callable[[int, Box], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Return the whole slide at 1/`downsample` of level 0.

    Args:
        info: the slide.
        downsample: pixels of level 0 to a pixel of the picture, ≥ 1.
        read: (level, box) → (box.h, box.w, 3) uint8.

    Returns:
        uint8 (H, W, 3): each pixel is the mean of the pixels under it.

    Raises:
        SlideError: half of the blocks or more cannot be read.
    """
    size = overview_size(info, downsample)
    level = finest_level_for(info.levels, downsample)
    level_px = info.levels[level].size_px
    picture = np.full((size.h, size.w, 3), WHITE, np.uint8)
    failed: list[SlideError] = []
    n_blocks = 0
    for y, h, top, bottom in _cuts(size.h, level_px.h):
        for x, w, left, right in _cuts(size.w, level_px.w):
            n_blocks += 1
            box = Box(math.floor(left), math.floor(top), 0, 0)
            box = box._replace(w=math.ceil(right) - box.x, h=math.ceil(bottom) - box.y)
            try:
                block = read(level, box)
            except SlideError as error:
                failed.append(error)
                continue
            inside = (left - box.x, top - box.y, right - box.x, bottom - box.y)
            picture[y : y + h, x : x + w] = _shrink(block, w, h, inside)
    if 2 * len(failed) >= n_blocks and failed:
        raise failed[0]
    if failed:
        _log.warning("%s: %d of %d blocks are damaged.", info.path, len(failed), n_blocks)
    return picture


def _cuts(n_out: int, n_in: int) -> Iterator[tuple[int, int, float, float]]:
    """Cut an axis: (start, length) in the picture, (start, end) in the level."""
    scale = n_in / n_out
    step = max(1, math.floor(_BLOCK_PX / scale))
    for start in range(0, n_out, step):
        length = min(step, n_out - start)
        yield start, length, start * scale, min(float(n_in), (start + length) * scale)


def _shrink(
    block: NDArray[np.uint8], w: int, h: int, inside: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    from PIL import Image

    picture = Image.fromarray(block).resize((w, h), Image.Resampling.BOX, box=inside)
    return np.asarray(picture, np.uint8)


def on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay (H, W, 4) uint8 pixels with straight alpha on white: (H, W, 3)."""
    alpha = rgba[..., 3:]
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(rgba[..., :3])
    wide = rgba[..., :3].astype(np.uint16) * alpha + WHITE * (WHITE - alpha.astype(np.uint16))
    return ((wide + WHITE // 2) // WHITE).astype(np.uint8)


def damaged(path: str, level: int, box: Box, why: object) -> SlideError:
    """Make the error of a read that failed."""
    what = f"damaged at x={box.x} y={box.y} w={box.w} h={box.h} of level {level} ({why})."
    return slide_error(path, what, "copy the file again from its source.")
