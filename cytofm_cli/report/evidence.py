"""What the store of one slide shows of an answer: quality, overview, map, and the top cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import CytofmError, InputError
from cytofm_cli.pictures.files import jpeg_bytes
from cytofm_cli.report import maps
from cytofm_cli.report.crops import CellPicture, cell_pictures, outlines_of, tile_pictures
from cytofm_cli.store import io, lineage, schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.told import narrowed_lines, quality_means

_QUALITY: Final = 74  # of JPEG: 100 slides of ten cells are to stay within one page


@dataclass(frozen=True)
class SlideJob:
    """What to read of one slide.

    Attributes:
        slide_id: its name.
        path: its store.
        run: name of the RUN's folder.
        digest: of the RUN.
        unit: of its instances.
        classes: of the RUN.
        of_class: whose instance scores are shown, where the head has some.
        pictures: also draw; else numbers alone.
        cells: how many of the top instances are shown.
        cell_um: side of the picture of a cell.
        slides: folder where the slides lie now.
    """

    slide_id: str
    path: str
    run: str
    digest: str
    unit: str
    of_class: str
    pictures: bool = True
    cells: int = 10
    cell_um: float = 40.0
    slides: Path | None = None


@dataclass(frozen=True)
class Quality:
    """What the steps measured of a slide; None where no step did.

    Attributes:
        tiles: kept.
        dropped: of the grid, not kept: no foreground, or not selected.
        damaged: of which the file has lost a part.
        foreground: mean share of foreground of the kept tiles.
        focus: median focus score of the kept tiles.
        nuclei: found.
        pen, edge, clump, saturation, blank: means over the kept tiles; None in old stores.
        narrowed: what regions and limits of quality took away, a sentence each.
    """

    tiles: int
    dropped: int
    damaged: int
    foreground: float | None
    focus: float | None
    nuclei: int | None
    pen: float | None = None
    edge: float | None = None
    clump: float | None = None
    saturation: float | None = None
    blank: float | None = None
    narrowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instance:
    """A cell or tile that the answer rests on.

    Attributes:
        rank: from 1.
        row: in its bag.
        x_px0, y_px0: centre of a cell, corner of a tile.
        value: attention or score.
        picture: None where there are no pixels.
    """

    rank: int
    row: int
    x_px0: int
    y_px0: int
    value: float
    picture: CellPicture | None = None


@dataclass(frozen=True)
class Evidence:
    """What a report shows of a slide.

    Attributes:
        slide_id: its name.
        store: where it was looked for; "" if no store is known.
        quality: None without a store.
        column: which numbers order the instances, e.g. "attention"; "" without.
        n_instances: of the bag.
        distinct: how many different values they have; 1: their order means nothing.
        instances: the top ones.
        thumbnail, map: JPEG; None where they cannot be drawn.
        made_by: the steps of the store that the answer rests on, and when they were made.
        warnings: what is missing, and why.
    """

    slide_id: str
    store: str = ""
    quality: Quality | None = None
    column: str = ""
    n_instances: int = 0
    distinct: int = 0
    instances: tuple[Instance, ...] = ()
    thumbnail: bytes | None = None
    map: bytes | None = None
    made_by: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Notes:
    lines: list[str] = field(default_factory=list)

    def tell(self, error: CytofmError) -> None:
        self.lines.append(error.one_line())


def gather(job: SlideJob) -> Evidence:
    """Read and draw what there is of a slide; what is missing is told, and no error."""
    evidence = Evidence(job.slide_id, store=job.path)
    notes = _Notes()
    try:
        store = io.open_store(Path(job.path))
        evidence = replace(evidence, quality=quality_of(store, notes.lines))
        if job.pictures:
            evidence = replace(
                evidence, thumbnail=_jpeg(maps.with_bar(maps.thumbnail(store), store))
            )
        evidence = _of_head(evidence, store, job, notes)
    except CytofmError as error:
        notes.tell(error)
    return replace(evidence, warnings=tuple(notes.lines))


def quality_of(store: Store, notes: list[str]) -> Quality:
    """Read what is known of a slide's quality, and note what is doubtful.

    Raises:
        StoreError: no tiles, or damaged.
    """
    tile, tiles = store.tile, store.tiles()
    detectors = [name for name in store.steps if name.startswith("nuclei/")]
    nuclei = None
    if len(detectors) == 1:
        nuclei = store.shape(f"{detectors[0]}/xy_px0")[0]
    if tile.foreground_unsure:
        notes.append(f"foreground unsure: {tile.foreground_unsure}")
    notes += store.slide.notes
    return Quality(
        tiles=len(tiles),
        dropped=max(0, tile.n_grid - tile.n_tiles),
        damaged=tile.n_damaged,
        foreground=_finite(tiles.foreground.mean()) if len(tiles) else None,
        focus=_finite(np.median(tiles.focus)) if len(tiles) else None,
        nuclei=nuclei,
        narrowed=tuple(narrowed_lines(tile)),
        **quality_means(tiles),
    )


def column_for(columns: Sequence[str], of_class: str) -> int:
    """Return which column of a head's maps orders the instances for a class.

    Scores of the class go before attention for it, that before attention of the slide.

    Raises:
        InputError: there is none of them.
    """
    for name in (f"score_{of_class}", f"attention_{of_class}", "attention"):
        if name in columns:
            return list(columns).index(name)
    if columns:
        return 0
    raise InputError("the head has no attention and no scores of instances.")


def _of_head(evidence: Evidence, store: Store, job: SlideJob, notes: _Notes) -> Evidence:
    """Add what the head looked at."""
    record = store.attention_record(job.run, job.unit)
    step = schema.attention_step(job.run, job.unit)
    if record is None or record.config.get("run") != job.digest:
        whose = "another RUN of this name" if record is not None else "none of this RUN"
        notes.lines.append(f"no attention: the store holds {whose}")
        return evidence
    if (why := store.why_stale(step)) is not None:
        notes.lines.append(f"no attention: what the store holds is out of date: {why}")
        return evidence
    if record.differs:
        notes.lines.append(f"scored with --allow-mixed: {'; '.join(record.differs)}")
    column = column_for(record.columns, job.of_class)
    values_N = store.read(f"{step}/values")[:, column]
    bag = lineage.rows_from(store.steps, step) or next(iter(record.made_from or ()), "")
    xy_px0 = _places(store, bag)
    top_K = top_rows(values_N, job.cells)
    evidence = replace(
        evidence,
        column=record.columns[column],
        n_instances=len(values_N),
        distinct=len(np.unique(values_N)),
        instances=_instances(xy_px0, values_N, top_K),
        made_by=tuple(f"{name}: {store.steps[name].time_utc}" for name in (bag, step) if name),
    )
    if not job.pictures:
        return evidence
    side_px0 = float(store.tile.tile_px0) if job.unit == "tile" else None
    drawn = maps.draw_map(maps.thumbnail(store), store, xy_px0, values_N, side_px0=side_px0)
    evidence = replace(evidence, map=_jpeg(maps.with_bar(drawn, store)))
    return _with_pictures(evidence, store, job, bag, top_K, xy_px0, notes)


def top_rows(values_N: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Return the rows of the highest values, highest first; of equal ones the first row first."""
    order_N = np.argsort(-values_N.astype(np.float64), kind="stable")
    return np.asarray(order_N[np.isfinite(values_N[order_N])][:count])


