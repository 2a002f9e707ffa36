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
from cytofm_cli.nuclei.closed_path import closed_path
from cytofm_cli.work.opencv import opencv

Floats = NDArray[np.float32]

N_ANGLES: Final = 32
# Steps along a ray, in units of the seed's radius: the seed's size may be wrong by half an
# octave, and the outline of a 2 : 1 ellipse must fit.
STEPS_K: Final = np.linspace(0.3, 1.8, 24, dtype=np.float32)
STEP: Final = float(STEPS_K[1] - STEPS_K[0])
_ANGLES = np.arange(N_ANGLES) * (2 * np.pi / N_ANGLES)
DIRECTIONS_A2: Final = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1).astype(np.float32)
EVERY_RAY: Final = slice(None)
# Rings that split the area evenly, on every second ray, weighted by the area that it stands for.
OVERLAP_RAYS: Final = slice(None, None, 2)
OVERLAP_RINGS: Final = np.sqrt((np.arange(3) + 0.5) / 3).astype(np.float32)
CONTRAST_AT: Final = np.array([0.2, 0.5, 0.8, 1.2, 1.4, 1.6], np.float32)  # inside and around
_COLUMNS: Final = ("seed_M2", "radius_MA", "edge_MA", "inside_M", "outside_M")
_BLOCK: Final = 1024  # outlines traced at once: bounds the memory on noise
_MOST_COLUMNS: Final = 32767  # of an image that OpenCV samples


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
        found[row] = rings.without_repeats(rings.clip_to_box(points[row], width, height))
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
    share = np.empty(len(small), np.float32)
    for block in _blocks(len(small)):
        i, j = small[block], large[block]
        x, y = _points_on_rays(outlines, i, OVERLAP_RINGS, OVERLAP_RAYS)
        inside = _normalised_distance(outlines, j, x, y) <= 1
        weight = outlines.radius_MA[i, OVERLAP_RAYS] ** 2
        share[block] = (inside.mean(-1) * weight).sum(1) / weight.sum(1)
    return small, large, share


def contrast(map_HWC: Floats, outlines: Outlines) -> Floats:
    """Return the mean inside each outline minus that in a ring around it, (M,) or (M, C)."""
    rows = np.arange(len(outlines))
    values = _sample(map_HWC, *_points_on_rays(outlines, rows, CONTRAST_AT))
    difference: Floats = values[:, :, :3].mean((1, 2)) - values[:, :, 3:].mean((1, 2))
    return difference


def profile(map_HWC: Floats, outlines: Outlines) -> tuple[Floats, Floats, Floats]:
    """Describe a map from the centre of each outline outwards.

    Args:
        map_HWC: float32.
        outlines: M of them.

    Returns:
        Means at 0.2, 0.5 and 0.8 of the way to the outline (M, 3, C), the mean in a ring around
        it (M, C), and the standard deviation along each of the inner three, their mean (M, C).
    """
    rows = np.arange(len(outlines))
    values = _sample(map_HWC, *_points_on_rays(outlines, rows, CONTRAST_AT))
    inside = values[:, :, :3]
    return inside.mean(1), values[:, :, 3:].mean((1, 2)), inside.std(1).mean(1)


def sample_rays(map_HWC: Floats, outlines: Outlines, reach_MAK: Floats) -> Floats:
    """Interpolate a map at distances from the seeds along every ray, (M, A, K) or (M, A, K, C)."""
    x = outlines.seed_M2[:, :1, None] + reach_MAK * DIRECTIONS_A2[:, :1]
    y = outlines.seed_M2[:, 1:, None] + reach_MAK * DIRECTIONS_A2[:, 1:]
    return _sample(map_HWC, x, y)


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
        x, y = _points_on_rays(outlines, i[block], along)
        lost = _normalised_distance(outlines, j[block], x, y) < along
        first = np.where(lost.any(-1), along[lost.argmax(-1)] - along[0], 1)
        np.minimum.at(keep_MA, i[block], first.astype(np.float32))
    # A ray that is lost at once keeps a sliver, so that polygons stay simple.
    return replace(outlines, radius_MA=outlines.radius_MA * np.maximum(keep_MA, along[0]))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def _points_on_rays(
    outlines: Outlines, rows: NDArray[np.intp], along: Floats, rays: slice = EVERY_RAY
) -> tuple[Floats, Floats]:
    """Return the points at fractions `along` of rays, x and y of (rows, rays, len(along))."""
    reach = outlines.radius_MA[rows, rays, None] * along
    x = outlines.seed_M2[rows, :1, None] + reach * DIRECTIONS_A2[rays, :1]
    y = outlines.seed_M2[rows, 1:, None] + reach * DIRECTIONS_A2[rays, 1:]
    return x, y


