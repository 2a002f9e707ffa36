"""What exporters of nuclei share: the nuclei of a store with morphometrics, attention and scores.

Attention and scores of the cells go along where a RUN has scored them (`cytofm mil score`). The
morphometrics are measured once for all exporters of a store.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import ExportRequest, Note, Report
from cytofm_cli.exporters.maps import named_columns
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.features import CELL_RADIUS_UM, Morphometrics, measure
from cytofm_cli.nuclei.stitch import with_halo
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.records import StepRecord
from cytofm_cli.tiles.field import Field, open_field

COLUMNS = tuple(field.name for field in dataclasses.fields(Morphometrics))
Columns = dict[str, NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class Nuclei:
    """What is written of a slide.

    Attributes:
        detector: whose they are.
        table: the nuclei, m rows, level-0 pixels.
        shapes: one float32 (m,) column a measurement.
        scores: likewise attention and scores, by the name that QuPath shows.
    """

    detector: str
    table: NucleusTable
    shapes: Columns
    scores: Columns


@dataclass(frozen=True)
class NucleiSource:
    """The nuclei of a store, before they are read.

    Attributes:
        settings: what else would have made other files.
        steps: provenance records of what they are made from.
        read: reads and measures them, once however often it is called.
    """

    settings: Mapping[str, Any]
    steps: Sequence[StepRecord]
    read: Callable[[], Nuclei]


def source_of(request: ExportRequest) -> NucleiSource:
    """Find the nuclei that are wanted, and the RUN whose scores go along; reads nothing yet.

    Raises:
        StoreError: no such nuclei or scores, or several and none named.
    """
    return request.once("nuclei", lambda: _find(request))


def _find(request: ExportRequest) -> NucleiSource:
    store = request.store
    detector = store.which_detector(request.config.detector)
    steps = [store.steps[schema.TILE_STEP], store.steps[schema.nuclei_step(detector)]]
    run = _run_of(store, request.config.run, request.note)
    if run is not None:
        steps.append(store.steps[schema.attention_step(run, "cell")])
    read = functools.cache(lambda: _read(request, detector, run))
    return NucleiSource({"detector": detector, "run": run}, steps, read)


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


def _read(request: ExportRequest, detector: str, run: str | None) -> Nuclei:
    store = request.store
    table = store.nuclei(detector)
    scores: Columns = {}
    try:
        scores = scores_of(store, table, run) if run is not None else {}
    except StoreError as error:
        if request.config.run is not None:
            raise
        request.note(f"warning: {error.one_line()} They are left out.")
    with open_field(store, slides=request.config.slides) as field:
        return Nuclei(detector, table, {**measure_all(table, field, request.report)}, scores)
