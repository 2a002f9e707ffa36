"""Outlines of round things as closed paths around a centre.

A nucleus is drawn in polar coordinates: A rays leave a seed, and the outline crosses each ray
once. The best outline is the closed path over the rays along which the image drops most from
inside to outside, found exactly by dynamic programming up to the closure (two turns, the
middle one is kept). It is sub-pixel, never crosses itself, and does not leak through gaps as a
threshold does.

Letters: M outlines, A angles, K steps along a ray, P points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import polygons, rings

Floats = NDArray[np.float32]

N_ANGLES: Final = 32
# Steps along a ray, in units of the seed's radius: the seed's size may be wrong by half an
# octave, and the outline of a 2 : 1 ellipse must fit.
STEPS_K: Final = np.linspace(0.3, 1.8, 24, dtype=np.float32)
STEP: Final = float(STEPS_K[1] - STEPS_K[0])
# Largest change of step from one ray to the next; 2 allows ellipses up to about 1.8 : 1.
MAX_JUMP: Final = 2
EDGE_HALF_WIDTH: Final = 2
_ANGLES = np.arange(N_ANGLES) * (2 * np.pi / N_ANGLES)
DIRECTIONS_A2: Final = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1).astype(np.float32)
_COLUMNS: Final = ("seed_M2", "radius_MA", "edge_MA", "inside_M", "outside_M")
_BLOCK: Final = 2048  # outlines traced at once: bounds the memory on noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlines:
    """Closed outlines around seeds, in pixels (corner convention).

    Attributes:
        seed_M2: (x, y) of the seeds.
        radius_MA: distance from seed to outline on each ray.
        edge_MA: drop of the map across the outline, inside minus outside.
        inside_M: mean of the map inside.
        outside_M: mean of the map in a ring outside.
    """

    seed_M2: Floats
    radius_MA: Floats
    edge_MA: Floats
    inside_M: Floats
    outside_M: Floats

    def __len__(self) -> int:
        return len(self.seed_M2)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Outlines:
        """Return the given rows."""
        return Outlines(
            seed_M2=self.seed_M2[rows],
            radius_MA=self.radius_MA[rows],
            edge_MA=self.edge_MA[rows],
            inside_M=self.inside_M[rows],
            outside_M=self.outside_M[rows],
        )

    def points(self) -> Floats:
        """Return the corners of the polygons, (M, A, 2)."""
        corners: Floats = self.seed_M2[:, None] + self.radius_MA[..., None] * DIRECTIONS_A2
        return corners

    def area_px(self) -> Floats:
        """Return the areas of the polygons in px², by the shoelace formula."""
        following = np.roll(self.radius_MA, -1, axis=1)
        wedge = np.sin(2 * np.pi / N_ANGLES) / 2
        area: Floats = ((self.radius_MA * following).sum(1) * wedge).astype(np.float32)
        return area

    def centroid(self) -> Floats:
        """Return the centroids of the polygons, (M, 2)."""
        a = self.radius_MA[..., None] * DIRECTIONS_A2
        b = np.roll(a, -1, axis=1)
        cross = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])[..., None]
        total = np.maximum(cross.sum(1), 1e-12)
        centre: Floats = (self.seed_M2 + ((a + b) * cross).sum(1) / (3 * total)).astype(np.float32)
        return centre


def in_image(
    outlines: Outlines, factor: float, width: int, height: int
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64], NDArray[np.float64]]:
    """Return the outlines in pixels of an image, cut at its borders.

    Args:
        outlines: M outlines with their seeds in the image.
        factor: pixels of the image to a pixel of the outlines.
        width: of the image.
        height: of the image.

    Returns:
        M polygons float64 (k, 2) that do not cross themselves, their areas in px² of the image,
        float64 (M,), and their centroids, float64 (M, 2); the part outside does not count.
    """
    points = outlines.points().astype(np.float64) * factor
    area = outlines.area_px().astype(np.float64) * factor**2
    centre = outlines.centroid().astype(np.float64) * factor
    cut = ((points < 0) | (points > (width, height))).any((1, 2))
    found = list(points)
    for row in np.flatnonzero(cut).tolist():
        # A ray meets its outline once, so what lies in the image is one piece around the seed.
        found[row] = rings.clip_to_box(points[row], width, height)
        area[row], centre[row] = polygons.area(found[row]), polygons.centroid(found[row])
    return found, area, centre


def trace(map_HW: Floats, seed_M2: Floats, radius_M: Floats) -> Outlines:
    """Find the outline around each seed across which `map_HW` drops most.

    Args:
        map_HW: float32, large inside the things that are outlined.
        seed_M2: (x, y) of the seeds.
        radius_M: expected radius in pixels.
    """
    blocks = [
        _trace_block(map_HW, seed_M2[i : i + _BLOCK], radius_M[i : i + _BLOCK])
        for i in range(0, max(1, len(seed_M2)), _BLOCK)
    ]
    return Outlines(**{c: np.concatenate([getattr(b, c) for b in blocks]) for c in _COLUMNS})


def overlaps(outlines: Outlines) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Measure how far pairs of outlines lie in each other.

    Returns:
        (i, j, share): for each pair that may touch, i the smaller, j the larger, and the share
        of i's area that lies inside j. Pairs are in no particular order.
    """
    from scipy.spatial import cKDTree

    reach = outlines.radius_MA.max(1, initial=0)
    tree = cKDTree(outlines.seed_M2)
    pairs = tree.query_pairs(2 * float(reach.max(initial=0)), output_type="ndarray")
    gap = np.linalg.norm(outlines.seed_M2[pairs[:, 0]] - outlines.seed_M2[pairs[:, 1]], axis=1)
    pairs = pairs[gap < reach[pairs[:, 0]] + reach[pairs[:, 1]]]
    area = outlines.area_px()
    swap = area[pairs[:, 0]] > area[pairs[:, 1]]
    small, large = np.where(swap[:, None], pairs[:, ::-1], pairs).T
    # Four rings that split the area evenly, weighted by the area that each ray stands for.
    rings = np.sqrt((np.arange(4) + 0.5) / 4).astype(np.float32)
    share = np.empty(len(small), np.float32)
    for block in _blocks(len(small)):
        i, j = small[block], large[block]
        points = _points_on_rays(outlines, i, rings)
        inside = _normalised_distance(outlines, j, points) <= 1
        weight = outlines.radius_MA[i] ** 2
        share[block] = (inside.mean(-1) * weight).sum(1) / weight.sum(1)
    return small, large, share


