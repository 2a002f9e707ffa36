"""Finding what lies in a square of a slide, among hundreds of thousands of points.

Legend: N points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.units import Size

CELL_PX0: Final = 512


@dataclass(frozen=True, eq=False)
class Places:
    """Points, sorted by the cells of a coarse grid.

    Attributes:
        xy_px0: float32 (N, 2).
        grid: columns and rows of cells.
        order_N: rows of the points, cell after cell (row of cells after row of cells).
        start: where each cell begins in `order_N`, (cells + 1,).
    """

    xy_px0: NDArray[np.float32]
    grid: Size
    order_N: NDArray[np.int64]
    start: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.xy_px0)

    def inside(self, left: float, top: float, right: float, bottom: float) -> NDArray[np.int64]:
        """Return the rows of the points in a box, edges included, increasing."""
        columns = self._cells(left, right, self.grid.w)
        rows = self._cells(top, bottom, self.grid.h)
        runs = [
            self.order_N[
                self.start[row * self.grid.w + columns.start] : self.start[
                    row * self.grid.w + columns.stop
                ]
            ]
            for row in rows
        ]
        near = np.concatenate([np.zeros(0, np.int64), *runs])
        x, y = self.xy_px0[near].T
        within = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        return np.sort(near[within])

    def nearest(self, x_px0: float, y_px0: float, within_px0: float) -> int | None:
        """Return the row of the nearest point that is not farther away; None: there is none."""
        rows = self.inside(
            x_px0 - within_px0, y_px0 - within_px0, x_px0 + within_px0, y_px0 + within_px0
        )
        if not len(rows):
            return None
        away = np.hypot(*(self.xy_px0[rows].astype(np.float64) - (x_px0, y_px0)).T)
        best = int(np.argmin(away))
        return int(rows[best]) if away[best] <= within_px0 else None

    @staticmethod
    def _cells(low: float, high: float, count: int) -> range:
        first = min(max(int(low // CELL_PX0), 0), count - 1)
        last = min(max(int(high // CELL_PX0), first), count - 1)
        return range(first, last + 1)


def find_places(xy_px0: NDArray[np.number], size_px0: Size) -> Places:
    """Sort points; those past the slide's edge go to the cells at it."""
    xy = np.ascontiguousarray(xy_px0, np.float32).reshape(-1, 2)
    grid = Size(*(max(1, -(-side // CELL_PX0)) for side in size_px0))
    cell_xy = np.clip(np.floor(xy / CELL_PX0), 0, np.array(grid) - 1).astype(np.int64)
    cell_N = cell_xy[:, 1] * grid.w + cell_xy[:, 0]
    order_N = np.argsort(cell_N, kind="stable")
    counts = np.bincount(cell_N, minlength=grid.w * grid.h)
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Places(xy, grid, order_N, start)
