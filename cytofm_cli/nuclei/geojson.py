"""Write nuclei as GeoJSON that QuPath opens; `geojson_reader` reads such files.

One Feature a nucleus, in a FeatureCollection (RFC 7946 with pixel coordinates, as QuPath has
it): `id`, geometry Polygon (valid, closed, counter-clockwise) or Point; `properties.objectType`
"detection", `properties.classification`, `properties.measurements`.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import rings
from cytofm_cli.nuclei.base import NucleusTable

PROBABILITY: Final = "Detection probability"
AREA: Final = "Area µm^2"
# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008), by class.
_COLOURS: Final = (
    (0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233),
)  # fmt: skip
# Measurements keep so many significant digits: attention of a large slide is 1e-6.
_DIGITS: Final = 6
# Rows turned into Python's own numbers at once: a slide of a million nuclei has 32 million points.
_BLOCK: Final = 4096
_IDS: Final = uuid.UUID("6f1d2c52-7d0f-5a0e-9f0e-0c7f6d9a2b11")


def write(
    handle: TextIO,
    table: NucleusTable,
    measurements: Mapping[str, NDArray[np.floating]] | None = None,
    *,
    origin_px0: tuple[float, float] = (0, 0),
    name: str = "",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a table, one Feature a line, in constant memory.

    Args:
        handle: open for writing text as UTF-8.
        table: coordinates in level-0 pixels.
        measurements: further columns (m,), by the name that QuPath shows; values that are not
            finite are left out, as JSON has no word for them.
        origin_px0: the point of level 0 that is (0, 0) in the file.
        name: of the slide and detector; the ids of the nuclei follow from it.
        about: what the file says of itself, as member `cytofm`.
    """
    own = f'"cytofm":{json.dumps(about, ensure_ascii=False)},' if about else ""
    handle.write(f'{{"type":"FeatureCollection",{own}"features":[')
    found = features(table, measurements or {}, origin_px0=origin_px0, name=name)
    for row, feature in enumerate(found):
        handle.write(",\n" if row else "\n")
        handle.write(
            json.dumps(feature, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        )
    handle.write("\n]}\n")


def features(
    table: NucleusTable,
    measurements: Mapping[str, NDArray[np.floating]],
    *,
    origin_px0: tuple[float, float] = (0, 0),
    name: str = "",
) -> Iterator[dict[str, Any]]:
    """Yield the Features of a table, in its order."""
    classes = [
        {"name": label, "color": list(_COLOURS[i % len(_COLOURS)])}
        for i, label in enumerate(table.classes)
    ]
    columns = {AREA: table.area_um2, PROBABILITY: table.probability, **measurements}
    for first in range(0, len(table), _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, len(table)))
        shapes = geometries(table.take(rows), origin_px0)
        measured = _measurements({key: column[rows] for key, column in columns.items()})
        for row, shape, values in zip(rows.tolist(), shapes, measured, strict=True):
            yield {
                "type": "Feature",
                "id": str(uuid.uuid5(_IDS, f"{name}/{row}")),
                "geometry": shape,
                "properties": {
                    "objectType": "detection",
                    "classification": classes[table.class_id[row]],
                    "measurements": values,
                },
            }


def _measurements(columns: Mapping[str, NDArray[np.floating]]) -> Iterator[dict[str, float]]:
    """Yield the finite values of each row by name."""
    names = list(columns)
    values = np.stack([_rounded(column) for column in columns.values()], axis=1)
    unknown = set(np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist())
    for row, numbers in enumerate(values.tolist()):
        pairs = zip(names, numbers, strict=True)
        if row in unknown:
            yield {key: value for key, value in pairs if math.isfinite(value)}
        else:
            yield dict(pairs)


def geometries(
    table: NucleusTable, origin_px0: tuple[float, float] = (0, 0)
) -> Iterator[dict[str, Any]]:
    """Yield the geometry of each row: a valid Polygon, or a Point where there is none."""
    points = _on_grid(table.contour_px0, origin_px0)
    centres = _on_grid(table.xy_px0, origin_px0).tolist()
    sure = rings.plainly_valid(points, table.contour_start).tolist()
    start, pairs = table.contour_start.tolist(), points.tolist()
    for row, centre in enumerate(centres):
        first, stop = start[row], start[row + 1]
        ring = pairs[first:stop] if sure[row] else rings.valid_ring(points[first:stop]).tolist()
        if ring:
            yield {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
        else:
            yield {"type": "Point", "coordinates": centre}


def _on_grid(xy_px0: NDArray[np.float32], origin_px0: tuple[float, float]) -> NDArray[np.float64]:
    moved = xy_px0.astype(np.float64) - np.asarray(origin_px0, np.float64)
    return np.round(moved, rings.DECIMALS)


def _rounded(column: NDArray[np.floating]) -> NDArray[np.float64]:
    """Round to `_DIGITS` significant digits."""
    values = np.asarray(column, np.float64)
    size = np.where(np.isfinite(values) & (values != 0), np.abs(values), 1.0)
    # Rounded as decimal fractions: a division by a power of ten prints short, a product long.
    digits = np.clip(_DIGITS - 1 - np.floor(np.log10(size)), 0, 15)
    rounded: NDArray[np.float64] = np.round(values * 10.0**digits) / 10.0**digits
    return rounded