def contrast(map_HW: Floats, outlines: Outlines) -> Floats:
    """Return the mean of a map inside each outline minus that in a ring around it, (M,)."""
    rows = np.arange(len(outlines))
    inside = _points_on_rays(outlines, rows, np.array([0.2, 0.5, 0.8], np.float32))
    ring = _points_on_rays(outlines, rows, np.array([1.2, 1.4, 1.6], np.float32))
    difference: Floats = _sample(map_HW, inside).mean((1, 2)) - _sample(map_HW, ring).mean((1, 2))
    return difference


def split_touching(outlines: Outlines) -> Outlines:
    """Cut overlapping outlines apart along the watershed of their normalised distances.

    Every outline i has a distance that is 0 at its seed and 1 on itself, |p - seed_i| / r_i(θ).
    Where two overlap, a point goes to the smaller distance; the line of equal distance is the
    watershed of the minimum of all distances, flooded from the seeds.
    """
    small, large, share = overlaps(outlines)
    touching = share > 0
    i = np.concatenate([small[touching], large[touching]])
    j = np.concatenate([large[touching], small[touching]])
    along = ((np.arange(16) + 1) / 16).astype(np.float32)
    keep_MA = np.ones_like(outlines.radius_MA)
    for block in _blocks(len(i)):
        points = _points_on_rays(outlines, i[block], along)
        lost = _normalised_distance(outlines, j[block], points) < along
        first = np.where(lost.any(-1), along[lost.argmax(-1)] - along[0], 1)
        np.minimum.at(keep_MA, i[block], first.astype(np.float32))
    # A ray that is lost at once keeps a sliver, so that polygons stay simple.
    return replace(outlines, radius_MA=outlines.radius_MA * np.maximum(keep_MA, along[0]))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def _points_on_rays(outlines: Outlines, rows: NDArray[np.intp], along: Floats) -> Floats:
    """Return the points at fractions `along` of every ray, (rows, A, len(along), 2)."""
    radius = outlines.radius_MA[rows][..., None] * along
    seed = outlines.seed_M2[rows][:, None, None]
    return seed + radius[..., None] * DIRECTIONS_A2[:, None]


