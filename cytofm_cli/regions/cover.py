"""What lies in regions: points, and shares of squares.

Points are counted by the even-odd rule. A share is the area of a square that is covered by the
union of some regions and by none of others, integrated along lines: exact in x, and in y by the
midpoint rule with `LINES` lines a square, so that a horizontal edge counts to 1 / (2 `LINES`) of
a side. Nothing is drawn, so that the size of a slide costs nothing.

Legend: N points or squares; E edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.regions.base import Region, Ring

# Points, or top-left corners: (N, 2).
Places = NDArray[np.floating[Any]] | NDArray[np.integer[Any]]

LINES: Final = 128
_PAIRS: Final = 2**21  # of an edge and a line that are worked on at a time


class Points:
    """Points that many regions are asked about, sorted by y once.

    Args:
        xy_N2: where they lie.
    """

    def __init__(self, xy_N2: Places) -> None:
        points_N2 = np.asarray(xy_N2, np.float64)
        self._order = np.argsort(points_N2[:, 1], kind="stable")
        self._x, self._y = points_N2[self._order].T

    def within(self, region: Region) -> NDArray[np.int64]:
        """Return which points lie in a region, by the even-odd rule."""
        low, high = region.low, region.high
        first = np.searchsorted(self._y, low[1], "left")
        last = np.searchsorted(self._y, high[1], "right")
        x, y = self._x[first:last], self._y[first:last]
        near = np.flatnonzero((x >= low[0]) & (x <= high[0]))
        x, y = x[near], y[near]
        left = np.zeros(len(near), np.int64)  # edges to the left of each point
        for row, at_x in _crossings(region.rings, y):
            left += np.bincount(row[at_x <= x[row]], minlength=len(near))
        rows: NDArray[np.int64] = self._order[first:last][near[left % 2 == 1]]
        return rows


def inside(regions: Sequence[Region], xy_N2: Places) -> NDArray[np.bool_]:
    """Tell which points lie in any of the regions, bool (N,)."""
    points, there = Points(xy_N2), np.zeros(len(xy_N2), bool)
    for region in regions:
        there[points.within(region)] = True
    return there


def shares(
    regions: Sequence[Region] | None,
    without: Sequence[Region],
    xy_N2: Places,
    side: float,
    size: tuple[int, int],
) -> NDArray[np.float64]:
    """Return how much of each square lies in `regions` and in none of `without`, 0 to 1.

    Only the part of a square that lies on the slide counts.

    Args:
        regions: None: the whole slide.
        without: regions that are left out.
        xy_N2: top-left corners.
        side: of the squares.
        size: width and height of the slide.

    Returns:
        float64 (N,), 0 for a square that does not touch the slide.
    """
    width, height = size
    step = float(side) / LINES
    lines_y = (np.arange(max(1, int(np.ceil(height / step)))) + 0.5) * step
    lines_y = lines_y[lines_y < height] if height > step / 2 else np.array([height / 2])
    spans = _spans(regions, without, lines_y, float(width))
    share_N = np.zeros(len(xy_N2))
    corners_N2 = np.asarray(xy_N2, np.float64)
    tops, of_row = np.unique(corners_N2[:, 1], return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    ends = np.cumsum(np.bincount(of_row, minlength=len(tops)))
    for top, rows in zip(tops, np.split(order, ends[:-1]), strict=True):
        first, last = np.searchsorted(lines_y, (top, top + side))
        left = np.clip(corners_N2[rows, 0], 0, width)
        right = np.clip(corners_N2[rows, 0] + side, 0, width)
        area = (right - left) * (last - first)
        covered = spans.covered(np.arange(first, last), left, right)
        share_N[rows] = np.divide(covered, area, out=np.zeros(len(rows)), where=area > 0)
    return np.clip(share_N, 0, 1)


def area_of(region: Region, lines: int = 4 * LINES) -> float:
    """Return the area of a region, whichever way its rings turn and cross."""
    low, high = region.low, region.high
    step = float(high[1] - low[1]) / lines
    if step <= 0 or high[0] <= low[0]:
        return 0.0
    lines_y = float(low[1]) + (np.arange(lines) + 0.5) * step
    moved = region.moved(1.0, (-low[0], 0.0))
    width = float(high[0] - low[0])
    spans = _spans([moved], (), lines_y, width)
    every = spans.covered(np.arange(lines), np.zeros(1), np.array([width]))
    return float(every[0]) * step


@dataclass(frozen=True, eq=False)
class _Spans:
    """The covered parts of lines, one after the other on one axis: line i begins at i · `pitch`."""

    start: NDArray[np.float64]
    length: NDArray[np.float64]
    before: NDArray[np.float64]  # what the spans before each one cover together
    pitch: float

    def covered(
        self, lines: NDArray[np.int64], left: NDArray[np.float64], right: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return what is covered between `left` and `right`, summed over lines."""
        if not len(self.start):
            return np.zeros(len(left))
        begin = lines[:, None] * self.pitch
        total: NDArray[np.float64] = (self._up_to(begin + right) - self._up_to(begin + left)).sum(0)
        return total

    def _up_to(self, at: NDArray[np.float64]) -> NDArray[np.float64]:
        row = np.searchsorted(self.start, at, "right") - 1
        known = np.maximum(row, 0)
        part = np.minimum(at - self.start[known], self.length[known])
        total: NDArray[np.float64] = np.where(row >= 0, self.before[known] + part, 0.0)
        return total


