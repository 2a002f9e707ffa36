"""The regions of one slide, whatever they were drawn with: what lies in which class.

Legend: N points or squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.regions import cover
from cytofm_cli.regions.base import Region
from cytofm_cli.regions.boxes import box_sums
from cytofm_cli.regions.cover import Places


class RegionSet(Protocol):
    """The regions of a slide.

    Attributes:
        classes: names of their classes, in the order of the file.
        counts: regions (or, of a mask, pixels) of each class.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def counts(self) -> dict[str, int]: ...

    def inside(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.bool_]:
        """Tell which points lie in a region of these classes."""
        ...

    def smallest(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.int16]:
        """Return the class of the smallest region around each point, index into `names`; or -1."""
        ...

    def shares(
        self,
        names: Sequence[str] | None,
        without: Sequence[str],
        xy_N2: Places,
        side: float,
    ) -> NDArray[np.float64]:
        """Return how much of each square lies in these classes (None: all) and in no others."""
        ...


@dataclass(frozen=True, eq=False)
class Polygons:
    """Regions that are drawn as outlines, in level-0 pixels."""

    regions: tuple[Region, ...]
    size_px0: tuple[int, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(dict.fromkeys(region.name for region in self.regions))

    @property
    def counts(self) -> dict[str, int]:
        """Regions of each class."""
        return {n: sum(region.name == n for region in self.regions) for n in self.classes}

    def _of(self, names: Sequence[str]) -> list[Region]:
        return [region for region in self.regions if region.name in names]

    def inside(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.bool_]:
        """See `RegionSet`."""
        return cover.inside(self._of(names), xy_N2)

    def smallest(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.int16]:
        """See `RegionSet`; a region within another says more than the other."""
        points, label_N = cover.Points(xy_N2), np.full(len(xy_N2), -1, np.int16)
        for region in sorted(self._of(names), key=cover.area_of, reverse=True):
            label_N[points.within(region)] = names.index(region.name)
        return label_N

    def shares(
        self,
        names: Sequence[str] | None,
        without: Sequence[str],
        xy_N2: Places,
        side: float,
    ) -> NDArray[np.float64]:
        """See `RegionSet`."""
        taken = None if names is None else self._of(names)
        return cover.shares(taken, self._of(without), xy_N2, side, self.size_px0)


@dataclass(frozen=True, eq=False)
class Mask:
    """Regions as the values of an image; the class of a pixel is its value, 0 is none.

    Attributes:
        value_HW: integers.
        corner_px0: of its first pixel, level-0 pixels.
        pixel_px0: width and height of a pixel of it.
        size_px0: of the slide.
    """

    value_HW: NDArray[np.integer[Any]]
    corner_px0: tuple[float, float]
    pixel_px0: tuple[float, float]
    size_px0: tuple[int, int]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes: the values as text."""
        return tuple(self.counts)

    @property
    def counts(self) -> dict[str, int]:
        """Pixels of each class."""
        values, counts = np.unique(self.value_HW, return_counts=True)
        return {str(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}

    def _mask(self, names: Sequence[str]) -> NDArray[np.bool_]:
        return np.isin(self.value_HW, np.array([int(name) for name in names], np.int64))

    def _pixels(self, xy_N2: Places) -> NDArray[np.float64]:
        """Return places in pixels of the mask."""
        scaled: NDArray[np.float64] = (
            np.asarray(xy_N2, np.float64) - self.corner_px0
        ) / self.pixel_px0
        return scaled

    def _values(self, xy_N2: Places) -> NDArray[np.int64]:
        at = np.floor(self._pixels(xy_N2)).astype(np.int64)
        height, width = self.value_HW.shape
        on = ((at >= 0) & (at < (width, height))).all(1)
        values = np.zeros(len(at), np.int64)
        values[on] = self.value_HW[at[on, 1], at[on, 0]]
        return values

    def inside(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.bool_]:
        """See `RegionSet`."""
        return np.isin(self._values(xy_N2), [int(name) for name in names])

    def smallest(self, names: Sequence[str], xy_N2: Places) -> NDArray[np.int16]:
        """See `RegionSet`; a pixel has one class."""
        values = self._values(xy_N2)
        label_N = np.full(len(values), -1, np.int16)
        for index, name in enumerate(names):
            label_N[values == int(name)] = index
        return label_N

    def shares(
        self,
        names: Sequence[str] | None,
        without: Sequence[str],
        xy_N2: Places,
        side: float,
    ) -> NDArray[np.float64]:
        """See `RegionSet`; exact, also where a square cuts pixels."""
        corners = np.asarray(xy_N2, np.float64)
        size = np.array(self.size_px0, np.float64)
        low, high = np.clip(corners, 0, size), np.clip(corners + side, 0, size)
        area = (high - low).prod(1)
        if names is None:
            wanted, whole = self._mask(without), area
        else:
            wanted, whole = self._mask([n for n in names if n not in without]), np.zeros(len(area))
        sums = box_sums(wanted, self._pixels(low), self._pixels(high)) * np.prod(self.pixel_px0)
        covered = whole - sums if names is None else sums
        share: NDArray[np.float64] = np.divide(
            covered, area, out=np.zeros(len(area)), where=area > 0
        )
        return np.clip(share, 0, 1)
