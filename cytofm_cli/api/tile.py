"""Slides → tiles: one store a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, path_of, words_of
from cytofm_cli.api.inputs import check_reader, find_slides, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.api.regions import regions_of
from cytofm_cli.errors import UsageError
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.work.batch import Reporter, Status, Task


def tile(
    slides: Paths | None = None,
    out: PathLike = "stores",
    config: TileConfig | None = None,
    *,
    manifest: PathLike | None = None,
    cells: PathLike | None = None,
    cell_fill: str = "auto",
    preview: PathLike | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    on: str | None = None,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Tile slides into one store a slide; finished ones are skipped.

    Args:
        slides: slides, folders, globs, URLs: one or several.
        out: folder of the stores.
        config: settings as a whole; instead, each may be given by its name (`tile_px=256`).
        manifest: table slide_id,path[,mpp] of slides, instead of `slides` or besides.
        cells: images of single cells instead of slides: a table file[,slide_id,label,mpp,x,y], or
            a folder, .tar or .zip of images. Then `slides` may name the folder or archive that
            holds the table's files, and each slide_id becomes a store with a tile for each image.
        cell_fill: what surrounds a cell on its tile: "black", "white" or a grey level for cells
            that are cut out, "border" for the colour of each image's border, "auto" to look.
        preview: folder for pictures of the mask and the chosen tiles.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, on, listen:
            see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `TileConfig`.

    Returns:
        One outcome a slide, also for those that failed: `.stores`, `.failed`,
        `.raise_failures()`.

    Raises:
        UsageError: impossible settings.
        InputError: no slides, or a manifest that cannot be used.
        OutputError: `out` cannot be written.
    """
    config = config_of(TileConfig, config, settings, "tile")
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        on=on,
        listen=listen,
    )
    if cells is not None:
        return _tile_cells(
            cells,
            words_of(slides),
            Path(out),
            config,
            manner,
            cell_fill,
            manifest=manifest,
            preview=preview,
        )
    check_reader(config.reader)
    refs = find_slides(words_of(slides), path_of(manifest), warn=manner.warn)
    regions = regions_of(config, [ref.slide_id for ref in refs], manner.warn)
    refs = take_shard(refs, shard, key=lambda ref: ref.slide_id)
    n_workers, n_threads = manner.crew(len(refs))
    jobs = [
        TileJob(
            slide_id=ref.slide_id,
            path=ref.path,
            mpp=ref.mpp,
            stores=Path(out),
            config=config,
            overwrite=overwrite,
            dry_run=dry_run,
            preview=path_of(preview),
            threads=n_threads,
            regions=regions.get(ref.slide_id),
        )
        for ref in refs
    ]
    return run_cohort("tile", jobs, tile_one, Path(out), manner, workers=n_workers)


def _tile_cells(
    cells: PathLike,
    images: list[str],
    out: Path,
    config: TileConfig,
    manner: Manner,
    fill: str,
    **of_slides: PathLike | None,
) -> Outcomes:
    from cytofm_cli.api.cell_images import tile_cells

    for name, value in of_slides.items():
        if value is not None:
            raise UsageError(f"--{name} means nothing with --cells.", hint="leave it out")
    return tile_cells(Path(cells), images, out, config, manner, fill=fill)


def tile_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Tile one slide."""
    from cytofm_cli.tiles.run import tile_slide

    return tile_slide(task.payload, report.progress, report.note)
