"""Read nuclei from GeoJSON as QuPath (all versions since 0.2) and others write it.

QuPath exports every object unless told otherwise: annotations, tiles and TMA cores are regions
and no nuclei. Cells have their nucleus apart from their outline. Derived classes are written as
a list of names, or as a class with a parent.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import polygons, rings
from cytofm_cli.nuclei.base import (
    MAX_CLASSES,
    MIN_POLYGON_POINTS,
    NUCLEUS,
    NucleusTable,
    empty_table,
    make_table,
)
from cytofm_cli.nuclei.geojson import PROBABILITY

Note = Callable[[str], None]
# Kinds of objects that are regions, by their plain name, and how a message calls them.
REGIONS: Final = {
    "annotation": "annotation(s)", "tile": "tile(s)", "tmacore": "TMA core(s)", "root": "root(s)",
}  # fmt: skip
_OBJECTS: Final = frozenset((*REGIONS, "detection", "cell"))
# Other programs than QuPath put the class beside `properties.classification`.
_CLASS_KEYS: Final = ("class", "class_name", "label", "type")
_SLACK: Final = 1e-6  # a probability that another program rounded


@dataclass(frozen=True)
class Contents:
    """What a GeoJSON file holds.

    Attributes:
        table: its nuclei, in pixels of the file, not sorted.
        origin_px0: the point of level 0 that is its (0, 0), if the file says so.
    """

    table: NucleusTable
    origin_px0: tuple[float, float] | None


@dataclass(frozen=True)
class _Object:
    """One Feature: its place in messages, its kind ("" if it has none), and itself."""

    where: str
    kind: str
    feature: dict[str, Any]


def read(path: Path, mpp: float, note: Note, *, annotations: bool = False) -> Contents:
    """Read polygons and points.

    A FeatureCollection, a list of Features or one Feature; children within objects too. A
    MultiPolygon is one nucleus: its largest part. Holes are ignored. Of a polygon that crosses
    itself the largest loop is taken. Each point of a MultiPoint is a nucleus.

    Args:
        path: the file.
        mpp: µm/px of the file's pixels, for the areas.
        note: told what was left out or mended.
        annotations: take annotations as nuclei.

    Raises:
        InputError: not GeoJSON, an unknown geometry, a polygon that is none, a probability
            outside 0..1 (the message names the feature), or regions only.
    """
    content = _load(path)
    objects = list(_objects(_list_features(content, path), str(path)))
    nuclei = _without_regions(objects, path, note, annotations=annotations)
    found = [row for nucleus in nuclei for row in _rows(nucleus)]
    table = _table(path, found, mpp, note) if found else empty_table()
    return Contents(table.validate(str(path)), _origin(content))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error


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


def _origin(content: Any) -> tuple[float, float] | None:
    """Return what our own export says of its origin."""
    about = content.get("cytofm") if isinstance(content, dict) else None
    origin = about.get("origin_px0") if isinstance(about, dict) else None
    if isinstance(origin, list) and len(origin) == 2 and all(_is_number(v) for v in origin):
        return float(origin[0]), float(origin[1])
    return None


def _objects(features: list[Any], where: str) -> Iterator[_Object]:
    """Yield every Feature, and those within it: QuPath nests detections in annotations."""
    for number, feature in enumerate(features):
        at = f"{where}: feature {number}" if ": feature" not in where else f"{where}.{number}"
        if not isinstance(feature, dict):
            raise InputError(f"{at} has no geometry.")
        yield _Object(at, _kind(feature), feature)
        properties = _properties(feature)
        children = properties.get("childObjects", properties.get("children"))
        if isinstance(children, list):
            yield from _objects(children, at)


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _kind(feature: dict[str, Any]) -> str:
    """Return which kind of QuPath object a Feature is, "" if it does not say."""
    properties = _properties(feature)
    for word in (properties.get("objectType"), properties.get("object_type")):
        if isinstance(word, str):
            return plain_kind(word)
    # QuPath 0.2 kept it in the id; later ones read `type` too, which others use for the class.
    for word in (properties.get("type"), feature.get("id")):
        if isinstance(word, str) and plain_kind(word) in _OBJECTS:
            return plain_kind(word)
    return ""


def plain_kind(word: str) -> str:
    """Return the kind of a QuPath object: `TMA core`, `tmaCore`, `TMACoreObject` → tmacore."""
    plain = word.casefold().replace(" ", "").replace("_", "")
    return plain.removeprefix("path").removesuffix("object")


def _without_regions(
    objects: list[_Object], path: Path, note: Note, *, annotations: bool
) -> list[_Object]:
    regions = {
        kind: name for kind, name in REGIONS.items() if kind != "annotation" or not annotations
    }
    nuclei = [found for found in objects if found.kind not in regions]
    counts = Counter(found.kind for found in objects if found.kind in regions)
    told = ", ".join(f"{count} {regions[kind]}" for kind, count in sorted(counts.items()))
    if objects and not nuclei:
        # QuPath's counting tool makes annotations of points, and a point is no region.
        nuclei = [found for found in objects if found.kind == "annotation" and _is_points(found)]
        if len(nuclei) == counts["annotation"] == len(objects):
            return nuclei
        raise InputError(
            f"{path}: holds {told} and neither detections nor cells.",
            hint="export detections or cells; --set annotations=true takes annotations as nuclei",
        )
    if told:
        note(f"{path}: {told} left out: regions, no nuclei")
    return nuclei


def _is_points(found: _Object) -> bool:
    geometry = found.feature.get("geometry")
    return isinstance(geometry, dict) and geometry.get("type") in ("Point", "MultiPoint")


@dataclass(frozen=True, eq=False)
class _Row:
    where: str
    ring: NDArray[np.float64]
    xy: NDArray[np.float64]
    probability: float
    name: str


def _rows(found: _Object) -> list[_Row]:
    """Return the nuclei of a Feature: one, or one for each point of a MultiPoint."""
    feature, where = found.feature, found.where
    # QuPath keeps a cell's nucleus apart from its outline.
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    if not isinstance(geometry, dict):
        raise InputError(f"{where} has no geometry.")
    properties = _properties(feature)
    probability = _probability(properties.get("measurements"), where)
    name = _class_name(properties)
    return [_Row(where, ring, xy, probability, name) for ring, xy in _shapes(geometry, where)]


def _table(path: Path, rows: list[_Row], mpp: float, note: Note) -> NucleusTable:
    classes = tuple(dict.fromkeys(row.name for row in rows))
    if len(classes) > MAX_CLASSES:
        raise InputError(f"{path}: {len(classes)} classes; a table holds {MAX_CLASSES}.")
    outlines = _mended(rows, path, note)
    index = {name: i for i, name in enumerate(classes)}
    return make_table(
        np.array(
            [polygons.centroid(o) if len(o) else r.xy for r, o in zip(rows, outlines, strict=True)]
        ),
        np.array([polygons.area(o) * mpp**2 if len(o) else math.nan for o in outlines]),
        polygons=outlines,
        probability=np.array([row.probability for row in rows]),
        class_id=np.array([index[row.name] for row in rows]),
        classes=classes,
    )


def _mended(rows: list[_Row], path: Path, note: Note) -> list[NDArray[np.float64]]:
    """Return the polygons, valid and counter-clockwise; empty for points."""
    outlines = [row.ring for row in rows]
    start = np.concatenate([[0], np.cumsum([len(ring) for ring in outlines])]).astype(np.int64)
    sure = rings.plainly_valid(np.concatenate([np.zeros((0, 2)), *outlines]), start)
    n_mended = 0
    for row in np.flatnonzero(~sure & (np.diff(start) > 0)).tolist():
        ring = outlines[row]
        if rings.is_valid(ring):
            outlines[row] = rings.counter_clockwise(ring)
            continue
        outlines[row] = rings.valid_ring(ring)
        n_mended += 1
        if not len(outlines[row]):
            raise InputError(f"{rows[row].where}: its polygon encloses no area.")
    if n_mended:
        note(
            f"{path}: {n_mended} polygon(s) crossed themselves; of these the largest loop is taken"
        )
    return outlines


def _class_name(properties: dict[str, Any]) -> str:
    """Return the name of a class: of an object, a string, a list of names, or with a parent."""
    name = _named(properties.get("classification"))
    others = (properties.get(key) for key in _CLASS_KEYS)
    words = (word for word in others if isinstance(word, str) and plain_kind(word) not in _OBJECTS)
    return name or next((word.strip() for word in words if word.strip()), "") or NUCLEUS


def _named(classification: Any) -> str:
    if isinstance(classification, dict):
        own = classification.get("name")
        own = classification.get("names") if own in (None, "") else own
        # QuPath before 0.4: {"name": "Positive", "parentClass": {"name": "Tumor"}}.
        parts = (_named(classification.get("parentClass")), _named(own))
        return ": ".join(part for part in parts if part)
    if isinstance(classification, list):
        return ": ".join(part for part in map(_named, classification) if part)
    if classification is None or isinstance(classification, bool):
        return ""
    return str(classification).strip()


def _probability(measurements: Any, where: str) -> float:
    """Find a detection probability in QuPath's measurements: a mapping, or a list of pairs.

    NaN and null are what QuPath writes where there is none: 1, as without the measurement.
    """
    if isinstance(measurements, list):
        measurements = {m.get("name"): m.get("value") for m in measurements if isinstance(m, dict)}
    if not isinstance(measurements, dict):
        return 1.0
    value: Any = measurements.get(PROBABILITY)
    if isinstance(value, str) and value.strip().casefold() != "nan":
        raise InputError(f"{where}: {PROBABILITY} {value!r} is not a number.")
    if not _is_number(value) or math.isnan(value):
        return 1.0
    if not -_SLACK <= value <= 1 + _SLACK:
        raise InputError(f"{where}: {PROBABILITY} {value:g} is outside 0..1.")
    return min(max(float(value), 0.0), 1.0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    except (KeyError, IndexError, TypeError, ValueError) as error:
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
