"""What a region is, and where on a slide the files of other programs count from.

Coordinates are (x, y) in level-0 pixels; pixel (0, 0) covers [0, 1] x [0, 1]. A region is the
points that its rings surround an odd number of times, so a ring in a ring is a hole.
Legend: K points of a ring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.units import Box, Size

Note = Callable[[str], None]
Ring = NDArray[np.float64]

UNCLASSIFIED: Final = "unclassified"  # QuPath's word, in lower case
MIN_POINTS: Final = 3
# Where (0, 0) of a file lies: the corner of level 0, or that of the part that was scanned.
SLIDE: Final = "slide"
BOUNDS: Final = "bounds"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The slide that regions are brought to.

    Attributes:
        slide_id: its name.
        size_px0: size of level 0.
        mpp: µm/px of level 0.
        bounds_px0: the scanned part, if it is not all of level 0.
        centre_nm: how far the middle of level 0 lies from the middle of the glass, (x, y) in
            nanometres, as Hamamatsu states it; None where nobody does.
    """

    slide_id: str
    size_px0: Size
    mpp: float
    bounds_px0: Box | None = None
    centre_nm: tuple[float, float] | None = None

    def frame(self, origin: str) -> Box:
        """Return the part of level 0 whose corner is (0, 0): of the slide, or of its bounds."""
        whole = Box(0, 0, *self.size_px0)
        return whole if origin == SLIDE else self.bounds_px0 or whole


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """One region.

    Attributes:
        name: of its class.
        rings: closed polygons (K, 2), the first point not repeated.
        where: what a message calls it: the file and its number there.
    """

    name: str
    rings: tuple[Ring, ...]
    where: str

    @property
    def low(self) -> NDArray[np.float64]:
        """Smallest x and y."""
        return np.asarray(np.concatenate(self.rings).min(0))

    @property
    def high(self) -> NDArray[np.float64]:
        """Largest x and y."""
        return np.asarray(np.concatenate(self.rings).max(0))

    def moved(self, scale: float, shift_px0: tuple[float, float]) -> Region:
        """Map every point p to `scale` · p + `shift_px0`."""
        rings = tuple(ring * scale + np.asarray(shift_px0) for ring in self.rings)
        return Region(name=self.name, rings=rings, where=self.where)


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """The regions of a file as they stand in it.

    Attributes:
        regions: in its own unit, from its own (0, 0).
        left_out: how many other things it holds, by what they are.
        origin: where its (0, 0) is: `SLIDE`, `BOUNDS`, or a point of level 0 that it names.
        unit: "px"; "um" where it says so; "nm" of what was brought from nanometres to pixels.
        mpp: µm/px of its pixels, if it says so.
    """

    regions: tuple[Region, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    origin: str | tuple[float, float] = SLIDE
    unit: str = "px"
    mpp: float | None = None


def ring_of(points: list[tuple[float, float]] | NDArray[np.float64]) -> Ring:
    """Return points as a ring: without repeated neighbours.

    Raises:
        ValueError: fewer than three points are left, or one is not finite.
    """
    ring = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is no number")
    ring = ring[np.any(ring != np.roll(ring, -1, axis=0), axis=1)]
    if len(ring) < MIN_POINTS:
        raise ValueError("fewer than three points")
    return ring


def box_ring(low: tuple[float, float], high: tuple[float, float]) -> Ring:
    """Return a rectangle as a ring."""
    (x0, y0), (x1, y1) = low, high
    return ring_of([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def ellipse_ring(centre: tuple[float, float], radii: tuple[float, float], n: int = 128) -> Ring:
    """Return an ellipse as a ring of `n` points on it; its area is 4e-4 too small."""
    angle = np.arange(n) * (2 * np.pi / n)
    return ring_of(
        np.asarray(centre) + np.asarray(radii) * np.stack([np.cos(angle), np.sin(angle)], 1)
    )


def signed_area(ring: Ring) -> float:
    """Return the area of a ring (shoelace formula), negative where it turns the other way."""
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
