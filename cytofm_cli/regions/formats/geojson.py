"""GeoJSON as QuPath exports it: level-0 pixels, from the corner of the part that was scanned.

Polygons and MultiPolygons with their holes; annotations, tiles and TMA cores of QuPath, and what
says nothing of its kind. Detections and cells are nuclei; points and lines enclose nothing: they
are left out. The class is as for nuclei, derived classes "Tumor: Positive".
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import BOUNDS, UNCLASSIFIED, Drawn, Region, Ring, ring_of
from cytofm_cli.regions.geojson_objects import (
    REGIONS,
    GeoObject,
    class_name,
    is_number,
    objects_of,
    properties_of,
)  # fmt: skip
from cytofm_cli.regions.geojson_stream import Pieces

_UNITS: Final = {
    "px": "px", "pixel": "px", "pixels": "px",
    "um": "um", "µm": "um", "μm": "um", "micron": "um", "microns": "um", "micrometer": "um",
    "micrometers": "um", "micrometre": "um", "micrometres": "um",
}  # fmt: skip
_UNIT_KEYS: Final = ("unit", "units", "coordinate_unit", "coordinateUnit")


def read(path: Path) -> Drawn:
    """Return the regions of a file; see the module's text.

    Raises:
        InputError: no GeoJSON, or coordinates that are none; names the feature.
    """
    pieces = Pieces(path)
    regions: list[Region] = []
    left_out, n_features = Counter[str](), 0
    for features in pieces:
        if not isinstance(features, list):
            raise InputError(
                f"{path}: not GeoJSON: no FeatureCollection and no list of Features.",
                hint="in QuPath: File, Export objects as GeoJSON",
            )
        for found in objects_of(features, str(path), n_features):
            what = _no_region(found)
            if what is not None:
                left_out[what] += 1
                continue
            regions += _regions(found)
        n_features += len(features)
    return Drawn(
        regions=tuple(regions),
        left_out=dict(left_out),
        origin=_origin(pieces.content) or BOUNDS,
        unit=_unit(pieces.content, path),
    )


def _no_region(found: GeoObject) -> str | None:
    """Say what an object is that is no region; None for a region."""
    if found.kind in ("detection", "cell"):
        return "nuclei"
    if found.kind and found.kind not in (*REGIONS, "feature"):
        return f"object(s) of kind {found.kind}"
    geometry = found.feature.get("geometry")
    if geometry is None:  # GeoJSON's own way to say that it lies nowhere
        return "object(s) without a place"
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in ("Polygon", "MultiPolygon"):
        return None
    if kind in ("Point", "MultiPoint"):
        return "point(s)"
    if kind in ("LineString", "MultiLineString"):
        return "line(s)"
    raise InputError(
        f"{found.where} is a {kind}; regions are Polygon or MultiPolygon.",
        hint="export annotations only",
    )


def _regions(found: GeoObject) -> list[Region]:
    """Return one region for each part of a geometry."""
    properties, geometry = properties_of(found.feature), found.feature["geometry"]
    name = class_name(properties, UNCLASSIFIED)
    try:
        coordinates = geometry["coordinates"]
        parts = [coordinates] if geometry["type"] == "Polygon" else coordinates
        rings = [tuple(_ring(ring) for ring in part) for part in parts]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{found.where}: its coordinates are not those of a {geometry['type']}."
        ) from error
    if not rings or not all(rings):
        raise InputError(f"{found.where}: encloses nothing: it has no coordinates.")
    return [Region(name=name, rings=part, where=found.where) for part in rings]


def _ring(coordinates: Any) -> Ring:
    return ring_of([(float(point[0]), float(point[1])) for point in coordinates])


def _origin(content: Any) -> tuple[float, float] | None:
    """Return what our own exports say of their origin."""
    about = content.get("cytofm") if isinstance(content, dict) else None
    origin = about.get("origin_px0") if isinstance(about, dict) else None
    if isinstance(origin, list) and len(origin) == 2 and all(is_number(v) for v in origin):
        return float(origin[0]), float(origin[1])
    return None


def _unit(content: Any, path: Path) -> str:
    """Return the unit that a file names; GeoJSON has none of its own, and QuPath's is the pixel."""
    if not isinstance(content, dict):
        return "px"
    word = next((content[key] for key in _UNIT_KEYS if isinstance(content.get(key), str)), "px")
    if word.strip().casefold() not in _UNITS:
        raise InputError(f"{path}: is in {word!r}; regions are in pixels.", hint="export in pixels")
    return _UNITS[word.strip().casefold()]