def _normalised_distance(
    outlines: Outlines, rows: NDArray[np.intp], x: Floats, y: Floats
) -> Floats:
    """Return |p - seed| / r(θ) of points (rows, ...) for the outline of their row."""
    flat = (len(rows), -1)
    dx = x.reshape(flat) - outlines.seed_M2[rows, :1]
    dy = y.reshape(flat) - outlines.seed_M2[rows, 1:]
    distance, turn = opencv().cartToPolar(dx, dy) if dx.size else (dx, dy)
    turn = turn * np.float32(N_ANGLES / (2 * np.pi))
    low = turn.astype(np.int32)  # the angle may be rounded up to a full turn
    part = turn - low
    # Rays of all outlines one after the other, the first again behind the last two.
    wrapped = outlines.radius_MA[:, np.arange(N_ANGLES + 2) % N_ANGLES].ravel()
    index = low + (rows * (N_ANGLES + 2))[:, None].astype(np.int32)
    r_low, r_high = wrapped.take(index), wrapped.take(index + 1)
    radius: Floats = r_low + (r_high - r_low) * part
    normalised: Floats = (distance / radius).reshape(x.shape)
    return normalised


def _trace_block(map_HW: Floats, seed_M2: Floats, radius_M: Floats) -> Outlines:
    reach_MK = radius_M[:, None] * STEPS_K
    # (A, M, K): the path goes from ray to ray.
    x_AMK = seed_M2[:, :1] + reach_MK * DIRECTIONS_A2[:, :1, None]
    y_AMK = seed_M2[:, 1:] + reach_MK * DIRECTIONS_A2[:, 1:, None]
    profile_AMK = _sample(map_HW, x_AMK, y_AMK)
    edge_AMK = _drop(profile_AMK)
    path_AM = closed_path(edge_AMK)
    steps_AMK = np.arange(len(STEPS_K)) - path_AM[..., None]
    edge_AM = np.take_along_axis(edge_AMK, path_AM[..., None], -1)[..., 0]
    return Outlines(
        seed_M2=seed_M2,
        radius_MA=np.ascontiguousarray(
            ((STEPS_K[path_AM] - np.float32(STEP / 2)) * radius_M).T, np.float32
        ),
        edge_MA=np.ascontiguousarray(edge_AM.T),
        inside_M=_weighted_mean(profile_AMK, steps_AMK < 0),
        outside_M=_weighted_mean(profile_AMK, (steps_AMK > 0) & (steps_AMK < 6)),
    )


def _sample(map_HWC: Floats, x: Floats, y: Floats) -> Floats:
    """Interpolate a map at points, (*x.shape) or (*x.shape, C)."""
    cv2 = opencv()
    if not x.size:
        return np.zeros((*x.shape, *map_HWC.shape[2:]), np.float32)
    # OpenCV takes no more than 32767 rows or columns. Corner convention to array index: the
    # centre of pixel (0, 0) is (0.5, 0.5).
    size = (len(x), -1) if x.size // len(x) < _MOST_COLUMNS else (-1, x.shape[-1])
    values: Floats = cv2.remap(
        map_HWC,
        (x - np.float32(0.5)).reshape(size),
        (y - np.float32(0.5)).reshape(size),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return values.reshape(*x.shape, *map_HWC.shape[2:])


def _weighted_mean(profile_AMK: Floats, chosen_AMK: NDArray[np.bool_]) -> Floats:
    """Return the mean of the chosen points, each weighted by the area that it stands for, (M,)."""
    weight_AMK = chosen_AMK * STEPS_K
    total = np.maximum(np.einsum("amk->m", weight_AMK), 1e-6)
    mean: Floats = (np.einsum("amk,amk->m", profile_AMK, weight_AMK) / total).astype(np.float32)
    return mean


def _drop(profile_AMK: Floats) -> Floats:
    """Return the mean over two steps before minus two steps from k on, for every step k."""
    pair = (profile_AMK[..., :-1] + profile_AMK[..., 1:]) / 2
    drop = np.full_like(profile_AMK, -1)
    drop[..., 2:-1] = pair[..., :-2] - pair[..., 2:]
    drop[..., 1] = profile_AMK[..., 0] - pair[..., 1]
    return drop