def detector_of(store: Store, step: str) -> str | None:
    """Name whose nuclei the rows of a step are; None: they are tiles."""
    seen: list[str] = [step]
    while seen:
        name = seen.pop()
        if name.startswith("nuclei/"):
            return name.partition("/")[2]
        if name in store.steps:
            seen += lineage.parents_of(store.steps, name)
    return None


def _places(store: Store, bag: str) -> NDArray[Any]:
    """Return where the instances of a bag lie, (N, 2) level-0 pixels."""
    if bag.startswith("embeddings/"):
        return store.read(f"{bag}/xy_px0")
    return store.nuclei_xy_px0(detector_of(store, bag))


def _instances(
    xy_px0: NDArray[Any], values_N: NDArray[np.float32], top_K: NDArray[np.int64]
) -> tuple[Instance, ...]:
    return tuple(
        Instance(rank, row, round(float(xy_px0[row, 0])), round(float(xy_px0[row, 1])),
                 float(values_N[row]))
        for rank, row in enumerate(top_K.tolist(), start=1)
    )  # fmt: skip


def _with_pictures(
    evidence: Evidence,
    store: Store,
    job: SlideJob,
    bag: str,
    top_K: NDArray[np.int64],
    xy_px0: NDArray[Any],
    notes: _Notes,
) -> Evidence:
    """Add the pictures of the top instances; where there are no pixels, say so."""
    try:
        if job.unit == "tile":
            pictures = tile_pictures(store, top_K, slides=job.slides, quality=_QUALITY)
        else:
            detector = detector_of(store, bag)
            none = [np.zeros((0, 2), np.float32)] * len(top_K)
            outlines = none if detector is None else outlines_of(store, detector, top_K)
            pictures = cell_pictures(
                store, xy_px0[top_K], outlines, cell_um=job.cell_um, slides=job.slides,
                quality=_QUALITY,
            )  # fmt: skip
    except CytofmError as error:
        notes.tell(error)
        return evidence
    drawn = zip(evidence.instances, pictures, strict=True)
    return replace(evidence, instances=tuple(replace(i, picture=p) for i, p in drawn))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    return jpeg_bytes(picture, _QUALITY)


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