def _normalised_distance(outlines: Outlines, rows: NDArray[np.intp], points: Floats) -> Floats:
    """Return |p - seed| / r(θ) of points (rows, …, 2) for the outline of their row."""
    delta = points - outlines.seed_M2[rows].reshape(-1, *[1] * (points.ndim - 2), 2)
    turn = np.arctan2(delta[..., 1], delta[..., 0]) * np.float32(N_ANGLES / (2 * np.pi))
    turn %= N_ANGLES
    low = turn.astype(np.int64) % N_ANGLES
    part = turn - np.floor(turn)
    flat = low.reshape(len(rows), -1)
    radius_MA = outlines.radius_MA[rows]
    r_low = np.take_along_axis(radius_MA, flat, 1).reshape(low.shape)
    r_high = np.take_along_axis(radius_MA, (flat + 1) % N_ANGLES, 1).reshape(low.shape)
    distance: Floats = np.hypot(delta[..., 0], delta[..., 1]) / (r_low * (1 - part) + r_high * part)
    return distance


def _trace_block(map_HW: Floats, seed_M2: Floats, radius_M: Floats) -> Outlines:
    reach_MK = radius_M[:, None] * STEPS_K
    points = (
        seed_M2[:, None, None] + reach_MK[:, None, :, None] * DIRECTIONS_A2[:, None]
    )  # (M, A, K, 2)
    profile_MAK = _sample(map_HW, points)
    edge_MAK = _drop(profile_MAK)
    path_MA = closed_path(edge_MAK)
    step = np.arange(len(STEPS_K))
    inside = (step < path_MA[..., None]) * STEPS_K
    ring = ((step > path_MA[..., None]) & (step < path_MA[..., None] + 6)) * STEPS_K
    return Outlines(
        seed_M2=seed_M2,
        radius_MA=(STEPS_K[path_MA] - np.float32(STEP / 2)) * radius_M[:, None],
        edge_MA=np.take_along_axis(edge_MAK, path_MA[..., None], -1)[..., 0],
        inside_M=_weighted_mean(profile_MAK, inside),
        outside_M=_weighted_mean(profile_MAK, ring),
    )


def _sample(map_HW: Floats, points: Floats) -> Floats:
    """Interpolate a map at points (…, 2)."""
    from scipy.ndimage import map_coordinates

    # Corner convention to array index: the centre of pixel (0, 0) is (0.5, 0.5).
    index = np.moveaxis(points, -1, 0)[::-1] - np.float32(0.5)
    values: Floats = map_coordinates(map_HW, index, order=1, mode="nearest", output=np.float32)
    return values


def _weighted_mean(profile_MAK: Floats, weight_MAK: Floats) -> Floats:
    total = np.maximum(weight_MAK.sum((1, 2)), 1e-6)
    mean: Floats = ((profile_MAK * weight_MAK).sum((1, 2)) / total).astype(np.float32)
    return mean


def _drop(profile_MAK: Floats) -> Floats:
    """Return the mean over two steps before minus two steps from k on, for every step k."""
    K = profile_MAK.shape[-1]
    total = np.cumsum(profile_MAK, axis=-1, dtype=np.float32)
    total = np.concatenate([np.zeros_like(total[..., :1]), total], axis=-1)
    k = np.arange(1, K - 1)
    low, high = np.maximum(k - EDGE_HALF_WIDTH, 0), np.minimum(k + EDGE_HALF_WIDTH, K)
    drop = np.full_like(profile_MAK, -1)
    drop[..., k] = (total[..., k] - total[..., low]) / (k - low).astype(np.float32) - (
        total[..., high] - total[..., k]
    ) / (high - k).astype(np.float32)
    return drop


def closed_path(gain_MAK: Floats) -> NDArray[np.int64]:
    """Return the step on each ray of the closed path with the largest gain, int64 (M, A).

    Neighbouring rays differ by at most `MAX_JUMP` steps. Two turns are solved and the second
    half of the first with the first half of the second is kept, where both ends have settled.
    """
    M, A, K = gain_MAK.shape
    rows = np.arange(M)
    best_MK = gain_MAK[:, 0].copy()
    back = np.zeros((2 * A, M, K), np.int8)
    padded = np.full((M, K + 2 * MAX_JUMP), -np.inf, np.float32)
    for t in range(1, 2 * A):
        padded[:, MAX_JUMP:-MAX_JUMP] = best_MK
        choices = np.stack([padded[:, j : j + K] for j in range(2 * MAX_JUMP + 1)])
        choice = choices.argmax(0)
        back[t] = choice - MAX_JUMP
        best_MK = np.take_along_axis(choices, choice[None], 0)[0] + gain_MAK[:, t % A]
    step = best_MK.argmax(1)
    path_MA = np.zeros((M, A), np.int64)
    for t in range(2 * A - 1, A // 2 - 1, -1):
        if t < A + A // 2:
            path_MA[:, t % A] = step
        step = step + back[t, rows, step]
    return path_MA
