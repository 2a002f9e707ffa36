"""What exporters of nuclei share: the nuclei of a store with measurements, attention and scores.

What is stored of each nucleus is written as it is; shapes follow from the outlines. Pixels are
read only where the store keeps no measurements, or where that is asked for, and once for all
exporters of a store. Attention and scores of the cells go along where a RUN has scored them
(`cytofm mil score`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import ExportRequest, Note, Report
from cytofm_cli.exporters.classes import NucleiClasses, classes_run, read_classes
from cytofm_cli.exporters.maps import named_columns
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.features import CELL_RADIUS_UM, Morphometrics, measure, shape_columns
from cytofm_cli.nuclei.stitch import with_halo
from cytofm_cli.store import schema
from cytofm_cli.store.blocks import ROWS, n_nuclei, nuclei_blocks, nuclei_columns
from cytofm_cli.store.io import Store
from cytofm_cli.store.records import StepRecord
from cytofm_cli.store.tables import empty_table
from cytofm_cli.tiles.field import Field, open_field

COLUMNS = tuple(field.name for field in dataclasses.fields(Morphometrics))
SHAPES = tuple(shape_columns(empty_table(), 1.0))
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class NucleiPart:
    """Some nuclei in a row.

    Attributes:
        table: the nuclei, m rows, level-0 pixels.
        shapes: one (m,) column a measurement.
        scores: likewise attention and scores, by the name that QuPath shows.
    """

    table: NucleusTable
    shapes: Columns
    scores: Columns


@dataclass(frozen=True, eq=False)
class Nuclei:
    """What is written of a slide.

    Attributes:
        detector: whose they are.
        classes: names of the classes.
        n: how many there are.
        shapes: names of the measurements.
        scores: names of attention and scores.
        parts: gives the nuclei in order, in the memory of a block; may be called again.
    """

    detector: str
    classes: tuple[str, ...]
    n: int
    shapes: tuple[str, ...]
    scores: tuple[str, ...]
    parts: Callable[[], Iterator[NucleiPart]]


@dataclass(frozen=True)
class NucleiSource:
    """The nuclei of a store, before they are read.

    Attributes:
        settings: what else would have made other files.
        steps: provenance records of what they are made from.
        read: opens and measures them, once however often it is called.
    """

    settings: Mapping[str, Any]
    steps: Sequence[StepRecord]
    read: Callable[[], Nuclei]


def source_of(request: ExportRequest, detector: str | None = None) -> NucleiSource:
    """Find the nuclei that are wanted, and the RUN whose scores go along; reads nothing yet.

    Args:
        request: names detector and RUN.
        detector: instead of the one that it names.

    Raises:
        StoreError: no such nuclei or scores, or several and none named.
    """
    detector = request.store.which_detector(detector or request.config.detector)
    return request.once(f"nuclei/{detector}", lambda: _find(request, detector))


def _find(request: ExportRequest, detector: str) -> NucleiSource:
    store, wish = request.store, request.config.measure
    steps = [store.steps[schema.TILE_STEP], store.steps[schema.nuclei_step(detector)]]
    store.require_fresh(schema.nuclei_step(detector))
    run = _run_of(store, request.config.run, request.note)
    if run is not None:
        steps.append(store.steps[schema.attention_step(run, "cell")])
    settings: dict[str, Any] = {"detector": detector, "run": run}
    if wish is not None:
        settings["measure"] = wish
    classes = classes_run(store, detector, request.config.classes, request.note)
    if classes is not None:  # files of stores without classes are what they were
        steps.append(store.steps[schema.classes_step(classes)])
        settings["classes"] = classes
    read = functools.cache(lambda: _read(request, detector, run, classes))
    return NucleiSource(settings, steps, read)


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


def scores_of(store: Store, xy_px0: NDArray[np.float32], run: str) -> Columns:
    """Return attention and scores of the nuclei, by the name that QuPath shows.

    Args:
        store: scored by `cytofm mil score`.
        xy_px0: (m, 2), the nuclei; they must be those whose cells were scored.
        run: name of the RUN.

    Raises:
        StoreError: the scores are of other cells than these nuclei.
    """
    record, step = store.attention_record(run, "cell"), schema.attention_step(run, "cell")
    assert record is not None, "asked for after it was found"
    values_NK = store.read(f"{step}/values")
    if _of_classes(store, step, len(xy_px0)):
        return named_columns(record.columns, values_NK)
    with np.errstate(invalid="ignore"):  # what is no number is no cell's
        cells_px0 = np.round(xy_px0).astype(np.int32)
    for bag, source in store.embedding_records("cell").items():
        if source.mark != record.input_fingerprint or len(values_NK) != len(xy_px0):
            continue
        if np.array_equal(store.read(f"{bag}/xy_px0"), cells_px0):
            return named_columns(record.columns, values_NK)
    raise StoreError(
        f"{store.path}: the scores of RUN {run} are of other cells than these nuclei.",
        hint="embed the cells and score them again, or name the nuclei with --detector",
    )


def _of_classes(store: Store, step: str, n: int) -> bool:
    """Tell whether scores are of nuclei whose classes were counted, row by row these."""
    parents = store.steps[step].made_from or {}
    return any(
        name.startswith("classes/") and name in store.steps and store.shape(f"{name}/class") == (n,)
        for name in parents
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


def _read(request: ExportRequest, detector: str, run: str | None, classes_by: str | None) -> Nuclei:
    store = request.store
    scores: Columns = {}
    if run is not None:
        try:
            xy_px0 = store.read(f"{schema.nuclei_step(detector)}/xy_px0")
            scores = scores_of(store, xy_px0, run)
        except StoreError as error:
            if request.config.run is not None:
                raise
            request.note(f"warning: {error.one_line()} They are left out.")
    stored = nuclei_columns(store, detector)
    measured = _measured(request, detector, stored)
    classes = None if classes_by is None else read_classes(store, classes_by)
    scores |= {} if classes is None else classes.columns
    return Nuclei(
        detector=detector,
        classes=store.nuclei_record(detector).classes if classes is None else classes.names,
        n=n_nuclei(store, detector),
        shapes=tuple(dict.fromkeys([*SHAPES, *measured, *stored])),
        scores=tuple(scores),
        parts=lambda: _parts(request, detector, measured, scores, classes),
    )


def _measured(request: ExportRequest, detector: str, stored: Sequence[str]) -> Columns:
    """Measure on the pixels what is to be measured and not stored; nothing is measured twice."""
    missing = [name for name in COLUMNS if name not in (*SHAPES, *stored)]
    wanted = not stored if request.config.measure is None else request.config.measure
    if not wanted or not missing or not n_nuclei(request.store, detector):
        return {}
    table = request.store.nuclei(detector)
    with open_field(request.store, slides=request.config.slides) as field:
        columns = measure_all(table, field, request.report)
    return {name: columns[name] for name in missing}


def _parts(
    request: ExportRequest,
    detector: str,
    measured: Columns,
    scores: Columns,
    classes: NucleiClasses | None,
) -> Iterator[NucleiPart]:
    store, total = request.store, n_nuclei(request.store, detector)
    for block in nuclei_blocks(store, detector, ROWS):
        rows = slice(block.first, block.first + len(block.table))
        outlines = shape_columns(block.table, store.slide.mpp)
        of_pixels = {name: column[rows] for name, column in measured.items()}
        table = block.table if classes is None else classes.given(block.table, rows)
        yield NucleiPart(
            table,
            {**outlines, **of_pixels, **block.columns},
            {name: column[rows] for name, column in scores.items()},
        )
        request.report(rows.stop, total)
