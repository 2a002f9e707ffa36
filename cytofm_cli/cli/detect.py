"""`cytofm detect`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytofm_cli import registry
from cytofm_cli.cli.inputs import find_stores, store_id, take_shard
from cytofm_cli.cli.options import RunOptions, SetWords, parse_settings
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.cli.per_slide import crew_size, run_slides, tasks_with
from cytofm_cli.config import Layer
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.device import check_device

if TYPE_CHECKING:
    from cytofm_cli.nuclei.run import Detection


def detect(
    stores: Annotated[list[str], typer.Argument(help="Stores, or folders of stores.")],
    settings: SetWords = None,
    *,
    config: DetectConfig,
    run: RunOptions,
) -> None:
    """Find the nuclei of every tile: centroid, area, probability, class, outline.

    Examples:

      cytofm detect stores

      cytofm detect stores --set min_probability=0.3

      cytofm detect stores --detector cellvit --weights CellViT-256-x40-AMP.pth

      cytofm detect stores --detector import --nuclei folder-of-geojson
    """
    from cytofm_cli.nuclei.run import DetectJob
    from cytofm_cli.runs.provenance import sha256_file

    config = _with_nuclei(config)
    own = parse_settings(settings)
    _check_detector(config, own)
    found = find_stores(stores)
    files = _nuclei_of(config, [store_id(path) for path in found])
    if config.weights is not None and not config.weights.is_file():
        raise WeightsError(f"{config.weights}: no such file.", hint="check --weights.")
    digest = functools.cache(sha256_file)
    paths = take_shard(found, run.shard, key=store_id)
    workers, threads = crew_size(run, len(paths))
    jobs = []
    for path in paths:
        read = files.get(store_id(path)) or config.weights
        jobs.append(
            DetectJob(
                slide_id=store_id(path),
                path=str(path),
                config=config,
                own=own,
                weights_sha256=digest(read) if read else None,
                nuclei=files.get(store_id(path)),
                overwrite=run.overwrite,
                dry_run=run.dry_run,
                threads=threads,
            )
        )
    run_slides("detect", tasks_with(jobs), work, run, paths[0].parent, workers=workers)


def _check_detector(config: DetectConfig, own: Layer) -> None:
    """Refuse, before any slide, a detector, device or setting that serves none of them.

    Raises:
        UsageError: it is not known, not installed, not there, or of a wrong value.
    """
    from cytofm_cli.nuclei.run import DetectJob, settings_of

    settings_of(DetectJob(slide_id="", path="", config=config, own=own))
    check_device(config.device)


def _with_nuclei(config: DetectConfig) -> DetectConfig:
    """Put what a detector like `import` reads in its place, whichever option gave it.

    Raises:
        UsageError: `import` without a file, or a file for another detector.
    """
    if not registry.detectors.find(config.detector).from_files:
        if config.nuclei is not None:
            raise UsageError(
                f"--nuclei is for the detector import, not for {config.detector!r}.",
                hint="add --detector import",
            )
        return config
    if config.weights is None:
        return config
    out.warn("--detector import has no weights: give the file or folder with --nuclei")
    return replace(config, nuclei=config.weights, weights=None)


def _nuclei_of(config: DetectConfig, slide_ids: Sequence[str]) -> dict[str, Path]:
    """Return the file of nuclei of each slide that has one, and name what is left over."""
    if config.nuclei is None:
        return {}
    from cytofm_cli.nuclei.files import match_files

    files = match_files(config.nuclei, slide_ids)
    if files.unmatched:
        more = f" and {len(files.unmatched) - 5} more" if len(files.unmatched) > 5 else ""
        out.warn(
            f"{len(files.unmatched)} belong to none of the {len(slide_ids)} slides: "
            f"{', '.join(files.unmatched[:5])}{more}"
        )
    return files.of_slide


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
