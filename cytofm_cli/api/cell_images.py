"""Images of single cells → stores, one a slide or patient; see `cytofm_cli.tiles.cells`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from cytofm_cli.api.cohort import WARNING, Manner, alone, run_cohort
from cytofm_cli.api.inputs import take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.tiles.cell_table import CellTable, read_cells
from cytofm_cli.tiles.cells import CellsJob, Sheet, Survey, refuse_bad, side_for, survey
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.tiles.quality_config import LIMITS
from cytofm_cli.words import named
from cytofm_cli.work.batch import Reporter, Status, Task

# Cut-out cells leave at least this share of their images' borders flat (malaria cells: 0.88). Crops
# of fields on glass that is overexposed come up to a half.
_CUT_OUT: Final = 2 / 3
_FILLS: Final = {"black": 0, "white": 255}
# What chooses tiles of a slide has no meaning where the tiles are given.
_OF_SLIDES: Final = (
    *("stride_px", "select", "max_tiles", "reader", "foreground", "focus"),
    *("regions", *LIMITS.values()),
)


def tile_cells(
    cells: Path,
    images: Sequence[str],
    out: Path,
    config: TileConfig,
    manner: Manner,
    *,
    fill: str = "auto",
) -> Outcomes:
    """Make stores of images of cells; arguments as of `cytofm_cli.api.tile.tile`.

    Raises:
        UsageError: settings that mean nothing here.
        InputError: a table or images that cannot be used.
    """
    _refuse_settings(config, images, fill)
    mpp = config.slide_mpp or config.target_mpp
    table = read_cells(cells, Path(images[0]) if images else None, mpp=mpp)
    for note in (*table.notes, *_about_mpp(table, config)):
        manner.say(note)
    sheet = _sheet(table, config, manner, fill)
    source = "table" if table.stated else "--slide-mpp" if config.slide_mpp else "assumed"
    names = take_shard([*table.of_store], manner.shard, key=lambda name: name)
    n_workers, n_threads = manner.crew(len(names))
    jobs = [
        CellsJob(
            slide_id=name,
            path=str(table.source),
            stores=out,
            cells=table.of_store[name],
            classes=table.classes,
            sheet=sheet,
            config=config,
            mpp_source=source,
            overwrite=manner.overwrite,
            dry_run=manner.dry_run,
            threads=n_threads,
        )
        for name in names
    ]
    return run_cohort("tile", jobs, tile_one, out, manner, workers=n_workers)


def tile_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Make one store: its tiles, then the points of its cells."""
    from cytofm_cli.nuclei.given import keep_given
    from cytofm_cli.tiles.cell_run import tile_cells as tile_store

    job: CellsJob = task.payload
    status, facts = tile_store(job, report.progress, report.note)
    if job.dry_run:
        return status, facts
    labels = [cell.label for cell in job.cells]
    made = keep_given(Path(facts["store"]), labels, job.classes, overwrite=job.overwrite)
    return "done" if made else status, facts


