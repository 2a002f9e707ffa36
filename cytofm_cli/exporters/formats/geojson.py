"""Nuclei as GeoJSON, which QuPath opens: outlines, classes, measurements, attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from cytofm_cli.exporters.base import ExportRequest, Note
from cytofm_cli.exporters.nuclei import Nuclei, source_of
from cytofm_cli.exporters.product import Product
from cytofm_cli.nuclei import geojson
from cytofm_cli.nuclei.place import BOUNDS, SlidePlace, place_of
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.work.files import replacing


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the nuclei of a store."""
    source, origin = source_of(request), request.config.origin or BOUNDS
    path = request.folder / f"{request.store.slide_id}.geojson"
    place = place_of(request.store, request.note, slides=request.config.slides)
    write = functools.partial(_write_geojson, path, source.read, place, origin, request.note)
    return [Product([path], {**source.settings, "origin": origin}, source.steps, write)]


def _write_geojson(
    path: Path, read: Callable[[], Nuclei], place: SlidePlace, origin: str, note: Note
) -> None:
    nuclei = read()
    corner = place.frame(origin)[:2]
    if place.bounds_px0 is not None:
        other = f"--origin {'slide' if origin == BOUNDS else BOUNDS}"
        whose = "the scanned part, as in QuPath" if origin == BOUNDS else "level 0"
        note(f"{path.name}: coordinates begin at the corner of {whose} {corner}; {other} otherwise")
    about = {"slide_id": place.slide_id, "detector": nuclei.detector, "origin_px0": list(corner)}
    blocks = (geojson.Block(p.table, {**p.shapes, **p.scores}) for p in nuclei.parts())
    with replacing(path) as partial, partial.open("wb") as handle:
        geojson.write(
            handle,
            blocks,
            origin_px0=corner,
            name=f"{place.slide_id}/{nuclei.detector}",
            about=about,
        )


PLUGIN = ExporterPlugin(
    make=products,
    summary="nuclei as GeoJSON for QuPath",
    what=("nuclei",),
    options=("unit", "detector", "run", "classes", "measure", "origin"),
    sample=samples({}, {"origin": "slide"}, {"unit": "cell", "measure": False}),
)
