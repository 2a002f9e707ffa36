"""Values of instances as a map: which are drawn, and how they are painted on a part of a slide.

Letters: N instances, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.exporters.maps import WHOLE_SLIDE, measurement, percentile
from cytofm_cli.store.tables import MIN_POLYGON_POINTS, NucleusTable
from cytofm_cli.work.opencv import opencv

Floats = NDArray[np.float64]
LEVELS: Final = 255  # 0 is where no instance lies
_BITS: Final = 4  # OpenCV takes coordinates in sixteenths of a pixel
_ROUNDED: Final = 2  # pixels of a map that OpenCV's rounding adds to a cell, at most


def choose_column(
    columns: Sequence[str], classes: Sequence[str], what: str, of_class: str | None, method: str
) -> str:
    """Return the column of a head's values that is drawn.

    Args:
        columns: those that the head gives, see `instance_columns`.
        classes: of the RUN, the positive one last.
        what: "attention" or "score".
        of_class: the class that it is to speak for; None: the slide's answer as a whole where the
            head has such a map, else the positive class.
        method: name of the head, for messages.

    Raises:
        UsageError: no such class; the head gives no scores, or no map of a class.
    """
    if of_class is not None and of_class not in classes:
        raise UsageError(
            f"--class {of_class}: the RUN knows {', '.join(classes)}.", hint="name one of them"
        )
    there = [name for name in columns if name.partition("_")[0] == what]
    if not there:
        raise UsageError(
            f"head {method!r} gives no {what} of single instances.",
            hint=f"--what {'attention' if what == 'score' else 'score'}",
        )
    if of_class is None and what == "attention" and WHOLE_SLIDE in there:
        return WHOLE_SLIDE
    wanted = [f"{what}_{name}" for name in ([of_class] if of_class else reversed(classes))]
    for name in wanted:
        if name in there:
            return name
    if of_class is None:
        return there[-1]
    spoken = [name.partition("_")[2] for name in there if "_" in name]
    scores = ", or --what score" if any(name.startswith("score") for name in columns) else ""
    raise UsageError(
        f"--class {of_class}: the {what} of head {method!r} speaks for "
        f"{', '.join(spoken) or 'the slide as a whole, for no class'}.",
        hint=f"--class {spoken[-1]}" if spoken else f"leave --class away{scores}",
    )


@dataclass(frozen=True)
class Levels:
    """The values of the instances of a slide, as colours take them.

    Attributes:
        level_N: 0 … 1.
        low, middle, high: raw values at the levels 0, 0.5 and 1.
        ranked: levels are percentiles within the slide; else they are linear in the values.
    """

    level_N: Floats
    low: float
    middle: float
    high: float
    ranked: bool


def levels_of(values_N: NDArray[np.floating[Any]], *, raw: bool, where: str, what: str) -> Levels:
    """Bring values to 0 … 1.

    Args:
        values_N: at least one.
        raw: linear between the lowest and the highest; else percentiles.
        where: the slide, for messages.
        what: the values, for messages.

    Raises:
        InputError: all instances have the same value: there is nothing to see.
    """
    values = values_N.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if len(values) > 1 and high - low <= 1e-6 * max(abs(low), abs(high)):
        raise InputError(
            f"{where}: all {len(values)} instances have the same {what} ({low:.4g}): no map.",
            hint="--what score shows what the head says of each, if it says it",
        )
    if not raw:
        return Levels(percentile(values) / 100, low, float(np.median(values)), high, ranked=True)
    span = high - low or 1.0
    return Levels((values - low) / span, low, (low + high) / 2, high, ranked=False)


@dataclass(frozen=True)
class Places:
    """Where instances lie.

    Attributes:
        xy_px0: (N, 2), corners of tiles or centres of cells, level-0 pixels.
        side_px0: of a tile; None: cells.
        nuclei: of cells whose outlines are drawn, row by row; None: none are.
        disk_px0: radius of a cell without outline.
    """

    xy_px0: NDArray[np.int32]
    side_px0: float | None
    nuclei: NucleusTable | None = None
    disk_px0: float = 0.0
    _reach: list[float] = field(default_factory=list)

    @property
    def reach_px0(self) -> float:
        """How far an instance goes from its place, at most."""
        if not self._reach:
            self._reach.append(self._farthest())
        return self._reach[0]

    def _farthest(self) -> float:
        if self.side_px0 is not None:
            return self.side_px0
        if self.nuclei is None:
            return self.disk_px0
        owner = np.repeat(np.arange(len(self.nuclei)), np.diff(self.nuclei.contour_start))
        away = np.abs(self.nuclei.contour_px0 - self.xy_px0[owner])
        return max(self.disk_px0, float(away.max(initial=0.0)))

    def outline(self, row: int) -> NDArray[np.floating[Any]] | None:
        """Return the outline of a cell, (P, 2) level-0 pixels; None for a disk."""
        ring = None if self.nuclei is None else self.nuclei.polygon(row)
        return None if ring is None or len(ring) < MIN_POLYGON_POINTS else ring


class Painter:
    """Paints parts of a map; where instances overlap, the highest is on top.

    Args:
        places: of the instances.
        level_N: 0 … 1.
        downsample: level-0 pixels to a pixel of the map.
        origin_px0: the point of level 0 at the map's corner.
    """

    def __init__(
        self,
        places: Places,
        level_N: Floats,
        downsample: float,
        origin_px0: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._places, self._downsample = places, downsample
        self._origin = np.asarray(origin_px0, np.float64)
        self._tone = 1 + np.rint(level_N * (LEVELS - 1)).astype(np.int64)
        y = places.xy_px0[:, 1].astype(np.float64) - self._origin[1]
        self._by_y = np.argsort(y, kind="stable")
        self._y = y[self._by_y]

    def paint(self, top: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return rows of the map, uint8 (height, width): 0 is nothing, else 1 + 254 · level."""
        canvas = np.zeros((height, width), np.uint8)
        reach = self._places.reach_px0 + _ROUNDED * self._downsample
        low = top * self._downsample - reach
        high = (top + height) * self._downsample + reach
        first, last = np.searchsorted(self._y, [low, high])
        rows = np.sort(self._by_y[first:last])
        rows = rows[np.argsort(self._tone[rows], kind="stable")]
        if self._places.side_px0 is not None:
            self._squares(canvas, rows, top, self._places.side_px0)
        else:
            self._cells(canvas, rows, top)
        return canvas

    def _squares(
        self, canvas: NDArray[np.uint8], rows: NDArray[np.intp], top: int, side: float
    ) -> None:
        xy = self._places.xy_px0[rows].astype(np.float64) - self._origin
        low = np.floor(xy / self._downsample).astype(np.int64)
        high = np.maximum(np.floor((xy + side) / self._downsample).astype(np.int64), low + 1)
        low[:, 1] -= top
        high[:, 1] -= top
        low, high = np.maximum(low, 0), np.maximum(high, 0)
        tones = self._tone[rows].tolist()
        for (x0, y0), (x1, y1), tone in zip(low.tolist(), high.tolist(), tones, strict=True):
            canvas[y0:y1, x0:x1] = tone

    def _cells(self, canvas: NDArray[np.uint8], rows: NDArray[np.intp], top: int) -> None:
        """Paint each cell by itself: OpenCV rounds otherwise where a strip cuts through one."""
        height, width = canvas.shape
        for row, tone in zip(rows.tolist(), self._tone[rows].tolist(), strict=True):
            x0, y0, mask = self._cell(row)
            y0 -= top
            down, across = max(0, height - y0), max(0, width - x0)
            part = mask[max(0, -y0) : down, max(0, -x0) : across]
            if not part.size:
                continue
            left, upper = max(x0, 0), max(y0, 0)
            spot = canvas[upper : upper + part.shape[0], left : left + part.shape[1]]
            spot[part > 0] = tone

    def _cell(self, row: int) -> tuple[int, int, NDArray[np.uint8]]:
        """Return the pixels of a cell: left, top, and what of the box is in it."""
        cv2, unit = opencv(), 1 << _BITS
        ring = self._places.outline(row)
        if ring is None:
            at = (self._places.xy_px0[row] - self._origin) / self._downsample
            radius = max(self._places.disk_px0 / self._downsample, 0.5)
            low = np.floor(at - radius).astype(int) - 1
            side = 2 * math.ceil(radius) + 4
            mask = np.zeros((side, side), np.uint8)
            x, y = np.rint((at - low - 0.5) * unit).astype(int).tolist()
            cv2.circle(mask, (x, y), round(radius * unit), 1, -1, cv2.LINE_8, _BITS)
        else:
            points = (ring.astype(np.float64) - self._origin) / self._downsample
            low = np.floor(points.min(0)).astype(int) - 1
            across, down = (np.ceil(points.max(0)).astype(int) + 2 - low).tolist()
            mask = np.zeros((down, across), np.uint8)
            # OpenCV counts from the middle of the first pixel.
            shifted = np.rint((points - low - 0.5) * unit).astype(np.int32)
            cv2.fillPoly(mask, [shifted], 1, cv2.LINE_8, _BITS)
        return int(low[0]), int(low[1]), mask


def title_of(column: str, predicted: str) -> str:
    """Say in words what is drawn."""
    words = measurement(column)
    return f"{words} ({predicted})" if column == WHOLE_SLIDE else words