def _spans(
    regions: Sequence[Region] | None,
    without: Sequence[Region],
    lines_y: NDArray[np.floating[Any]],
    width: float,
) -> _Spans:
    """Return the parts of lines that lie in some regions and in none of others."""
    events = [_ends(region, lines_y, 0, width) for region in regions or ()]
    events += [_ends(region, lines_y, 1, width) for region in without]
    if regions is None:
        every = np.arange(len(lines_y))
        events.append(_events(every, np.zeros(len(every)), 0, 1))
        events.append(_events(every, np.full(len(every), width), 0, -1))
    table = np.concatenate([np.zeros((0, 4)), *events])
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    open_in, open_out = np.cumsum(table[:, 2]), np.cumsum(table[:, 3])
    # Every region closes what it opens within its line, so no part goes on into the next one.
    length = np.diff(table[:, 1], append=0.0)
    covered = (open_in > 0) & (open_out == 0) & (length > 0)
    pitch = width + 1.0
    length = length[covered]
    start = table[covered, 0] * pitch + table[covered, 1]
    return _Spans(start, length, np.cumsum(length) - length, pitch)


def _ends(
    region: Region, lines_y: NDArray[np.floating[Any]], kind: int, width: float
) -> NDArray[np.float64]:
    """Return where a region begins and ends on lines: rows of line, x, and its two counts."""
    parts = list(_crossings(region.rings, lines_y))
    line = np.concatenate([np.zeros(0, np.int64), *(row for row, _ in parts)])
    x = np.concatenate([np.zeros(0), *(at for _, at in parts)])
    order = np.lexsort((x, line))  # in pairs: a closed ring is crossed an even number of times
    line, x = line[order], np.clip(x[order], 0, width)
    opened, closed = _events(line[::2], x[::2], kind, 1), _events(line[1::2], x[1::2], kind, -1)
    return np.concatenate([opened, closed])


def _events(
    line: NDArray[np.int64], x: NDArray[np.float64], kind: int, by: int
) -> NDArray[np.float64]:
    """Return rows of line, x, and `by` in the column of a kind: 0 regions, 1 what is left out."""
    table = np.zeros((len(line), 4))
    table[:, 0], table[:, 1], table[:, 2 + kind] = line, x, by
    return table


def _crossings(
    rings: Sequence[Ring], y: NDArray[np.floating[Any]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield (row of `y`, x) of the places where edges cross horizontal lines.

    An edge counts its upper end and not its lower one, so a corner counts once.

    Args:
        rings: closed.
        y: increasing.
    """
    a = np.concatenate(rings)
    b = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    first, last = np.searchsorted(y, low), np.searchsorted(y, high)
    slope = np.divide(b[:, 0] - a[:, 0], b[:, 1] - a[:, 1], out=np.zeros(len(a)), where=high > low)
    count = last - first
    edges = np.flatnonzero(count)
    groups = np.cumsum(count[edges]) // _PAIRS
    for group in np.split(edges, np.flatnonzero(np.diff(groups)) + 1):
        if not len(group):
            continue
        edge = np.repeat(group, count[group])
        start = np.cumsum(count[group]) - count[group]
        row = first[edge] + np.arange(len(edge)) - np.repeat(start, count[group])
        yield row, a[edge, 0] + (y[row] - a[edge, 1]) * slope[edge]
