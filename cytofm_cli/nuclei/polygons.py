"""Polygons of labelled regions, and the arithmetic of polygons.

Coordinates as in `cytofm_cli.nuclei.base`: pixel (0, 0) covers [0, 1] × [0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import rings
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, make_table

Points = NDArray[np.float64]

# Enough for 1 % of the area of a round nucleus, and few enough for a slide of a million. Only a
# shape that would cross itself with so few (long, thin, winding) gets more.
MAX_POINTS = 48
_FLAT = 1e-12  # twice an area, px², below which a polygon encloses none


def label_table(
    label_HW: NDArray[np.integer[Any]],
    mpp: float,
    *,
    probability: NDArray[np.floating] | None = None,
    class_id: NDArray[np.integer] | None = None,
    classes: tuple[str, ...] = (NUCLEUS,),
    scale: float = 1.0,
    min_area_px: int = 1,
) -> NucleusTable:
    """Turn a label image into a table: one row a label, its outer outline as polygon.

    A label in several pieces gets the outline of its largest piece, but the area and the
    centroid of all of them.

    Args:
        label_HW: integers (H, W), 0 is background. Labels need not be consecutive.
        mpp: µm/px of the label image.
        probability: per label in ascending order of the labels.
        class_id: per label in ascending order of the labels.
        classes: names of the classes.
        scale: factor from pixels of the label image to pixels of the table.
        min_area_px: labels with fewer pixels are dropped.
    """
    from scipy import ndimage

    values = np.unique(label_HW[label_HW > 0])
    # Labels 1..n: an import may number its nuclei sparsely up to 2³².
    compact_HW = np.where(label_HW > 0, np.searchsorted(values, label_HW) + 1, 0)
    index = np.arange(1, len(values) + 1)
    area_px = np.bincount(compact_HW.ravel(), minlength=len(values) + 1)[1:]
    yx = np.array(ndimage.center_of_mass(compact_HW > 0, compact_HW, index))
    outlines = []
    for value, box in zip(index, ndimage.find_objects(compact_HW), strict=True):
        corner = np.array([box[1].start, box[0].start])
        outlines.append((simplify(outer_ring(compact_HW[box] == value)) + corner) * scale)
    table = make_table(
        (yx.reshape(-1, 2)[:, ::-1] + 0.5) * scale,
        area_px * mpp**2,
        polygons=outlines,
        probability=probability,
        class_id=class_id,
        classes=classes,
    )
    return table.take(np.nonzero(area_px >= min_area_px)[0]).sorted()


def outer_ring(mask_HW: NDArray[np.bool_]) -> Points:
    """Trace the outline of the largest 4-connected piece of a mask along its pixels' edges.

    Returns:
        float64 (k, 2), the corners in order; the enclosed area is exactly the number of pixels
        of the piece and of its holes.
    """
    found = [_corners(ring) for ring in _rings(mask_HW)]
    return max(found, key=lambda ring: (area(ring), -ring[0, 1], -ring[0, 0]))


def simplify(ring: Points, max_points: int = MAX_POINTS) -> Points:
    """Smooth the staircase of a pixel outline and bound the number of its points.

    The middles of equally long pieces of the outline: corners are cut by at most half a pixel,
    and the area of a round region changes by less than a percent. Small rings stay as they are.
    """
    step = np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1)
    length = step.sum()
    if length <= 8:
        return ring
    along = np.concatenate([[0.0], np.cumsum(step)])
    closed = np.concatenate([ring, ring[:1]])
    # Middles of unit edges first: exact for diagonals, which staircases over-count.
    count = round(length)
    unit = (np.arange(count) + 0.5) * length / count
    middles = np.stack([np.interp(unit, along, closed[:, i]) for i in (0, 1)], axis=1)
    while max_points < count:
        thinned = _thin(middles, max_points)
        if rings.is_valid(thinned):
            return thinned
        max_points *= 2
    return middles


def _thin(points: Points, count: int) -> Points:
    every = np.linspace(0, len(points), count, endpoint=False)
    low = every.astype(np.int64)
    part = (every - low)[:, None]
    thinned: Points = points[low] * (1 - part) + points[(low + 1) % len(points)] * part
    return thinned


def area(ring: NDArray[np.floating]) -> float:
    """Return the area of a polygon (shoelace formula), ≥ 0 whichever way it turns."""
    x, y = np.asarray(ring, np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def centroid(ring: NDArray[np.floating]) -> Points:
    """Return the centroid of a polygon, float64 (2,); of a degenerate one, of its points."""
    points = np.asarray(ring, np.float64)
    origin = points[0]  # close to the polygon: coordinates of a slide would cancel badly
    a = points - origin
    b = np.roll(a, -1, axis=0)
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    if abs(cross.sum()) < _FLAT:
        middle: Points = points.mean(axis=0)
        return middle
    centre: Points = origin + ((a + b) * cross[:, None]).sum(0) / (3 * cross.sum())
    return centre


def signed_areas(points: Points, start: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the area of each of many rings, float64 (m,); negative where it turns clockwise.

    Args:
        points: (p, 2), the points of all rings, one after the other.
        start: (m + 1,), where each ring starts; one without points has area 0.
    """
    a, b, first, filled = _edges(points, start)
    areas = np.zeros(len(start) - 1)
    if len(filled):
        areas[filled] = np.add.reduceat(_cross(a, b), first) / 2
    return areas


