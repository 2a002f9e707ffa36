"""`cytofm detect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli.batch import Reporter, Status, Task
from cytofm_cli.cli.inputs import find_stores, store_id, take_shard
from cytofm_cli.cli.options import RunOptions, Settings, parse_settings
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.per_slide import crew_size, run_slides, tasks_with
from cytofm_cli.errors import WeightsError
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.store.schema import STORE_SUFFIX

if TYPE_CHECKING:
    from cytofm_cli.nuclei.run import Detection


def detect(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    settings: Settings = None,
    *,
    config: DetectConfig,
    run: RunOptions,
) -> None:
    """Find the nuclei of every tile: centroid, area, probability, class, outline.

    Examples:

      cytofm detect stores

      cytofm detect stores --set min_probability=0.3

      cytofm detect stores --detector cellvit --weights CellViT-256-x40-AMP.pth
    """
    from cytofm_cli.nuclei.run import DetectJob
    from cytofm_cli.provenance import sha256_file

    digest = None
    if config.weights is not None:
        if not config.weights.is_file():
            raise WeightsError(f"{config.weights}: no such file.", hint="check --weights.")
        digest = sha256_file(config.weights)
    paths = take_shard(find_stores(stores), run.shard, key=store_id)
    workers, threads = crew_size(run, len(paths))
    jobs = [
        DetectJob(
            slide_id=path.name.removesuffix(STORE_SUFFIX),
            path=str(path),
            config=config,
            own=parse_settings(settings),
            weights_sha256=digest,
            overwrite=run.overwrite,
            dry_run=run.dry_run,
            threads=threads,
        )
        for path in paths
    ]
    run_slides("detect", tasks_with(jobs), work, run, paths[0].parent, workers=workers)


_detection: list[Detection] = []  # one a child process: the detector stays loaded


def work(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Find the nuclei of one slide in a child process."""
    from cytofm_cli.nuclei.run import Detection

    if not _detection:
        _detection.append(Detection())
    return _detection[0].detect(task.payload, report.progress, report.note)


def register(app: typer.Typer) -> None:
    """Add the command."""
    register_command(app, "detect", detect)
