"""Rings that RFC 7946 and OGC call valid: closed, not crossing or touching themselves.

Decided on whole numbers (hundredths of a pixel, as they are exported), so the answer is exact
and is that of the file. Rings are open lists of points (the first is not repeated); the
exterior turns counter-clockwise in the order of the numbers (x, y), whichever way y points.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# 1/100 px is finer than any outline, and float32 text would be twice as long.
DECIMALS: Final = 2
_GRID: Final = 10**DECIMALS
_TRIES: Final = 4
MIN_POINTS: Final = 3

Ints = NDArray[np.int64]
Points = NDArray[np.float64]


def valid_ring(ring: NDArray[np.floating]) -> Points:
    """Return a valid ring of about the same shape, float64 (k, 2), counter-clockwise.

    Points are rounded to 1/100 and repeated ones dropped. Of a ring that crosses or touches
    itself the largest loop stays. What encloses nothing gives no points (0, 2).
    """
    points = _distinct(np.rint(np.asarray(ring, np.float64).reshape(-1, 2) * _GRID))
    for _ in range(_TRIES):
        if len(points) < MIN_POINTS or not _twice_area(points):
            return np.zeros((0, 2))
        if _is_simple(points):
            break
        points = _distinct(_largest_loop(points))
    else:
        points = _hull(points)  # rounding made new crossings four times: never seen
    turned = points if _twice_area(points) > 0 else points[::-1]
    return turned / _GRID


def counter_clockwise(ring: NDArray[np.floating]) -> Points:
    """Return a ring turned so that its shoelace area is positive."""
    points = np.asarray(ring, np.float64)
    x, y = (points - points[0]).T
    return points if x @ np.roll(y, -1) >= y @ np.roll(x, -1) else points[::-1]


def is_valid(ring: NDArray[np.floating]) -> bool:
    """Tell whether a ring neither crosses nor touches itself, at 1/100 px; either turn."""
    points = np.rint(np.asarray(ring, np.float64).reshape(-1, 2) * _GRID).astype(np.int64)
    distinct = len(_distinct(points)) == len(points) >= MIN_POINTS
    return distinct and bool(_twice_area(points)) and _is_simple(points)


def plainly_valid(points: Points, start: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark the rings that are surely valid, in time linear in the points.

    Seen from the mean of its points, the outline of nearly every nucleus turns one way all
    around; such a ring cannot cross itself.

    Args:
        points: (p, 2), the points of all rings, one after the other, rounded to 1/100.
        start: (m + 1,), where each ring starts.

    Returns:
        (m,); False means "look closer" (`valid_ring`), and for an empty ring too.
    """
    length = np.diff(start)
    filled = np.flatnonzero(length)
    sure = np.zeros(len(length), bool)
    if not len(filled):
        return sure
    first = start[:-1][filled]
    ring = np.repeat(np.arange(len(filled)), length[filled])
    a = points - (np.add.reduceat(points, first) / length[filled, None])[ring]
    following = np.arange(1, len(points) + 1)
    following[start[1:][filled] - 1] = first
    b = a[following]
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    turn = np.arctan2(cross, (a * b).sum(1))
    least = np.minimum.reduceat(cross, first)
    once = np.abs(np.add.reduceat(turn, first) - 2 * np.pi) < 1
    sure[filled] = (least > 1 / _GRID**2) & once & (length[filled] >= MIN_POINTS)
    return sure


def clip_to_box(ring: NDArray[np.floating], width: float, height: float) -> Points:
    """Cut a ring at the borders of [0, width] × [0, height], float64 (k, 2).

    Sutherland and Hodgman (CACM 17:32, 1974): exact for a ring whose inside stays in one
    piece, as that of a nucleus with its centre in the box does.
    """
    points = np.asarray(ring, np.float64)
    for axis, border, sign in ((0, 0.0, 1), (0, width, -1), (1, 0.0, 1), (1, height, -1)):
        points = _clip_half(points, sign * (points[:, axis] - border))
        # Crossings are computed, so they may miss the border by a rounding.
        points[:, axis] = (
            np.maximum(points[:, axis], border) if sign > 0 else np.minimum(points[:, axis], border)
        )
    return points


def without_repeats(ring: Points) -> Points:
    """Drop points that are, at 1/100 px, the one after them; all stay if fewer than 3 would."""
    whole = np.rint(ring * _GRID)
    kept = ring[np.any(whole != np.roll(whole, -1, axis=0), axis=1)]
    return kept if len(kept) >= MIN_POINTS else ring


