"""Random numbers by place: the same whatever box is asked for, and on every machine.

A value at a lattice point is a hash of the seed and of the point's own numbers, so no box has to
be drawn after another one, and what is interpolated between points is the same in every box.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.units import Box

Plane = NDArray[np.float32]
Corners = tuple[int, int, int, int]  # x0, y0, x1, y1: pixels, the last two not included

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # splitmix64 (Steele et al., OOPSLA 2014)
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def box_of(corners: Corners) -> Box:
    """Return the box between two corners."""
    x0, y0, x1, y1 = corners
    return Box(x0, y0, x1 - x0, y1 - y0)


def uniform(seed: int, y: NDArray[np.int64], x: NDArray[np.int64]) -> Plane:
    """Return numbers evenly spread in [0, 1) for lattice points.

    Args:
        seed: which field of numbers.
        y, x: the points, integers of any sign; they broadcast.

    Returns:
        float32 of the broadcast shape.
    """
    state = np.full((), (seed * _GOLDEN + 1) & _WORD, np.uint64)
    with np.errstate(over="ignore"):  # it wraps on purpose
        for part in (y, x):
            state = _mix(state ^ (np.asarray(part).astype(np.int64).view(np.uint64)))
    return ((state >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return state ^ (state >> np.uint64(31))


def points(box: Box, step_px: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column numbers of the lattice points that span a box.

    Returns:
        int64 (m, 1) and (1, n); point (i, j) lies at (i * step, j * step) px.
    """
    rows = np.arange(box.y // step_px, (box.y + box.h - 1) // step_px + 2)
    columns = np.arange(box.x // step_px, (box.x + box.w - 1) // step_px + 2)
    return rows[:, None], columns[None, :]


def spread(values: Plane, box: Box, step_px: int) -> Plane:
    """Interpolate values at `points(box, step_px)` smoothly over the box.

    Args:
        values: float32 (m, n).

    Returns:
        float32 (box.h, box.w). Each pixel is a function of its own place and its four points.
    """
    rows, down = _weights(box.y, box.h, step_px)
    columns, right = _weights(box.x, box.w, step_px)
    tall = values[rows] + (values[rows + 1] - values[rows]) * down[:, None]
    step = np.diff(tall, axis=1, append=tall[:, -1:])
    return np.take(tall, columns, axis=1) + np.take(step, columns, axis=1) * right


def _weights(start: int, length: int, step_px: int) -> tuple[NDArray[np.int64], Plane]:
    """Return the point before each pixel, from the first one, and the pixel's share after it."""
    at = np.arange(start, start + length)
    index = at // step_px - start // step_px
    share = ((at % step_px) / step_px).astype(np.float32)
    return index, share * share * (np.float32(3) - np.float32(2) * share)


def clouds(seed: int, box: Box, step_px: int) -> Plane:
    """Return smooth noise in [0, 1): random at points `step_px` apart, interpolated between them.

    Returns:
        float32 (box.h, box.w).
    """
    return spread(uniform(seed, *points(box, step_px)), box, step_px)


def clouds_at(seed: int, y: NDArray[np.int64], x: NDArray[np.int64], step_px: int) -> Plane:
    """Return what `clouds` has at the pixels (y, x) of two equally long lists."""
    row, column = y // step_px, x // step_px
    share = np.stack([y % step_px, x % step_px]).astype(np.float32) / np.float32(step_px)
    down, right = share * share * (np.float32(3) - np.float32(2) * share)
    (a, b), (c, d) = ([uniform(seed, row + i, column + j) for j in (0, 1)] for i in (0, 1))
    upper, lower = a + (b - a) * right, c + (d - c) * right
    at: Plane = upper + (lower - upper) * down
    return at


def cells_of(box: Box, size_px: int, reach_px: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (row, column) of the squares that come within `reach_px` of a box, row by row."""
    for row in range((box.y - reach_px) // size_px, (box.y + box.h - 1 + reach_px) // size_px + 1):
        first = (box.x - reach_px) // size_px
        for column in range(first, (box.x + box.w - 1 + reach_px) // size_px + 1):
            yield row, column


def overlap(box: Box, other: Box) -> Box | None:
    """Return what two boxes share, or None."""
    x, y = max(box.x, other.x), max(box.y, other.y)
    w = min(box.x + box.w, other.x + other.w) - x
    h = min(box.y + box.h, other.y + other.h) - y
    return Box(x, y, w, h) if w > 0 and h > 0 else None


def cut(box: Box, whole: Box) -> tuple[slice, slice]:
    """Return the rows and columns of `box` in an array of `whole`, which holds it."""
    x, y = box.x - whole.x, box.y - whole.y
    return slice(y, y + box.h), slice(x, x + box.w)