def centroids(points: Points, start: NDArray[np.int64]) -> Points:
    """Return the centroid of each of many rings, float64 (m, 2), NaN for one without points.

    That of a degenerate ring is the mean of its points; arguments as of `signed_areas`.
    """
    a, b, first, filled = _edges(points, start)
    centres = np.full((len(start) - 1, 2), np.nan)
    if not len(filled):
        return centres
    cross = _cross(a, b)
    total = np.add.reduceat(cross, first)
    flat = np.abs(total) < _FLAT
    moment = np.add.reduceat((a + b) * cross[:, None], first)
    mean = np.add.reduceat(a, first) / np.diff(start)[filled, None]
    whole = moment / np.where(flat, 1.0, 3 * total)[:, None]
    centres[filled] = points[first] + np.where(flat[:, None], mean, whole)
    return centres


@dataclass(frozen=True, kw_only=True, eq=False)
class Shapes:
    """What the outlines of nuclei measure, one row each; NaN where there is none.

    Attributes:
        perimeter: length of the outline, in its unit, float64 (m,).
        circularity: 4π · area / perimeter², 1 for a disk.
        eccentricity: of the ellipse with the outline's second moments, 0 for a disk.
        major_axis, minor_axis: lengths of that ellipse's axes.
    """

    perimeter: NDArray[np.float64]
    circularity: NDArray[np.float64]
    eccentricity: NDArray[np.float64]
    major_axis: NDArray[np.float64]
    minor_axis: NDArray[np.float64]


def shapes(points: Points, start: NDArray[np.int64]) -> Shapes:
    """Measure many rings at once; arguments as of `signed_areas`.

    The moments are those of the uniform distribution over the polygon (Green's theorem); a full
    axis of a uniform ellipse is 4 standard deviations.
    """
    values = np.full((5, len(start) - 1), np.nan)
    a, b, first, filled = _edges(points, start)
    if not len(filled):
        return _as_shapes(values)
    ax, ay, bx, by = (np.ascontiguousarray(column) for column in (*a.T, *b.T))
    cross = ax * by - ay * bx

    def total(edges: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.add.reduceat(edges, first))

    perimeter, area = total(np.hypot(bx - ax, by - ay)), total(cross) / 2
    whole = (np.abs(area) > 0) & (perimeter > 0)
    over = np.where(whole, area, 1.0)
    # Moments about the first point of each ring, and from there about its centroid.
    x, y = total((ax + bx) * cross) / (6 * over), total((ay + by) * cross) / (6 * over)
    xx = total((ax * ax + ax * bx + bx * bx) * cross) / (12 * over) - x * x
    yy = total((ay * ay + ay * by + by * by) * cross) / (12 * over) - y * y
    xy = (2 * (ax * ay + bx * by) + ax * by + bx * ay) * cross
    xy = total(xy) / (24 * over) - x * y
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    large, small = np.maximum(middle + spread, 0), np.maximum(middle - spread, 0)
    roundness = 4 * np.pi * np.abs(area) / np.where(whole, perimeter, 1.0) ** 2
    flatness = np.sqrt(np.maximum(0, 1 - small / np.where(large > 0, large, 1.0)))
    values[0, filled] = perimeter
    for row, column in enumerate((roundness, flatness, 4 * np.sqrt(large), 4 * np.sqrt(small)), 1):
        values[row, filled] = np.where(whole, column, np.nan)
    return _as_shapes(values)


