"""Write the nuclei of a store for other tools: GeoJSON for QuPath, CSV with morphometrics.

Both hold class, confidence, area, morphometrics, and the attention and scores of the cells where
a RUN has scored them (`cytofm mil score`). The morphometrics are measured once for both.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.maps import named_columns
from cytofm_cli.exporters.product import Product
from cytofm_cli.nuclei import geojson
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.features import CELL_RADIUS_UM, Morphometrics, measure
from cytofm_cli.nuclei.place import BOUNDS, Note, SlidePlace, place_of
from cytofm_cli.nuclei.stitch import with_halo
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import Field, open_field
from cytofm_cli.work.files import replacing

COLUMNS = tuple(field.name for field in dataclasses.fields(Morphometrics))
Report = Callable[[int, int], None]
Columns = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What of a store is exported, and how.

    Attributes:
        detector: whose nuclei; None takes the only ones there are.
        run: RUN whose attention goes with them; None takes the only one there is, if any.
        origin: "bounds": coordinates of the GeoJSON are counted from the corner of the scanned
            part, as in QuPath; "slide": from that of level 0.
        slides: folder where the slides lie now, for stores without pixels.
    """

    detector: str | None = None
    run: str | None = None
    origin: str = BOUNDS
    slides: Path | None = None


@dataclass(frozen=True, eq=False)
class _Nuclei:
    """What is written of a slide."""

    detector: str
    table: NucleusTable
    shapes: Columns
    scores: Columns


def products(
    store: Store,
    folder: Path,
    kinds: Sequence[str],
    wanted: Wanted,
    note: Note,
    report: Report | None = None,
) -> list[Product]:
    """Return the files of nuclei of a store, and how to make them.

    Args:
        store: with nuclei.
        folder: of the export.
        kinds: "geojson", "csv".
        wanted: what goes in.
        note: told what is assumed.
        report: told how many tiles of how many are measured.

    Raises:
        StoreError: no such nuclei or scores, or several and none named.
    """
    detector = store.which_detector(wanted.detector)
    steps = [store.steps[schema.TILE_STEP], store.steps[schema.nuclei_step(detector)]]
    run = _run_of(store, wanted.run, note)
    if run is not None:
        steps.append(store.steps[schema.attention_step(run, "cell")])
    # Nothing is read or measured until a file has to be written, and then once for all of them.
    read = functools.cache(lambda: _read(store, detector, run, wanted, note, report))
    settings = {"detector": detector, "run": run}
    made = []
    for kind in kinds:
        path = folder / f"{store.slide_id}.{kind}"
        if kind == "geojson":
            place = place_of(store, note, slides=wanted.slides)
            write = functools.partial(_write_geojson, path, read, place, wanted.origin, note)
            made.append(Product([path], {**settings, "origin": wanted.origin}, steps, write))
        else:
            write_csv = functools.partial(_write_csv, path, read, store.slide_id)
            made.append(Product([path], settings, steps, write_csv))
    return made


def measure_all(
    table: NucleusTable, field: Field, report: Report | None = None
) -> dict[str, NDArray[np.float32]]:
    """Measure every nucleus on the pixels around it, tile by tile.

    Args:
        table: nuclei in level-0 pixels.
        field: the tiles as one image.
        report: told how many tiles of how many are measured.

    Returns:
        One float32 (m,) column a measurement; NaN for a nucleus outside every tile.
    """
    columns = {name: np.full(len(table), np.nan, np.float32) for name in COLUMNS}
    placed = table.moved(scale=1 / field.downsample)
    left = np.ones(len(table), bool)
    boxes = sorted(set(field.boxes))
    for number, box in enumerate(boxes):
        if report is not None:
            report(number, len(boxes))
        x, y = placed.xy_px0.T
        inside = (x >= box.x) & (x <= box.x + box.w) & (y >= box.y) & (y <= box.y + box.h)
        rows = np.flatnonzero(inside & left)
        if not len(rows):
            continue
        left[rows] = False
        outer = with_halo(box, round(2 * CELL_RADIUS_UM / field.mpp), field.size_px)
        found = measure(placed.take(rows), field.read(outer), outer, field.mpp)
        for name in COLUMNS:
            columns[name][rows] = getattr(found, name)
    return columns


