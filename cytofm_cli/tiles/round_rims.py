"""Whole rims of round bubbles, from the pieces of them that were seen.

Dust, noise and cells break a rim into pieces, of which only the long ones are told from cells
(`foreground._lines`), and bubbles touch each other. Each piece proposes circles, through three of
its pixels (Fischler and Bolles, Commun ACM 24 (1981), 381-395); the darkest beside its sides is
moved to where it is darkest. It is a rim if at half of its circumference or more, as far as it lies
in the picture, it is darker than 3 px inside and outside, and at so many places that chance would
make less than one such circle in a hundred pictures, by the rule of `straight`; p is the share on
the circles 6 px inside and outside. Then all of it is marked where it is dark nearly all along, so
not under cells, and what is left of the piece is looked at again.

H, W: rows and columns; A: angles; N: circles.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.tiles import morphology
from cytofm_cli.tiles.straight import ALIKE_PX, CHANCES, divergence, least_depth

if TYPE_CHECKING:
    from numpy.typing import NDArray

RADII_PX: Final = (12, 250)
SHARE: Final = 0.5
RUN_SHARE: Final = 0.85
ACROSS_PX: Final = 3
BESIDE_PX: Final = 6
_RUN: Final = 10  # px either way
_ANGLES: Final = 128  # at which circles are compared
_DRAWS: Final = 200
_STEPS: Final = ((-4, -2, 0, 2, 4), (-1, 0, 1), (-1, 0, 1))  # px, around the last best
_MOST: Final = 300  # pieces, the longest first: of more, as in tissue, none is a bubble's
_MOST_CIRCLES: Final = 4  # that touch
_LEAST_POINTS: Final = 20


def whole_rims(light_HW: NDArray[np.uint8], piece_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the rims that pieces are part of.

    Args:
        light_HW: (H, W) uint8, the picture at 4 µm/px, rims darker than what is around them.
        piece_HW: bool, pieces of rims, and other thin things.

    Returns:
        bool (H, W), the rims, some 3 px wide, where they are seen.
    """
    rims_HW = np.zeros(light_HW.shape, bool)
    parts = morphology.components(piece_HW)
    longest = np.argsort(-parts.length_px_K, kind="stable")[:_MOST]
    least = least_depth(light_HW)
    for part in np.sort(longest).tolist():
        rows, columns = parts.pixels(part)
        points = np.stack([columns, rows], 1).astype(np.float64)
        for _ in range(_MOST_CIRCLES):
            if len(points) < _LEAST_POINTS:
                break
            circle = _rim_through(light_HW, points, least)
            if circle is None:
                break
            on_A, rows_A, columns_A, _ = _dark(
                light_HW, circle[None], least, _circumference(circle[2])
            )
            seen_A = _in_runs(on_A[0])
            rims_HW[rows_A[0][seen_A], columns_A[0][seen_A]] = True
            away = np.abs(np.hypot(*(points - circle[:2]).T) - circle[2])
            points = points[away > BESIDE_PX]
    return morphology.dilate(rims_HW, 1) if rims_HW.any() else rims_HW


def _rim_through(
    light_HW: NDArray[np.uint8], points: NDArray[np.float64], least: float
) -> NDArray[np.float64] | None:
    """Return the darkest circle (x, y, radius) through some of the points, if it is a rim."""
    drawn = np.random.default_rng(0).integers(0, len(points), (_DRAWS, 3))
    circles = _through(*points[drawn].transpose(1, 0, 2))
    if not len(circles):
        return None
    circle = _darkest(light_HW, circles, least)
    for steps in _STEPS:
        around = circle + np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
        circle = _darkest(light_HW, around[around[:, 2] > 2 * BESIDE_PX - 3], least)
    n_angles = _circumference(circle[2])
    (n, share), *beside = (
        _share(light_HW, circle + np.array([0, 0, by]), least, n_angles)
        for by in (0, -BESIDE_PX, BESIDE_PX)
    )
    p = max((beside[0][1] + beside[1][1]) / 2, 0.01)
    n_circles = light_HW.size * (RADII_PX[1] - RADII_PX[0])
    needed = math.log(n_circles / CHANCES) / (max(n, 1) / ALIKE_PX)
    is_rim = 2 * n >= n_angles and share >= SHARE and share > p and divergence(share, p) >= needed
    return circle if is_rim else None


def _through(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the circles (n, 3) through three points each, of the radii of bubbles."""
    b, c = b - a, c - a
    twice = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    apart = twice != 0
    a, b, c, twice = a[apart], b[apart], c[apart], twice[apart]
    bb, cc = (b**2).sum(1), (c**2).sum(1)
    x = (c[:, 1] * bb - b[:, 1] * cc) / twice
    y = (b[:, 0] * cc - c[:, 0] * bb) / twice
    circles = np.stack([a[:, 0] + x, a[:, 1] + y, np.hypot(x, y)], 1)
    low, high = RADII_PX
    chosen: NDArray[np.float64] = circles[(circles[:, 2] >= low) & (circles[:, 2] <= high)]
    return chosen


def _darkest(
    light_HW: NDArray[np.uint8], circles: NDArray[np.float64], least: float
) -> NDArray[np.float64]:
    on_NA, _, _, inside_NA = _dark(light_HW, circles, least, _ANGLES)
    n_N = np.maximum(inside_NA.sum(1), _ANGLES // 2)
    circle: NDArray[np.float64] = circles[(on_NA.sum(1) / n_N).argmax()]
    return circle


def _share(
    light_HW: NDArray[np.uint8], circle: NDArray[np.float64], least: float, n_angles: int
) -> tuple[int, float]:
    """Return at how many angles a circle is in the picture, and at which share of them dark."""
    on_NA, _, _, inside_NA = _dark(light_HW, circle[None], least, n_angles)
    n = int(inside_NA.sum())
    return n, float(on_NA.sum()) / max(n, 1)


def _in_runs(on_A: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep what is dark where most around it is: under cells a rim is not seen."""
    around = np.take(on_A, np.arange(-_RUN, len(on_A) + _RUN), mode="wrap").astype(np.float64)
    share_A = np.convolve(around, np.full(2 * _RUN + 1, 1 / (2 * _RUN + 1)), "valid")
    run_A: NDArray[np.bool_] = on_A & (share_A >= RUN_SHARE)
    return run_A


def _circumference(radius: float) -> int:
    return max(_ANGLES // 2, round(2 * math.pi * radius))


def _dark(
    light_HW: NDArray[np.uint8], circles: NDArray[np.float64], least: float, n_angles: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Tell where circles (N, 3) are darker than both sides, (N, A); which pixels, and if inside.

    What lies past the picture is not dark.
    """
    height, width = light_HW.shape
    angle_A = np.arange(n_angles) * (2 * math.pi / n_angles)
    light, places = [], []
    for by in (-ACROSS_PX, -1, 0, 1, ACROSS_PX):
        radius_N1 = circles[:, 2:] + by
        rows = np.rint(circles[:, 1:2] + radius_N1 * np.sin(angle_A)).astype(np.int64)
        columns = np.rint(circles[:, :1] + radius_N1 * np.cos(angle_A)).astype(np.int64)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
        level = light_HW[rows, columns].astype(np.int16)
        light.append(np.where(inside, level, 0 if abs(by) > 1 else 255))
        places.append((rows, columns, inside))
    dark_NA = np.minimum(np.minimum(light[1], light[2]), light[3])
    on_NA: NDArray[np.bool_] = np.minimum(light[0], light[-1]) - dark_NA >= least
    return on_NA, *places[2]
