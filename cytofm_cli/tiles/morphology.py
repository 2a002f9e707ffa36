"""Morphology of whole-slide pictures on plain arrays: fast because it stays in uint8.

H, W: rows and columns; K: connected components; N: blocks; C: channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STRIP_PX: Final = 1024

Extreme = Callable[[Any, Any], Any]  # np.maximum or np.minimum


def running(a_HW: NDArray[Any], length: int, step: tuple[int, int], extreme: Extreme) -> Any:
    """Return the extreme over `length` pixels along (dy, dx), where all of them exist.

    Doubling: log2(length) passes instead of `length`.
    """
    dy, dx = step

    def fold(a: NDArray[Any], by: int) -> Any:
        rows, columns = a.shape
        return extreme(a[: rows - by * dy, : columns - by * dx], a[by * dy :, by * dx :])

    done = 1
    while 2 * done <= length:
        a_HW = fold(a_HW, done)
        done *= 2
    return fold(a_HW, length - done) if done < length else a_HW


def blob_residue(padded_HW: NDArray[np.uint8], length_px: int) -> NDArray[np.uint8]:
    """Return how much darker each pixel is than the best line across it, in four directions.

    The closing by a line minus the picture, the smallest over 0, 45, 90 and 135 degrees: what is
    darker than its surroundings and shorter than the line in every direction.

    Args:
        padded_HW: the picture with `length_px` - 1 more pixels on every side.
        length_px: length of the line, at least 2.
    """
    halo = length_px - 1
    rows, columns = padded_HW.shape
    picture = padded_HW[halo : rows - halo, halo : columns - halo]
    diagonal = max(2, round(length_px / 2**0.5))
    closed: NDArray[np.uint8] | None = None
    for length, step, mirror in (
        (length_px, (0, 1), False),
        (length_px, (1, 0), False),
        (diagonal, (1, 1), False),
        (diagonal, (1, 1), True),
    ):
        cut_y, cut_x = (halo - (length - 1) * d for d in step)
        part = padded_HW[cut_y : rows - cut_y, cut_x : columns - cut_x]
        part = part[:, ::-1] if mirror else part
        part = running(running(part, length, step, np.maximum), length, step, np.minimum)
        part = part[:, ::-1] if mirror else part
        closed = part if closed is None else np.minimum(closed, part, out=closed)
    assert closed is not None
    residue: NDArray[np.uint8] = np.subtract(closed, picture, out=closed)
    return residue


def _window(a_HW: NDArray[Any], radius: int, extreme: Extreme) -> Any:
    padded = np.pad(a_HW, radius, mode="edge")
    side = 2 * radius + 1
    return running(running(padded, side, (0, 1), extreme), side, (1, 0), extreme)


def local_range(a_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the largest minus the smallest value in 3 x 3 pixels."""
    high: NDArray[np.uint8] = _window(a_HW, 1, np.maximum)
    high -= _window(a_HW, 1, np.minimum)
    return high


