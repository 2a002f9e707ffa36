"""Write nuclei as GeoJSON that QuPath opens, and read such files.

One Feature a nucleus, in a FeatureCollection (RFC 7946 with pixel coordinates, as QuPath has
it): geometry Polygon (closed, counter-clockwise) or Point; `properties.objectType` "detection",
`properties.classification.name`, `properties.measurements`. Coordinates are level-0 pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import polygons
from cytofm_cli.nuclei.base import (
    MIN_POLYGON_POINTS,
    NUCLEUS,
    NucleusTable,
    empty_table,
    make_table,
)

PROBABILITY: Final = "Detection probability"
AREA: Final = "Area µm^2"
# Colours that colour-blind eyes tell apart (Okabe and Ito, 2008), by class.
_COLOURS: Final = (
    (0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66), (204, 121, 167), (86, 180, 233),
)  # fmt: skip


def write(
    handle: TextIO,
    table: NucleusTable,
    measurements: Mapping[str, NDArray[np.floating]] | None = None,
) -> None:
    """Write a table, one Feature a line, in constant memory.

    Args:
        handle: open for writing text as UTF-8.
        table: coordinates in level-0 pixels.
        measurements: further columns (m,), by the name that QuPath shows; values that are not
            finite are left out, as JSON has no word for them.
    """
    handle.write('{"type":"FeatureCollection","features":[')
    for row, feature in enumerate(features(table, measurements or {})):
        handle.write(",\n" if row else "\n")
        json.dump(feature, handle, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    handle.write("\n]}\n")


def features(
    table: NucleusTable, measurements: Mapping[str, NDArray[np.floating]]
) -> Iterator[dict[str, Any]]:
    """Yield the Features of a table, in its order."""
    columns = {AREA: table.area_um2, PROBABILITY: table.probability, **measurements}
    for row in range(len(table)):
        class_id = int(table.class_id[row])
        values = {name: round(float(column[row]), 4) for name, column in columns.items()}
        yield {
            "type": "Feature",
            "geometry": _geometry(table.polygon(row), table.xy_px0[row]),
            "properties": {
                "objectType": "detection",
                "classification": {
                    "name": table.classes[class_id],
                    "color": list(_COLOURS[class_id % len(_COLOURS)]),
                },
                "measurements": {k: v for k, v in values.items() if math.isfinite(v)},
            },
        }


def read(path: Path, mpp: float) -> NucleusTable:
    """Read polygons and points from a GeoJSON file as QuPath writes it.

    A FeatureCollection, a list of Features or one Feature. A MultiPolygon is one nucleus: its
    largest part. Holes are ignored. Other geometries are an error.

    Args:
        path: the file.
        mpp: µm/px of level 0, for the areas.

    Raises:
        InputError: not GeoJSON, an unknown geometry, or a polygon that is none; the message
            names the feature.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    found = _list_features(content, path)
    if not found:
        return empty_table()
    rows = [_row(feature, f"{path}: feature {i}", mpp) for i, feature in enumerate(found)]
    classes = tuple(dict.fromkeys(row["name"] for row in rows))
    if len(classes) > 256:
        raise InputError(f"{path}: {len(classes)} classes; a table holds 256.")
    table = make_table(
        np.array([row["xy"] for row in rows]),
        np.array([row["area"] for row in rows]),
        polygons=[row["ring"] for row in rows],
        probability=np.array([row["probability"] for row in rows]),
        class_id=np.array([classes.index(row["name"]) for row in rows]),
        classes=classes,
    )
    return table.validate(str(path)).sorted()


def _geometry(ring: NDArray[np.float32], xy: NDArray[np.float32]) -> dict[str, Any]:
    def pair(point: NDArray[np.floating]) -> list[float]:
        # 1/100 px is finer than any outline, and float32 text would be twice as long.
        return [round(float(point[0]), 2), round(float(point[1]), 2)]

    if len(ring) < MIN_POLYGON_POINTS:
        return {"type": "Point", "coordinates": pair(xy)}
    x, y = ring.astype(np.float64).T
    turns = float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    points = [pair(point) for point in (ring if turns > 0 else ring[::-1])]
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}


def _list_features(content: Any, path: Path) -> list[Any]:
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, dict) and content.get("type") == "Feature":
        content = [content]
    if not isinstance(content, list):
        raise InputError(
            f"{path}: not GeoJSON: no FeatureCollection and no list of Features.",
            hint="in QuPath: File, Export objects as GeoJSON",
        )
    return content


def _row(feature: Any, where: str, mpp: float) -> dict[str, Any]:
    if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
        raise InputError(f"{where} has no geometry.")
    # QuPath keeps a cell's nucleus apart from its outline.
    geometry = feature.get("nucleusGeometry") or feature["geometry"]
    properties = feature.get("properties") or {}
    ring, xy = _shape(geometry, where)
    classification = properties.get("classification") or {}
    name = classification.get("name") if isinstance(classification, dict) else None
    return {
        "ring": ring,
        "xy": xy,
        "area": polygons.area(ring) * mpp**2 if len(ring) else float("nan"),
        "probability": _probability(properties.get("measurements")),
        "name": str(name) if name else NUCLEUS,
    }


def _probability(measurements: Any) -> float:
    """Find a detection probability in QuPath's measurements: a mapping, or a list of pairs."""
    if isinstance(measurements, list):
        measurements = {m.get("name"): m.get("value") for m in measurements if isinstance(m, dict)}
    value = measurements.get(PROBABILITY) if isinstance(measurements, dict) else None
    return min(max(float(value), 0.0), 1.0) if isinstance(value, (int, float)) else 1.0


def _shape(geometry: Any, where: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a ring (k, 2), empty for a point, and the centroid."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    try:
        coordinates = geometry["coordinates"]
        if kind == "Point":
            return np.zeros((0, 2)), _points([coordinates])[0]
        if kind == "Polygon":
            ring = _ring(coordinates[0])
        elif kind == "MultiPolygon":
            ring = max((_ring(part[0]) for part in coordinates), key=polygons.area)
        else:
            raise InputError(
                f"{where} is a {kind}; nuclei are Polygon, MultiPolygon or Point.",
                hint="export detections or cells only",
            )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: its coordinates are not those of a {kind}.") from error
    return ring, polygons.centroid(ring)


def _points(coordinates: Any) -> NDArray[np.float64]:
    points = np.array([[float(value) for value in point[:2]] for point in coordinates])
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("not points")
    return points


def _ring(coordinates: Any) -> NDArray[np.float64]:
    points = _points(coordinates)
    if len(points) > 1 and np.array_equal(points[0], points[-1]):
        points = points[:-1]
    if len(points) < MIN_POLYGON_POINTS:
        raise ValueError("fewer than three points")
    return points
