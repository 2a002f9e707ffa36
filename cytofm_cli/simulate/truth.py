"""What is known of a slide: its cells as rows and as GeoJSON, nuclei and cytoplasm as labels."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Final

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from cytofm_cli.simulate.outlines import centroid
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.simulate.render import Box, Placed

COLUMNS: Final = (
    "slide_id", "x", "y", "class", "kind", "radius_um", "plane", "z_um", "marked", "cell", "sheet",
    "x_nucleus", "y_nucleus",
)  # fmt: skip
HEAD: Final = b'{"type":"FeatureCollection","features":['
FOOT: Final = b"\n]}\n"
_SHIFT: Final = 4  # bits of a pixel that outlines are drawn with
_DECIMALS: Final = 2
# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008), by class.
_COLOURS: Final = (
    (0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233),
)  # fmt: skip
_IDS: Final = uuid.UUID("1b0a3a5e-51c5-5d0e-8a7b-5d1f6b0f5c41")

Outline = NDArray[np.float32]


def rows(cells: Iterable[Placed], preset: Preset, slide_id: str, focus_um: Sequence[float]) -> str:
    """Return the lines of cells.csv of some cells, `COLUMNS`, each with its line end.

    Args:
        cells: of one slide.
        preset: what it is of.
        slide_id: its name.
        focus_um: heights of the focal planes; the nearest is the cell's.
    """
    heights = np.asarray(focus_um)
    lines = []
    for placed in cells:
        cell, kind = placed.cell, preset.kinds[placed.cell.kind]
        radius = radius_um(placed, preset.mpp)
        plane = int(np.abs(heights - cell.z_um).argmin())
        lines.append(
            f"{slide_id},{cell.x:.2f},{cell.y:.2f},{kind.group},{cell.kind},{radius:.2f},{plane},"
            f"{cell.z_um:.2f},{int(kind.marked)},{placed.number},{placed.sheet},"
            f"{_middle_of_nucleus(placed)}\n"
        )
    return "".join(lines)


def _middle_of_nucleus(placed: Placed) -> str:
    """Return x,y of the first nucleus: it may lie far from the middle of its cell."""
    nuclei = placed.shape.nuclei
    if not nuclei:
        return ","
    x, y = centroid(nuclei[0].astype(np.float64))
    return f"{x:.2f},{y:.2f}"


def radius_um(placed: Placed, mpp: float) -> float:
    """Return the radius of a disk as large as a cell's nuclei, or as a cell without any."""
    outlines = placed.shape.nuclei or tuple(_outlines(placed.shape.cytoplasm))
    area_px = sum(_area(outline) for outline in outlines)
    return float(np.sqrt(area_px / np.pi) * mpp)


def features(cells: Iterable[Placed], preset: Preset, slide_id: str) -> bytes:
    """Return cells as GeoJSON Features, one a line, each with a comma before it.

    As QuPath has them: objects of type "cell" with `nucleusGeometry` beside `geometry`; bare
    nuclei are detections, cells without a nucleus annotations.
    """
    classes = {kind.group: None for kind in preset.kinds.values()}
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(classes)}
    lines = []
    for placed in cells:
        feature = _feature(placed, preset, colours)
        feature["id"] = str(uuid.uuid5(_IDS, f"{slide_id}/{placed.number}"))
        lines.append(b",\n" + orjson.dumps(feature))
    return b"".join(lines)


def _feature(
    placed: Placed, preset: Preset, colours: dict[str, tuple[int, int, int]]
) -> dict[str, Any]:
    shape, group = placed.shape, preset.kinds[placed.cell.kind].group
    nucleus, whole = _geometry(shape.nuclei), _geometry(_outlines(shape.cytoplasm))
    feature: dict[str, Any] = {"type": "Feature", "id": ""}
    if nucleus is None:
        feature |= {"geometry": whole}
        object_type = "annotation"
    elif whole is None:
        feature |= {"geometry": nucleus}
        object_type = "detection"
    else:
        feature |= {"geometry": whole, "nucleusGeometry": nucleus}
        object_type = "cell"
    feature["properties"] = {
        "objectType": object_type,
        "name": placed.cell.kind,
        "classification": {"name": group, "color": colours[group]},
        "measurements": {"Cell": placed.number, "Sheet": placed.sheet},
    }
    return feature


def labels(cells: Iterable[Placed], box: Box, *, of: str) -> NDArray[np.uint32] | None:
    """Draw the labels of a region; None where there is nothing.

    Args:
        cells: that may reach into it, in the order in which they are painted: where two lie above
            each other, the later one is seen.
        box: the region.
        of: "nuclei" or "cytoplasm" (the whole cell, its nucleus included).

    Returns:
        uint32 (h, w): `Placed.number`, 0 where there is nothing.
    """
    x0, y0, x1, y1 = box
    drawn: NDArray[np.int32] | None = None
    for placed in cells:
        shape = placed.shape
        outlines = shape.nuclei if of == "nuclei" else _outlines(shape.cytoplasm)
        if not outlines or not _reaches(shape.box, box):
            continue
        if drawn is None:
            drawn = np.zeros((y1 - y0, x1 - x0), np.int32)
        # OpenCV counts from the middle of a pixel, slides from its corner.
        corner = np.array([x0 + 0.5, y0 + 0.5])
        points = [np.rint((xy - corner) * (1 << _SHIFT)).astype(np.int32) for xy in outlines]
        for one in points:  # each alone: together, what they share would be left out
            cv2.fillPoly(drawn, [one], placed.number, shift=_SHIFT)
    return None if drawn is None or not drawn.any() else drawn.view(np.uint32)


def _outlines(outline: Outline | None) -> tuple[Outline, ...]:
    return () if outline is None else (outline,)


def _geometry(outlines: Sequence[Outline]) -> dict[str, Any] | None:
    """Return a closed polygon, or several of them, counter-clockwise as RFC 7946 has it."""
    rings = []
    for outline in outlines:
        ring = np.asarray(np.round(outline.astype(np.float64), _DECIMALS), np.float64)
        ring = ring if _signed_area(ring) > 0 else ring[::-1]
        rings.append([[*ring.tolist(), ring[0].tolist()]])
    if not rings:
        return None
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _area(outline: Outline) -> float:
    return abs(_signed_area(outline.astype(np.float64)))


def _signed_area(xy: NDArray[np.float64]) -> float:
    x, y = xy[:, 0], xy[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _reaches(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