def dilate(mask_HW: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Grow a mask by a square of side 2 `radius` + 1."""
    grown: NDArray[np.bool_] = _window(mask_HW, radius, np.maximum)
    return grown


def open_square(mask_HW: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Keep the parts of a mask that hold a square of side 2 `radius` + 1."""
    return dilate(~dilate(~mask_HW, radius), radius)


def close(mask_HW: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Close gaps of a mask up to 2 `radius` pixels wide."""
    padded = np.pad(mask_HW, radius)
    grown = _window(padded, radius, np.maximum)
    closed = _window(grown, radius, np.minimum)
    inner: NDArray[np.bool_] = closed[radius:-radius, radius:-radius]
    return inner.copy()


def shrink(image_HWC: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average `factor` x `factor` pixels; the last row and column are repeated to fit."""
    if factor == 1:
        return image_HWC
    height, width, channels = image_HWC.shape
    pad = ((0, -height % factor), (0, -width % factor), (0, 0))
    padded = np.pad(image_HWC, pad, mode="edge") if any(map(any, pad)) else image_HWC
    rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
    # Whole rows first, then the columns of blocks one by one: ten times the speed of one sum.
    in_rows = padded.reshape(rows, factor, -1).sum(1, dtype=np.uint32)
    blocks = in_rows.reshape(rows, columns, factor, channels)
    total = blocks[:, :, 0].copy()
    for column in range(1, factor):
        total += blocks[:, :, column]
    shrunk: NDArray[np.uint8] = ((total + factor**2 // 2) // factor**2).astype(np.uint8)
    return shrunk


def block_statistics(
    image_HWC: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean and the noise of every square block.

    The noise is the mean absolute second difference along the rows, scaled to the standard
    deviation of white noise: edges and gradients count little in it.

    Returns:
        Two (N, C) float32 arrays. A picture smaller than a block is one block.
    """
    height, width, channels = image_HWC.shape
    block_h, block_w = min(side, height), min(side, width)
    means: list[NDArray[np.float32]] = []
    noises: list[NDArray[np.float32]] = []
    for top in range(0, height - block_h + 1, block_h):
        rows = image_HWC[top : top + block_h, : width - width % block_w].astype(np.int16)
        bend = np.zeros_like(rows)
        bend[:, 1:-1] = np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:])
        for plane, statistics in ((rows, means), (bend, noises)):
            columns = plane.sum(0, dtype=np.int32).reshape(-1, block_w, channels)
            statistics.append(columns.mean(1, dtype=np.float32) / block_h)
    # E|x| of a normal variable is 0.798 sigma, and a second difference has sqrt(6) sigma.
    return np.concatenate(means), np.concatenate(noises) * np.float32(1 / (0.798 * 6**0.5))


def whiteness(image_HWC: NDArray[np.uint8]) -> float:
    """Return how unrelated neighbours along a row are: 1 for white noise, below 0.3 for things."""
    rows = image_HWC[:: max(1, image_HWC.shape[0] // 256)].astype(np.float32)
    variance = float(rows.var(axis=(0, 1)).mean())
    if variance == 0 or rows.shape[1] < 2:
        return 0.0
    return float(np.square(np.diff(rows, axis=1)).mean()) / (2 * variance)


@dataclass(frozen=True)
class Components:
    """The connected parts of a mask (8 neighbours), as runs of pixels along the rows.

    Attributes:
        start_R, stop_R: first pixel of each run and the one after its last, counted row by row
            through a mask that has one more column.
        part_R: which part each run belongs to.
        area_px_K: pixels of each part.
        length_px_K: longer side of its bounding box.
    """

    shape: tuple[int, int]
    start_R: NDArray[np.int64]
    stop_R: NDArray[np.int64]
    part_R: NDArray[np.int64]
    area_px_K: NDArray[np.int64]
    length_px_K: NDArray[np.int64]

    def mean(self, values_HW: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Average a picture over each part."""
        height, width = self.shape
        sums_R = np.empty(len(self.start_R), np.int64)
        for top in range(0, height, _STRIP_PX):  # NumPy sums integers in eight bytes a pixel
            part_HW = np.pad(values_HW[top : top + _STRIP_PX], ((0, 0), (0, 1)))
            first = top * (width + 1)
            runs = slice(*np.searchsorted(self.start_R, (first, first + part_HW.size)))
            ends = np.stack([self.start_R[runs], self.stop_R[runs]], 1).reshape(-1) - first
            if len(ends):
                sums_R[runs] = np.add.reduceat(part_HW.ravel(), ends, dtype=np.int64)[::2]
        total_K = np.bincount(self.part_R, sums_R, len(self.area_px_K))
        return total_K / np.maximum(self.area_px_K, 1)

    def pixels(self, part: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows and columns of the pixels of a part."""
        runs = np.flatnonzero(self.part_R == part)
        flat = [np.arange(self.start_R[run], self.stop_R[run]) for run in runs]
        rows, columns = np.divmod(np.concatenate(flat), self.shape[1] + 1)
        return rows, columns

    def paint(self, chosen_K: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask of the chosen parts."""
        height, width = self.shape
        chosen_R = chosen_K[self.part_R]
        edges = np.zeros(height * (width + 1), np.int8)
        edges[self.start_R[chosen_R]] = 1
        edges[self.stop_R[chosen_R]] = -1
        return np.cumsum(edges, dtype=np.int8).view(bool).reshape(height, width + 1)[:, :width]


def components(mask_HW: NDArray[np.bool_]) -> Components:
    """Find the connected parts of a mask.

    Works on runs, not on pixels: a sparse mask of a whole slide costs little.
    """
    height, width = mask_HW.shape
    stride = width + 1  # one empty column, so that no run goes on into the next row
    flat = np.zeros(height * stride + 1, bool)
    flat[1:].reshape(height, stride)[:, :width] = mask_HW
    turns = np.flatnonzero(flat[1:] != flat[:-1])
    start_R, stop_R = turns[::2], turns[1::2]
    low_R = np.searchsorted(stop_R, start_R + stride, "left")  # touching corners count
    high_R = np.searchsorted(start_R, stop_R + stride, "right")
    count_R = high_R - low_R
    upper_E = np.repeat(np.arange(len(start_R)), count_R)
    first_R = np.cumsum(count_R) - count_R
    lower_E = np.arange(len(upper_E)) + np.repeat(low_R - first_R, count_R)
    part_R = _join(len(start_R), upper_E, lower_E)
    n_parts = int(part_R.max(initial=-1)) + 1
    area_K = np.bincount(part_R, stop_R - start_R, n_parts).astype(np.int64)
    length_K = np.zeros(n_parts, np.int64)
    y_R, x_R = np.divmod(start_R, stride)
    for first, last in ((y_R, y_R), (x_R, x_R + stop_R - start_R - 1)):
        low_K = np.full(n_parts, max(height, width))
        high_K = np.zeros(n_parts, np.int64)
        np.minimum.at(low_K, part_R, first)
        np.maximum.at(high_K, part_R, last)
        length_K = np.maximum(length_K, high_K - low_K + 1)
    return Components((height, width), start_R, stop_R, part_R, area_K, length_K)


def _join(n: int, a_E: NDArray[np.int64], b_E: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the connected parts of a graph of `n` nodes from 0, in order of their first node."""
    root = np.arange(n)
    while len(a_E):
        ra, rb = root[a_E], root[b_E]
        open_E = ra != rb
        a_E, b_E, ra, rb = a_E[open_E], b_E[open_E], ra[open_E], rb[open_E]
        np.minimum.at(root, np.maximum(ra, rb), np.minimum(ra, rb))
        while True:  # point every node at the root of its tree
            up = root[root]
            if np.array_equal(up, root):
                break
            root = up
    return np.unique(root, return_inverse=True)[1].reshape(-1)
