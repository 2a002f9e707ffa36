"""Long straight lines on a slide: the coverslip's edge, scratches, fibres.

Such a line is often pale, broken by cells and dust, and nearly parallel to the rows or columns, so
that neither its darkness nor its shape as one piece tells it. What does: it is thin, and goes on
for longer than anything that cells make.

1. A pixel is a *ridge* if it is darker than the closing by 7 px across (so: than both sides within
   24 µm at 4 µm/px), by three sigma of the noise at least.
2. In strips of 128 rows that overlap by half, ridges are counted along all straight ways from top
   to bottom, from 45 degrees to the left to 45 to the right; the same on the transposed picture.
3. A way is a line if, in its upper and in its lower half, at least 70 % are ridges, and so many
   that chance would make them less than once in a hundred pictures: the bound of Hoeffding and
   Chernoff for n independent places of which a share p are ridges, times the number of ways. p is
   the share on the ways 5 to 12 px beside it, so that a crowd of cells asks for more; n is a
   quarter of the length, as the ridges of cells hang together over some 4 px.

At 4 µm/px a way is 512 µm; 8 and 16 µm/px are looked at too, for wider lines (1 and 2 mm long). A
curve counts where it leaves its chord by less than a pixel or two.

Counts along all ways: Brady, A fast discrete approximation algorithm for the Radon transform, SIAM
J Comput 27 (1998), 107-119. The rule: Desolneux, Moisan, Morel, Meaningful alignments, Int J Comput
Vis 40 (2000), 7-23.

H, W: rows and columns; S: strips or halves of them; B: blocks of rows; D: px to the right on the
way down; N: ways.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.tiles import morphology

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_PX: Final = 64  # of a way; a power of two, so that sums fit uint8
WIDTH_PX: Final = 7  # wider is no line
SHARE: Final = 0.7
BESIDE_PX: Final = range(5, 13)
CHANCES: Final = 0.01  # lines that chance makes, a picture
ALIKE_PX: Final = 4  # ridges this near are no independent witnesses
NOISE_FACTOR: Final = 3.0
MIN_LEVELS: Final = 4  # of 255: JPEG's blocks
SCALES: Final = (1, 2, 4)
_STRIPS: Final = 8  # at a time
_SAME_PX: Final = 8  # ways whose middles are this near are of one line


def straight_lines(light_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark long straight dark lines.

    Args:
        light_HW: (H, W) uint8, the picture at 4 µm/px, lines darker than what is around them.

    Returns:
        bool (H, W), the lines, some 4 px wide; all False if a side is below 128 px.
    """
    lines_HW = np.zeros(light_HW.shape, bool)
    for factor in SCALES:
        small_HW = morphology.shrink(light_HW[..., None], factor)[..., 0]
        if min(small_HW.shape) < 2 * HALF_PX:
            break
        coarse_HW = _downwards(small_HW)
        coarse_HW |= _downwards(np.ascontiguousarray(small_HW.T)).T
        if coarse_HW.any():
            large_HW = coarse_HW.repeat(factor, 0).repeat(factor, 1)
            large_HW = large_HW[: len(lines_HW), : lines_HW.shape[1]]
            # Only what a finer picture has not shown already, and more narrowly.
            lines_HW |= large_HW & ~morphology.dilate(lines_HW, 2 * factor)
    return lines_HW


