"""Read nuclei from GeoJSON as QuPath (all versions since 0.2) and others write it.

QuPath exports every object unless told otherwise: annotations, tiles and TMA cores are regions
and no nuclei. Cells have their nucleus apart from their outline. Derived classes are written as
a list of names, or as a class with a parent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import geojson_rows
from cytofm_cli.nuclei.base import MAX_CLASSES, NucleusTable, concatenate
from cytofm_cli.regions.geojson_objects import REGIONS, GeoObject, is_number, is_points, objects_of
from cytofm_cli.regions.geojson_stream import Pieces

Note = Callable[[str], None]


@dataclass(frozen=True)
class Contents:
    """What a GeoJSON file holds.

    Attributes:
        table: its nuclei, in pixels of the file, not sorted.
        origin_px0: the point of level 0 that is its (0, 0), if the file says so.
    """

    table: NucleusTable
    origin_px0: tuple[float, float] | None


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
    pieces = Pieces(path)
    reading = _Reading(path, mpp, annotations=annotations)
    for features in pieces:
        if not isinstance(features, list):
            raise InputError(
                f"{path}: not GeoJSON: no FeatureCollection and no list of Features.",
                hint="in QuPath: File, Export objects as GeoJSON",
            )
        reading.add(features)
    return Contents(reading.table(note).validate(str(path)), _origin(pieces.content))


class _Reading:
    """Takes Features, piece by piece, and keeps their nuclei."""

    def __init__(self, path: Path, mpp: float, *, annotations: bool) -> None:
        self._path, self._mpp = path, mpp
        self._regions = {k: v for k, v in REGIONS.items() if k != "annotation" or not annotations}
        self._counts: Counter[str] = Counter()
        self._n_features = self._n_mended = 0
        self._classes: dict[str, int] = {}
        self._tables: list[NucleusTable] = []
        # QuPath's counting tool makes annotations of points, and a point is no region: they are
        # the nuclei of a file that holds nothing else. None: it does.
        self._points: list[GeoObject] | None = []

    def add(self, features: list[Any]) -> None:
        """Take the next Features of the file."""
        objects = list(objects_of(features, str(self._path), self._n_features))
        self._n_features += len(features)
        nuclei = [found for found in objects if found.kind not in self._regions]
        regions = [found for found in objects if found.kind in self._regions]
        self._counts.update(found.kind for found in regions)
        if self._points is not None:
            only = not nuclei and all(o.kind == "annotation" and is_points(o) for o in regions)
            self._points = [*self._points, *regions] if only else None
        self._keep(nuclei)

    def table(self, note: Note) -> NucleusTable:
        """Return all nuclei, and say what was left out or mended.

        Raises:
            InputError: there are regions alone, or too many classes.
        """
        told = ", ".join(f"{n} {self._regions[kind]}" for kind, n in sorted(self._counts.items()))
        if self._points:
            self._keep(self._points)
        elif self._counts and not self._tables:
            raise InputError(
                f"{self._path}: holds {told} and neither detections nor cells.",
                hint="export detections or cells; --set annotations=true takes annotations as "
                "nuclei",
            )
        elif told:
            note(f"{self._path}: {told} left out: regions, no nuclei")
        if self._n_mended:
            note(
                f"{self._path}: {self._n_mended} polygon(s) crossed themselves; of these the "
                "largest loop is taken"
            )
        classes = tuple(self._classes)
        return concatenate([replace(table, classes=classes) for table in self._tables])

    def _keep(self, nuclei: list[GeoObject]) -> None:
        if not nuclei:
            return
        rows = geojson_rows.rows_of(nuclei)
        for name in rows.names:
            self._classes.setdefault(name, len(self._classes))
        if len(self._classes) > MAX_CLASSES:
            raise InputError(
                f"{self._path}: more than {MAX_CLASSES} classes, and a table holds {MAX_CLASSES}."
            )
        ids = np.array([self._classes[name] for name in rows.names], np.uint8)
        table, n_mended = geojson_rows.table_of(rows, ids, self._mpp)
        self._n_mended += n_mended
        self._tables.append(table)


def _origin(content: Any) -> tuple[float, float] | None:
    """Return what our own export says of its origin."""
    about = content.get("cytofm") if isinstance(content, dict) else None
    origin = about.get("origin_px0") if isinstance(about, dict) else None
    if isinstance(origin, list) and len(origin) == 2 and all(is_number(v) for v in origin):
        return float(origin[0]), float(origin[1])
    return None
