"""Many small squares of a field: where they lie, in which order they cost least, their pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.tiles.field import Field
from cytofm_cli.units import Box


def corners(field: Field, xy_px0: NDArray[np.float32], side_px: int) -> NDArray[np.int64]:
    """Return the left and upper edges of squares around points, (n, 2), field pixels.

    Args:
        field: the image.
        xy_px0: centres, level-0 pixels.
        side_px: side of a square, field pixels.
    """
    left_top = np.rint(xy_px0.astype(np.float64) / field.downsample - side_px / 2)
    return left_top.astype(np.int64)


def reading_order(field: Field, corners_px: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the order that reads squares in strips, down each, of as much as the field keeps."""
    x, y = corners_px.T
    return np.lexsort((x, y, x // field.strip_px))


def read_squares(
    field: Field, corners_px: NDArray[np.int64], side_px: int, fill: int
) -> NDArray[np.uint8]:
    """Return squares of a field, filled beyond the image, (n, side_px, side_px, 3) uint8 RGB."""
    squares = np.empty((len(corners_px), side_px, side_px, 3), np.uint8)
    width, height = field.size_px
    for square, (left, top) in zip(squares, corners_px.tolist(), strict=True):
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + side_px, width), min(top + side_px, height)
        if field.apart:
            square[:] = field.read(Box(left, top, side_px, side_px))
            continue
        if (x1 - x0, y1 - y0) == (side_px, side_px):
            square[:] = field.read(Box(x0, y0, side_px, side_px))
            continue
        square[:] = fill
        if x1 > x0 and y1 > y0:
            part = field.read(Box(x0, y0, x1 - x0, y1 - y0))
            square[y0 - top : y1 - top, x0 - left : x1 - left] = part
    return squares