def _downwards(light_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark lines that are at most 45 degrees from the columns."""
    ridge_HW = _ridges(light_HW)
    near_HW = ridge_HW.copy()  # a sum of whole steps strays a pixel from the line
    near_HW[:, 1:] |= ridge_HW[:, :-1]
    near_HW[:, :-1] |= ridge_HW[:, 1:]
    height, width = near_HW.shape
    tops = [*range(0, height - 2 * HALF_PX, HALF_PX), height - 2 * HALF_PX]
    n_ways = 4 * 2 * HALF_PX * width * len(tops)
    hit_HW = np.zeros_like(near_HW)
    for first in range(0, len(tops), _STRIPS):
        some = np.array(tops[first : first + _STRIPS])
        strips = np.stack([near_HW[top : top + 2 * HALF_PX] for top in some])
        for mirror in (False, True):
            flipped = strips[..., ::-1] if mirror else strips
            strip_N, x_N, way_N = _ways(flipped, n_ways)
            rows_NH = some[strip_N, None] + np.arange(2 * HALF_PX)
            steps_NH = way_N[:, None] * (np.arange(2 * HALF_PX) / (2 * HALF_PX - 1))
            columns_NH = x_N[:, None] + np.rint(steps_NH).astype(np.int64)
            inside_NH = columns_NH < width
            columns = columns_NH[inside_NH]
            hit_HW[rows_NH[inside_NH], width - 1 - columns if mirror else columns] = True
    return hit_HW


def _ridges(light_HW: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Mark what is darker than both sides along its row."""
    pad = WIDTH_PX - 1
    padded = np.pad(light_HW, ((0, 0), (pad, pad)), mode="edge")
    closed = morphology.running(padded, WIDTH_PX, (0, 1), np.maximum)
    closed = morphology.running(closed, WIDTH_PX, (0, 1), np.minimum)
    ridge_HW: NDArray[np.bool_] = closed - light_HW >= least_depth(light_HW)
    return ridge_HW


def least_depth(light_HW: NDArray[np.uint8]) -> float:
    """Return how much darker than its sides a line has to be, grey levels."""
    _, noise_NC = morphology.block_statistics(light_HW[..., None], 8)
    return max(MIN_LEVELS, NOISE_FACTOR * float(np.percentile(noise_NC, 10)))


def _ways(
    strips: NDArray[np.bool_], n_ways: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the strip of each line, where it begins at the top, and how far right it goes."""
    n_strips, _, width = strips.shape
    halves = strips.reshape(2 * n_strips, HALF_PX, width)
    sums = _sums(halves)
    full = _stand_out(sums, n_ways)
    sums, full = (part.reshape(n_strips, 2, HALF_PX, width) for part in (sums, full))
    joint = _joined(full.view(np.uint8), np.minimum)[:, 0]
    strip_N, way_N, x_N = np.nonzero(joint)
    # Ways that cross a line at a small angle have most of its ridges: only the fullest stay.
    count_N = _joined(sums, np.add)[:, 0][strip_N, way_N, x_N]
    middle_N = np.minimum(x_N + way_N // 2, width - 1)
    best_SW = np.zeros((n_strips, width + 2 * _SAME_PX), np.uint8)
    np.maximum.at(best_SW, (strip_N, middle_N + _SAME_PX), count_N)
    best_SW = morphology.running(best_SW, 2 * _SAME_PX + 1, (0, 1), np.maximum)
    chosen_N = count_N == best_SW[strip_N, middle_N]
    return strip_N[chosen_N], x_N[chosen_N], way_N[chosen_N]


def _stand_out(sums: NDArray[np.uint8], n_ways: int) -> NDArray[np.bool_]:
    """Tell which ways have more ridges than chance makes of what lies beside them, (S, D, W)."""
    strip_N, way_N, x_N = np.nonzero(sums >= math.ceil(SHARE * HALF_PX))
    beside_N, there_N = np.zeros(len(x_N), np.uint16), np.zeros(len(x_N), np.uint16)
    for by in BESIDE_PX:
        for at_N in (x_N - by, x_N + by):
            inside_N = (at_N >= 0) & (at_N < sums.shape[2])
            beside_N += np.where(inside_N, sums[strip_N, way_N, np.where(inside_N, at_N, 0)], 0)
            there_N += inside_N
    table = np.array([_least_count(p, n_ways) for p in np.linspace(0, 1, 201)], np.uint8)
    share_N = beside_N / (HALF_PX * np.maximum(there_N, 1))
    least_N = table[np.ceil(share_N * 200 - 1e-9).astype(np.intp)]
    full = np.zeros(sums.shape, bool)
    full[strip_N, way_N, x_N] = sums[strip_N, way_N, x_N] >= least_N
    return full


def _least_count(p: float, n_ways: int) -> int:
    """Return the smallest count that chance makes on fewer than `CHANCES` of all ways."""
    needed = math.log(n_ways / CHANCES) / (2 * HALF_PX / ALIKE_PX)
    for count in range(math.ceil(SHARE * HALF_PX), HALF_PX + 1):
        if count > p * HALF_PX and divergence(count / HALF_PX, p) >= needed:
            return count
    return 255


def divergence(r: float, p: float) -> float:
    """Return the Kullback-Leibler divergence of two shares, in nats."""
    if p <= 0:
        return math.inf
    return r * math.log(r / p) + (0 if r == 1 else (1 - r) * math.log((1 - r) / (1 - p)))


def _sums(strips: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Sum strips along all ways down and to the right, uint8 (S, D, W); Brady's algorithm."""
    sums = strips.view(np.uint8)[:, :, None]  # (S, B, D, W)
    while sums.shape[1] > 1:
        sums = _joined(sums, np.add)
    return sums[:, 0]


def _joined(blocks: NDArray[np.uint8], join: np.ufunc) -> NDArray[np.uint8]:
    """Join ways of two blocks, one below the other: (S, B, D, W) to (S, B / 2, 2 D, W)."""
    upper, lower = blocks[:, 0::2], blocks[:, 1::2]
    n_strips, n_blocks, n, width = upper.shape
    joint = np.zeros((n_strips, n_blocks, 2 * n, width), np.uint8)
    for d in range(n):
        for way in (2 * d, 2 * d + 1):
            by = way - d  # where the lower part begins
            if join is np.add:
                joint[:, :, way] = upper[:, :, d]
            part = joint[:, :, way, : width - by]
            join(upper[:, :, d, : width - by], lower[:, :, d, by:], out=part)
    return joint