def scores_of(store: Store, table: NucleusTable, run: str) -> Columns:
    """Return attention and scores of the nuclei, by the name that QuPath shows.

    Args:
        store: scored by `cytofm mil score`.
        table: the nuclei; they must be those whose cells were scored.
        run: name of the RUN.

    Raises:
        StoreError: the scores are of other cells than these nuclei.
    """
    record, step = store.attention_record(run, "cell"), schema.attention_step(run, "cell")
    assert record is not None, "asked for after it was found"
    values_NK = store.read(f"{step}/values")
    xy_px0 = np.round(table.xy_px0).astype(np.int32)
    for bag, source in store.embedding_records("cell").items():
        if source.mark != record.input_fingerprint or len(values_NK) != len(table):
            continue
        if np.array_equal(store.read(f"{bag}/xy_px0"), xy_px0):
            return named_columns(record.columns, values_NK)
    raise StoreError(
        f"{store.path}: the scores of RUN {run} are of other cells than these nuclei.",
        hint="embed the cells and score them again, or name the nuclei with --detector",
    )


def _run_of(store: Store, run: str | None, note: Note) -> str | None:
    """Return the RUN whose scores go along, None for none.

    Raises:
        StoreError: the one that is named has not scored cells here.
    """
    found = [step.split("/") for step in sorted(store.steps) if step.startswith("attention/")]
    there = [name for _, name, unit in found if unit == "cell"]
    if run is None:
        if len(there) > 1:
            note(f"{store.slide_id}: scored by {', '.join(there)}; --run NAME adds its scores")
        return there[0] if len(there) == 1 else None
    if run not in there:
        tiles = any(name == run for _, name, _ in found)
        what = f"RUN {run} has scored tiles here, no cells" if tiles else f"no scores of RUN {run}"
        named = ", ".join(there)
        hint = f"there are those of {named}" if there else "make them with `cytofm mil score`"
        raise StoreError(f"{store.path}: {what}.", hint=hint)
    return run


def _read(
    store: Store,
    detector: str,
    run: str | None,
    wanted: Wanted,
    note: Note,
    report: Report | None,
) -> _Nuclei:
    table = store.nuclei(detector)
    scores: Columns = {}
    try:
        scores = scores_of(store, table, run) if run is not None else {}
    except StoreError as error:
        if wanted.run is not None:
            raise
        note(f"warning: {error.one_line()} They are left out.")
    with open_field(store, slides=wanted.slides) as field:
        return _Nuclei(detector, table, {**measure_all(table, field, report)}, scores)


def _write_geojson(
    path: Path, read: Callable[[], _Nuclei], place: SlidePlace, origin: str, note: Note
) -> None:
    nuclei = read()
    corner = place.frame(origin)[:2]
    if place.bounds_px0 is not None:
        other = f"--origin {'slide' if origin == BOUNDS else BOUNDS}"
        whose = "the scanned part, as in QuPath" if origin == BOUNDS else "level 0"
        note(f"{path.name}: coordinates begin at the corner of {whose} {corner}; {other} otherwise")
    about = {"slide_id": place.slide_id, "detector": nuclei.detector, "origin_px0": list(corner)}
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as handle:
        geojson.write(
            handle,
            nuclei.table,
            {**nuclei.shapes, **nuclei.scores},
            origin_px0=corner,
            name=f"{place.slide_id}/{nuclei.detector}",
            about=about,
        )


def _write_csv(path: Path, read: Callable[[], _Nuclei], slide_id: str) -> None:
    nuclei = read()
    table = nuclei.table
    numbers = (table.probability, table.area_um2, *nuclei.shapes.values())
    head = ("x_px0", "y_px0", "class", "probability", "area_um2")
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["slide_id", *head, *nuclei.shapes, *nuclei.scores])
        for row in range(len(table)):
            x, y = table.xy_px0[row]
            writer.writerow(
                [slide_id, f"{x:.2f}", f"{y:.2f}", table.classes[table.class_id[row]]]
                + [_number(column[row], ".4f") for column in numbers]
                + [_number(column[row], ".6g") for column in nuclei.scores.values()]
            )


def _number(value: float, form: str) -> str:
    return "" if np.isnan(value) else format(value, form)
