"""The nuclei of a slide at hand for drawing: places in memory, outlines in a mapped file.

Legend: N nuclei.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.exporters.classes import read_classes
from cytofm_cli.pictures import colours
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.units import Size
from cytofm_cli.viewer import draw
from cytofm_cli.viewer.places import Places, find_places
from cytofm_cli.viewer.zoom import Region

_ROWS: Final = 1 << 20  # points copied at a time
_ELONGATED: Final = 2.0  # an outline reaches so many radii of its area from its centre
_BOLD_PX: Final = 12.0  # radius on the screen from which lines are two pixels wide
_OUTLINED_PX: Final = 9  # on the screen; smaller nuclei are dots
_DOT_PX: Final = (1.0, 3.0)
_USUAL_RADIUS_UM: Final = 4.5  # where no area is known


@dataclass(frozen=True, eq=False)
class Shapes:
    """Where the nuclei of a detector are, and their outlines.

    Attributes:
        places: their centres.
        contour_px0: float32 (p, 2), all outlines, one after the other, on the disk.
        contour_start: int64 (N + 1,).
        radius_px0: of a usual nucleus.
        reach_px0: how far an outline may reach from its centre.
    """

    places: Places
    contour_px0: NDArray[np.float32]
    contour_start: NDArray[np.int64]
    radius_px0: float
    reach_px0: float

    def outlines(self, rows: NDArray[np.int64]) -> draw.Rings:
        """Return the outlines of some rows that have one."""
        begin, length = self.contour_start[rows], np.diff(self.contour_start)[rows]
        start = np.concatenate([[0], np.cumsum(length)])
        # Point i comes from the row that owns it: one gather, no loop.
        index = np.repeat(begin - start[:-1], length) + np.arange(start[-1])
        return draw.Rings(np.asarray(self.contour_px0[index]), start)


@dataclass(frozen=True)
class NucleiKind:
    """Nuclei that can be shown: those of a detector, with its classes or with those of a RUN.

    Attributes:
        detector: whose nuclei.
        classes_by: the RUN that gave the classes; None: the detector.
    """

    detector: str
    classes_by: str | None = None

    @property
    def title(self) -> str:
        """As a page names it."""
        by = f", classes of {self.classes_by}" if self.classes_by else ""
        return f"{self.detector}{by}"


def kinds_of(store: Store) -> tuple[list[NucleiKind], list[str]]:
    """List the nuclei of a store that can be shown, and what is left out and why."""
    kinds, notes = [], []
    for step in sorted(store.steps):
        group, _, name = step.partition("/")
        if group not in ("nuclei", "classes"):
            continue
        if (why := store.why_stale(step)) is not None:
            notes.append(f"{step} is not shown: it is out of date ({why}).")
        elif group == "nuclei":
            kinds.append(NucleiKind(name))
        else:
            kinds.append(NucleiKind(store.classes_record(name).detector, name))
    there = {kind.detector for kind in kinds if kind.classes_by is None}
    shown = [kind for kind in kinds if kind.detector in there]
    return sorted(shown, key=lambda kind: (kind.detector, kind.classes_by or "")), notes


def read_shapes(store: Store, detector: str) -> Shapes:
    """Read the nuclei of a detector; outlines go to a file without a name, which is mapped.

    Raises:
        StoreError: damaged.
    """
    step = schema.nuclei_step(detector)
    area_um2 = store.read(f"{step}/area_um2")
    known = area_um2[np.isfinite(area_um2) & (area_um2 > 0)]
    largest_um = float(np.sqrt(np.max(known) / np.pi)) if len(known) else 3 * _USUAL_RADIUS_UM
    radius_um = float(np.sqrt(np.median(known) / np.pi)) if len(known) else _USUAL_RADIUS_UM
    return Shapes(
        places=find_places(store.read(f"{step}/xy_px0"), Size(*store.slide.size_px0)),
        contour_px0=_mapped(store, f"{step}/contour_px0"),
        contour_start=store.read(f"{step}/contour_start"),
        radius_px0=radius_um / store.slide.mpp,
        reach_px0=_ELONGATED * largest_um / store.slide.mpp,
    )


def _mapped(store: Store, array: str) -> NDArray[np.float32]:
    """Unpack an array into a temporary file and map it: the system keeps what is looked at."""
    with store.rows(array) as rows:
        if not rows.shape[0]:
            return np.zeros((0, 2), np.float32)
        with tempfile.TemporaryFile(prefix="cytofm-view-") as file:
            for first in range(0, rows.shape[0], _ROWS):
                file.write(np.ascontiguousarray(rows.read(first, first + _ROWS)).data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=rows.shape)


def read_class_names(store: Store, kind: NucleiKind) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Return the names of the classes, and the class of each nucleus, uint8 (N,)."""
    if kind.classes_by is not None:
        of = read_classes(store, kind.classes_by)
        return of.names, of.class_N
    record = store.nuclei_record(kind.detector)
    class_N: NDArray[np.uint8] = store.read(f"{schema.nuclei_step(kind.detector)}/class")
    return record.classes, class_N


def draw_nuclei(region: Region, shapes: Shapes, rgb_N3: NDArray[np.uint8]) -> draw.Canvas:
    """Draw the nuclei of a square: outlines when near, dots when far, or where there is no outline.

    Args:
        region: the square.
        shapes: of all nuclei of the slide.
        rgb_N3: the colour of each of them.
    """
    margin = shapes.reach_px0 + 4 * region.scale
    rows = shapes.places.inside(
        region.x_px0 - margin,
        region.y_px0 - margin,
        region.x_px0 + region.side_px0 + margin,
        region.y_px0 + region.side_px0 + margin,
    )
    radius_px = shapes.radius_px0 / region.scale
    outlined = np.zeros(len(rows), bool)
    if 2 * radius_px >= _OUTLINED_PX:
        outlined = (shapes.contour_start[rows + 1] - shapes.contour_start[rows]) > 0
    dots, rings = rows[~outlined], rows[outlined]
    size = min(max(radius_px * 0.7, _DOT_PX[0]), _DOT_PX[1])
    canvas = draw.points(region, shapes.places.xy_px0[dots], size, rgb_N3[dots])
    thickness = 2 if radius_px >= _BOLD_PX else 1
    outlines = shapes.outlines(rings)
    return draw.outlines(canvas, region, outlines, rgb_N3[rings], thickness=thickness)


def colours_of(class_N: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colour of each nucleus, by its class."""
    palette = np.array([colours.class_colour(c) for c in range(256)], np.uint8)
    return palette[class_N]