def _as_shapes(values: NDArray[np.float64]) -> Shapes:
    names = (field.name for field in dataclasses.fields(Shapes))
    return Shapes(**dict(zip(names, values, strict=True)))


def _edges(
    points: Points, start: NDArray[np.int64]
) -> tuple[Points, Points, NDArray[np.int64], NDArray[np.intp]]:
    """Return the ends of all edges, where the edges of each filled ring start, and which those are.

    Seen from the ring's first point: coordinates of a slide would cancel badly.
    """
    length = np.diff(start)
    filled = np.flatnonzero(length)
    first = start[:-1][filled]
    following = np.arange(1, len(points) + 1)
    following[start[1:][filled] - 1] = first
    a = np.asarray(points, np.float64)
    a = a - np.repeat(a[first], length[filled], axis=0)
    return a, a[following], first, filled


def _cross(a: Points, b: Points) -> NDArray[np.float64]:
    product: NDArray[np.float64] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return product


def contains(ring: NDArray[np.floating], point: NDArray[np.floating]) -> bool:
    """Tell whether a point lies inside a polygon (even-odd rule)."""
    a = np.asarray(ring, np.float64)
    b = np.roll(a, -1, axis=0)
    x, y = float(point[0]), float(point[1])
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    rise = np.where(crosses, b[:, 1] - a[:, 1], 1.0)
    at_x = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / rise
    return bool(np.count_nonzero(crosses & (x < at_x)) % 2)


def fill(ring: NDArray[np.floating], height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels of an (H, W) window whose centres lie inside a polygon."""
    a = np.asarray(ring, np.float64)
    b = np.roll(a, -1, axis=0)
    inside = np.zeros((height, width), bool)
    centre_x = np.arange(width) + 0.5
    for row in range(height):
        y = row + 0.5
        crosses = (a[:, 1] > y) != (b[:, 1] > y)
        p, q = a[crosses], b[crosses]
        at_x = p[:, 0] + (y - p[:, 1]) * (q[:, 0] - p[:, 0]) / (q[:, 1] - p[:, 1])
        inside[row] = (at_x[:, None] > centre_x).sum(0) % 2 == 1
    return inside


def _rings(mask_HW: NDArray[np.bool_]) -> Iterator[Points]:
    """Yield every closed outline of a mask, as its lattice corners, inside on the right."""
    padded = np.pad(mask_HW, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for inside, outside, start, stop in (
        (padded[1:, :], padded[:-1, :], (0, -1), (0, 0)),  # top edges run right
        (padded[:-1, :], padded[1:, :], (0, 0), (0, -1)),  # bottom edges run left
        (padded[:, 1:], padded[:, :-1], (0, 0), (-1, 0)),  # left edges run up
        (padded[:, :-1], padded[:, 1:], (-1, 0), (0, 0)),  # right edges run down
    ):
        for y, x in np.argwhere(inside & ~outside).tolist():
            following.setdefault((y + start[0], x + start[1]), []).append(
                (y + stop[0], x + stop[1])
            )
    while following:
        first = min(following)
        ring, before, at = [first], first, _pop(following, first, None)
        while at != first:
            ring.append(at)
            before, at = at, _pop(following, at, (at[0] - before[0], at[1] - before[1]))
        yield np.array(ring, np.float64)[:, ::-1]


def _pop(
    following: dict[tuple[int, int], list[tuple[int, int]]],
    at: tuple[int, int],
    heading: tuple[int, int] | None,
) -> tuple[int, int]:
    """Take the edge that leaves `at`; where two pixels touch by a corner, turn right.

    The right turn stays with the same pixel, so pieces are 4-connected and no ring crosses itself
    (it may touch itself there; `simplify` cuts such corners).
    """
    choices = following[at]
    pick = 0
    if len(choices) > 1 and heading is not None:
        right = (at[0] + heading[1], at[1] - heading[0])
        pick = choices.index(right) if right in choices else 0
    chosen = choices.pop(pick)
    if not choices:
        del following[at]
    return chosen


def _corners(ring: Points) -> Points:
    """Drop the points in the middle of straight runs."""
    before = ring - np.roll(ring, 1, axis=0)
    after = np.roll(ring, -1, axis=0) - ring
    return ring[np.any(before != after, axis=1)]
