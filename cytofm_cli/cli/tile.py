"""`cytofm tile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cytofm_cli.cli.inputs import check_reader, find_slides, take_shard
from cytofm_cli.cli.options import Out, RunOptions
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import crew_size, run_slides, tasks_with
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.work.batch import Reporter, Status, Task


def tile(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Slides, folders, globs, or - for a list on stdin.")
    ] = None,
    out_folder: Out = Path("stores"),
    manifest: Annotated[
        Path | None, typer.Option(help="Table slide_id,path[,mpp] instead of, or besides, inputs.")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the mask and the chosen tiles.")
    ] = None,
    *,
    config: TileConfig,
    run: RunOptions,
) -> None:
    """Tile slides into one Zarr store a slide.

    Examples:

      cytofm tile slides/ -o stores

      cytofm tile fields/*.jpg -o stores --slide-mpp 0.25 --tile-px 256

      cytofm tile slides/ -o stores --select random --max-tiles 100
    """
    from cytofm_cli.tiles.config import TileJob

    check_reader(config.reader)
    refs = take_shard(find_slides(inputs or [], manifest), run.shard, key=lambda ref: ref.slide_id)
    workers, threads = crew_size(run, len(refs))
    jobs = [
        TileJob(
            slide_id=ref.slide_id,
            path=ref.path,
            mpp=ref.mpp,
            stores=out_folder,
            config=config,
            overwrite=run.overwrite,
            dry_run=run.dry_run,
            preview=preview,
            threads=threads,
        )
        for ref in refs
    ]
    run_slides("tile", tasks_with(jobs), work, run, out_folder, workers=workers)


def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Tile one slide in a child process."""
    from cytofm_cli.tiles.run import tile_slide

    return tile_slide(task.payload, report.progress, report.note)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "tile", tile)