def _clip_half(points: Points, depth: NDArray[np.float64]) -> Points:
    """Keep the part of a ring with `depth` ≥ 0."""
    if (depth >= 0).all():
        return points.copy()
    kept: list[Points] = []
    for i in range(len(points)):
        j = (i + 1) % len(points)
        if depth[i] >= 0:
            kept.append(points[i])
        if (depth[i] >= 0) != (depth[j] >= 0):
            share = depth[i] / (depth[i] - depth[j])
            kept.append(points[i] + share * (points[j] - points[i]))
    return np.array(kept, np.float64).reshape(-1, 2)


def _distinct(points: NDArray[np.generic]) -> Ints:
    """Drop points that equal the one after them, around the ring."""
    whole = points.astype(np.int64)
    return whole[np.any(whole != np.roll(whole, -1, axis=0), axis=1)]


def _twice_area(points: Ints) -> int:
    x, y = (points - points[0]).T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _cross(origin: Ints, a: Ints, b: Ints) -> Ints:
    u, v = a - origin, b - origin
    product: Ints = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    return product


def _is_simple(points: Ints) -> bool:
    """Tell whether no two edges meet but neighbours in their common point."""
    if len(_meeting(points)[0]):
        return False
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    back = ((before - points) * (after - points)).sum(1) > 0
    return not np.any(back & (_cross(points, before, after) == 0))


def _meeting(points: Ints) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs of edges, no neighbours, that cross or touch."""
    k = len(points)
    i, j = np.triu_indices(k, 2)
    apart = ~((i == 0) & (j == k - 1))
    i, j = i[apart], j[apart]
    end = np.roll(points, -1, axis=0)
    low, high = np.minimum(points, end), np.maximum(points, end)
    near = np.all((low[i] <= high[j]) & (low[j] <= high[i]), axis=1)
    i, j = i[near], j[near]
    a, b, c, d = points[i], end[i], points[j], end[j]
    straddles = np.sign(_cross(a, b, c)) * np.sign(_cross(a, b, d)) <= 0
    straddles &= np.sign(_cross(c, d, a)) * np.sign(_cross(c, d, b)) <= 0
    return i[straddles], j[straddles]


def _largest_loop(points: Ints) -> Ints:
    """Cut a ring apart where it meets itself; return the loop of the largest area."""
    path = _with_meetings(points)
    loops: list[list[tuple[int, int]]] = []
    walked: list[tuple[int, int]] = []
    seen: dict[tuple[int, int], int] = {}
    for point in path:
        if point in seen:
            at = seen[point]
            loops.append(walked[at:])
            for gone in walked[at + 1 :]:
                del seen[gone]
            del walked[at + 1 :]
        else:
            seen[point] = len(walked)
            walked.append(point)
    loops.append(walked)
    rings = [np.array(loop, np.int64) for loop in loops]
    return max(rings, key=lambda ring: abs(_twice_area(ring)))


def _with_meetings(points: Ints) -> list[tuple[int, int]]:
    """Return the points of a ring together with those where its edges meet, in order."""
    end = np.roll(points, -1, axis=0)
    added: list[list[tuple[int, int]]] = [[] for _ in points]
    for i, j in zip(*(index.tolist() for index in _meeting(points)), strict=True):
        for met in _meeting_points(points[i], end[i], points[j], end[j]):
            added[i].append(met)
            added[j].append(met)
    path: list[tuple[int, int]] = []
    for start, extra in zip(points.tolist(), added, strict=True):
        corner = (start[0], start[1])
        along = sorted(extra, key=lambda p, c=corner: (p[0] - c[0]) ** 2 + (p[1] - c[1]) ** 2)  # type: ignore[misc]
        for point in (corner, *along):
            if not path or path[-1] != point:
                path.append(point)
    return path[:-1] if len(path) > 1 and path[0] == path[-1] else path


def _meeting_points(a: Ints, b: Ints, c: Ints, d: Ints) -> list[tuple[int, int]]:
    """Return where two edges that meet do: one point, or the ends of a common stretch."""
    u, v = b - a, d - c
    across = int(u[0] * v[1] - u[1] * v[0])
    if across:
        share = int((c - a)[0] * v[1] - (c - a)[1] * v[0]) / across
        x, y = np.rint(a + share * u).astype(int).tolist()
        return [(x, y)]
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    ends = (p for p in (a, b, c, d) if np.all((low <= p) & (p <= high)))
    return [(int(p[0]), int(p[1])) for p in ends]


def _hull(points: Ints) -> Ints:
    """Return the convex hull (Andrew's monotone chain)."""
    ordered = np.unique(points, axis=0)
    halves = []
    for run in (ordered, ordered[::-1]):
        chain: list[Ints] = []
        for point in run:
            while len(chain) > 1 and _cross(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        halves += chain[:-1]
    return np.array(halves, np.int64)
