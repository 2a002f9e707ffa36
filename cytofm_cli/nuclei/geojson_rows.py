"""Nuclei of GeoJSON objects as a table: the rings of a piece of a file all at once.

A MultiPolygon is one nucleus: its largest part. Holes are ignored. Of a polygon that crosses
itself the largest loop is taken. Each point of a MultiPoint is a nucleus.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import polygons, rings
from cytofm_cli.nuclei.base import MIN_POLYGON_POINTS, NucleusTable
from cytofm_cli.regions.geojson_objects import (
    GeoObject,
    class_name,
    probability_of,
    properties_of,
)

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Nuclei as they stand in the file, one entry each.

    Attributes:
        where: their place in messages.
        ring: float64 (k, 2), a polygon without repeated points; empty for a point.
        xy: float64 (2,), the point, or one of the polygon.
        probability: in [0, 1].
        names: of the classes.
    """

    where: list[str]
    ring: list[Points]
    xy: list[Points]
    probability: list[float]
    names: list[str]


def rows_of(objects: Sequence[GeoObject]) -> Rows:
    """Return the nuclei of objects: one each, or one for each point of a MultiPoint.

    Raises:
        InputError: an object that is no nucleus; names it.
    """
    geometries = [_geometry(found) for found in objects]
    shapes = _plain_polygons(geometries)
    rows = Rows([], [], [], [], [])
    for number, (found, geometry) in enumerate(zip(objects, geometries, strict=True)):
        properties = properties_of(found.feature)
        probability = probability_of(properties.get("measurements"), found.where)
        name = class_name(properties)
        for ring, xy in shapes[number] if shapes else _shapes(geometry, found.where):
            rows.where.append(found.where)
            rows.ring.append(ring)
            rows.xy.append(xy)
            rows.probability.append(probability)
            rows.names.append(name)
    return rows


def table_of(rows: Rows, class_id: NDArray[np.uint8], mpp: float) -> tuple[NucleusTable, int]:
    """Return nuclei as a table, and how many polygons crossed themselves.

    Args:
        rows: the nuclei.
        class_id: (m,); the names of the table's classes are the caller's.
        mpp: µm/px of the file's pixels, for the areas.

    Raises:
        InputError: a polygon that encloses no area; names it.
    """
    outlines, n_mended = _mended(rows)
    length = np.array([len(ring) for ring in outlines], np.int64)
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    points = np.concatenate([np.zeros((0, 2)), *outlines])
    xy = np.where(
        (length > 0)[:, None], polygons.centroids(points, start), np.array(rows.xy).reshape(-1, 2)
    )
    area = np.where(length > 0, np.abs(polygons.signed_areas(points, start)) * mpp**2, np.nan)
    table = NucleusTable(
        xy_px0=xy.astype(np.float32),
        area_um2=area.astype(np.float32),
        probability=np.array(rows.probability, np.float32),
        class_id=class_id,
        contour_px0=points.astype(np.float32),
        contour_start=start,
    )
    return table, n_mended


def _geometry(found: GeoObject) -> dict[str, Any]:
    # QuPath keeps a cell's nucleus apart from its outline.
    geometry = found.feature.get("nucleusGeometry") or found.feature.get("geometry")
    if not isinstance(geometry, dict):
        raise InputError(f"{found.where} has no geometry.")
    return geometry


def _plain_polygons(
    geometries: Sequence[dict[str, Any]],
) -> list[list[tuple[Points, Points]]] | None:
    """Return what `_shapes` gives for each geometry, all at once; None if one is not so plain.

    Which one, and what is wrong with it, `_shapes` says.
    """
    try:
        if any(geometry["type"] != "Polygon" for geometry in geometries):
            return None
        raw = [geometry["coordinates"][0] for geometry in geometries]
        points = np.array(list(itertools.chain.from_iterable(raw)), np.float64)
        length = np.array([len(ring) for ring in raw])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    flat = points.ndim != 2 or points.shape[1] < 2
    if flat or not length.all() or not np.isfinite(points).all():
        return None
    points = points[:, :2]
    first = np.cumsum(length) - length
    following = np.arange(1, len(points) + 1)
    following[first + length - 1] = first
    kept = np.any(points != points[following], axis=1)
    left = np.add.reduceat(kept.astype(np.int64), first)
    if left.min() < MIN_POLYGON_POINTS:
        return None
    points, ends = points[kept], np.cumsum(left)
    bounds = zip((ends - left).tolist(), ends.tolist(), strict=True)
    return [[(points[start:stop], points[start])] for start, stop in bounds]


def _mended(rows: Rows) -> tuple[list[Points], int]:
    """Return the polygons, valid and counter-clockwise, and how many of them were not valid.

    Empty for points. Most are seen to be valid at once, whichever way they turn.
    """
    length = [len(ring) for ring in rows.ring]
    start = np.concatenate([[0], np.cumsum(length)]).astype(np.int64)
    area = polygons.signed_areas(np.concatenate([np.zeros((0, 2)), *rows.ring]), start)
    pairs = zip(rows.ring, (area < 0).tolist(), strict=True)
    outlines = [ring[::-1] if clockwise else ring for ring, clockwise in pairs]
    sure = rings.plainly_valid(np.concatenate([np.zeros((0, 2)), *outlines]), start)
    n_mended = 0
    for row in np.flatnonzero(~sure & (np.diff(start) > 0)).tolist():
        ring = rows.ring[row]
        if rings.is_valid(ring):
            outlines[row] = rings.counter_clockwise(ring)
            continue
        outlines[row] = rings.valid_ring(ring)
        n_mended += 1
        if not len(outlines[row]):
            raise InputError(f"{rows.where[row]}: its polygon encloses no area.")
    return outlines, n_mended


def _shapes(
    geometry: dict[str, Any], where: str
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return (ring (k, 2), empty for a point; a point) for each nucleus of a geometry."""
    kind = geometry.get("type")
    none = np.zeros((0, 2))
    try:
        coordinates = geometry["coordinates"]
        if kind == "Point":
            return [(none, _points([coordinates])[0])]
        if kind == "MultiPoint":
            return [(none, point) for point in _points(coordinates)]
        if kind == "Polygon":
            ring = _ring(coordinates[0])
        elif kind == "MultiPolygon":
            ring = max((_ring(part[0]) for part in coordinates), key=polygons.area)
        else:
            raise InputError(
                f"{where} is a {kind}; nuclei are Polygon, MultiPolygon, Point or MultiPoint.",
                hint="export detections or cells only",
            )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: its coordinates are not those of a {kind}.") from error
    return [(ring, ring[0])]


def _points(coordinates: Any) -> NDArray[np.float64]:
    points = np.array([[float(value) for value in point[:2]] for point in coordinates])
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("not points")
    return points


def _ring(coordinates: Any) -> NDArray[np.float64]:
    points = _points(coordinates)
    points = points[np.any(points != np.roll(points, -1, axis=0), axis=1)]
    if len(points) < MIN_POLYGON_POINTS:
        raise ValueError("fewer than three points")
    return points