def survey_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Look at all images of a table."""
    cells, mpp, tolerance = task.payload
    return "done", {"survey": survey(cells, mpp, tolerance)}


def _refuse_settings(config: TileConfig, images: Sequence[str], fill: str) -> None:
    defaults = {field.name: field.default for field in fields(TileConfig)}
    for name in _OF_SLIDES:
        if (value := getattr(config, name)) != defaults[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} {value} means nothing with --cells: every image "
                "becomes one tile.",
                hint="leave it out",
            )
    if config.pixels == "none":
        raise UsageError(
            "--pixels none means nothing with --cells: the store is the place of its pixels.",
            hint="leave it out, or --pixels jpeg",
        )
    if len(images) > 1:
        raise UsageError(
            f"--cells takes one folder, .tar or .zip of images, not {len(images)}.",
            hint="name in the table what lies where, and leave the inputs out",
        )
    if fill not in ("auto", "border", *_FILLS) and not (fill.isdigit() and int(fill) <= 255):
        raise UsageError(
            f"--cell-fill {fill}: choose auto, border, black, white or a grey level 0 to 255."
        )


def _about_mpp(table: CellTable, config: TileConfig) -> list[str]:
    """Say what is assumed of resolutions."""
    n, silent = table.n, table.n - table.stated
    if not silent:
        return []
    if config.slide_mpp is not None:
        return [f"{silent} of {n} images taken at --slide-mpp {config.slide_mpp:g} µm/px"]
    return [
        f"{WARNING}{silent} of {n} images state no resolution: taken as they are, as "
        f"{config.target_mpp:g} µm/px; --slide-mpp or a column mpp says what they have"
    ]


def _sheet(table: CellTable, config: TileConfig, manner: Manner, fill: str) -> Sheet:
    """Settle tile size and background for all stores of a table.

    Raises:
        InputError: no image can be read, or all are coarser than the tiles.
    """
    cells = tuple(cell for of in table.of_store.values() for cell in of)
    mpp, tolerance = config.target_mpp, config.mpp_tolerance
    own = {cell.mpp for cell in cells}
    if len(own) == 1 and abs(min(own) / mpp - 1) <= tolerance:
        mpp = min(own)  # taken as it is, as the level of a slide
    task = Task("images", str(table.source), (cells, mpp, tolerance))
    outcome = alone(task, survey_one, manner)
    if outcome.error is not None:
        raise outcome.error
    found: Survey = outcome.facts["survey"]
    if not found.largest_px and min(own) > mpp * (1 + tolerance):
        raise InputError(
            f"{table.source}: all images are coarser than the wanted {mpp:.4g} µm/px "
            f"({min(own):.4g} and more).",
            hint=f"--mpp {max(own):.4g} makes them alike; nothing is ever enlarged",
        )
    if not found.largest_px:
        refuse_bad(found.bad, len(cells))
    side = config.tile_px or side_for(found.largest_px)
    around = _background(found, fill)
    sheet = Sheet(side_px=side, mpp=mpp, tolerance=tolerance, **around)
    _say(sheet, found, config, fill, manner)
    _say_twins(table, found.twins, manner)
    return sheet


def _background(found: Survey, fill: str) -> dict[str, Any]:
    """Settle what surrounds a cell: its own background, another that is painted, or its border."""
    own = None
    if max(found.black, found.white) >= _CUT_OUT:
        own = 0 if found.black >= found.white else 255
    if fill == "border" or (fill == "auto" and own is None):
        return {"apart": "border", "fill": 255}
    level = own if fill == "auto" else _FILLS[fill] if fill in _FILLS else int(fill)
    repaint = own if own not in (None, level) else None
    return {"apart": "cut-out", "fill": level, "repaint": repaint}


def _say(sheet: Sheet, found: Survey, config: TileConfig, fill: str, manner: Manner) -> None:
    """Say how large tiles are, and what surrounds a cell."""
    size = f"tiles of {sheet.side_px} px"
    if config.tile_px is None:
        size += f" for the largest image of {found.largest_px} px (--tile-px sets another)"
    share = max(found.black, found.white)
    around = "filled with the colour of each image's border"
    if sheet.apart == "cut-out":
        known = "as given" if fill != "auto" else f"as {share:.0%} of the images' borders are"
        around = f"filled with grey level {sheet.fill}, {known}, which is not counted as tissue"
    if sheet.repaint is not None:
        around += f"; the images' own background, grey level {sheet.repaint}, is painted over"
    manner.say(f"cells: {size}, {around}")


def _say_twins(table: CellTable, twins: Sequence[tuple[int, int]], manner: Manner) -> None:
    """Say which images have the same bytes: copies of one cell under several names."""
    cells = [(store, cell) for store, of in table.of_store.items() for cell in of]
    within, apart = [], []
    for first, other in twins:
        (store, cell), (of, copy) = cells[first], cells[other]
        label = ", with another label" if cell.label != copy.label else ""
        pair = f"{copy.file} = {cell.file}{label}"
        if store == of:
            within.append(pair)
        else:
            apart.append(f"{pair} ({of} and {store})")
    for pairs, what in (
        (apart, "of another slide: a cell of two patients can be learnt from and judged at once"),
        (within, "of their slide, and count twice"),
    ):
        if pairs:
            manner.say(f"{WARNING}{len(pairs)} images are copies of others {what}: {named(pairs)}")
