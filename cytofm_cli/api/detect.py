"""Tiles → nuclei."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import Paths, config_of, plugin_settings, words_of
from cytofm_cli.api.inputs import find_stores, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.api.regions import regions_of
from cytofm_cli.config import Layer
from cytofm_cli.errors import WeightsError
from cytofm_cli.named_files import absent
from cytofm_cli.nuclei.config import DetectConfig
from cytofm_cli.registry import detectors
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.device import check_device

if TYPE_CHECKING:
    from cytofm_cli.nuclei.run import Detection, DetectJob
    from cytofm_cli.regions.files import RegionFile


def detect(
    stores: Paths,
    config: DetectConfig | None = None,
    *,
    detector_settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    gpus: int | None = None,
    on: str | None = None,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Find the nuclei of every tile of stores: centroid, area, probability, class, outline.

    Args:
        stores: stores, or folders of stores: one or several.
        config: settings as a whole; instead, each may be given by its name
            (`detector="cellvit"`).
        detector_settings: settings of the detector itself, by name.
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, gpus, on,
            listen: see `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `DetectConfig`.

    Returns:
        One outcome a store.

    Raises:
        UsageError: no such detector or device, or impossible settings.
        WeightsError: the file of weights is missing or does not fit.
        InputError: no stores.
    """
    config = config_of(DetectConfig, config, settings, "detect")
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        gpus=gpus,
        on=on,
        listen=listen,
    )
    config = with_nuclei(config, manner)
    own = plugin_settings(detector_settings, "detector_settings")
    check_detector(config, own)
    found = find_stores(words_of(stores))
    files = nuclei_of(config, [store_id(path) for path in found], manner)
    regions = regions_of(config, [store_id(path) for path in found], manner.warn)
    paths = take_shard(found, shard, key=store_id)
    n_workers, n_threads = manner.crew(len(paths))
    jobs = detect_jobs(paths, config, own, files, regions, manner, n_threads)
    return run_cohort("detect", jobs, Detecting(), found[0].parent, manner, workers=n_workers)


class Detecting:
    """Detects slide after slide; the detector stays loaded. Each process gets its own."""

    def __init__(self) -> None:
        self._detection: Detection | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Find the nuclei of one slide."""
        return self._loaded().detect(task.payload, report.progress, report.note)

    def prepare(self, job: DetectJob) -> None:
        """Load what the detector needs, so that what is wrong with it is known before any tile."""
        self._loaded().prepare(job)

    def _loaded(self) -> Detection:
        from cytofm_cli.nuclei.run import Detection

        if self._detection is None:
            self._detection = Detection()
        return self._detection


def detect_jobs(
    paths: Sequence[Path],
    config: DetectConfig,
    own: Layer,
    files: Mapping[str, Path],
    regions: Mapping[str, RegionFile],
    manner: Manner,
    threads: int,
) -> list[DetectJob]:
    """Return what to do with each store, also with those that are still to be made."""
    from cytofm_cli.nuclei.run import DetectJob
    from cytofm_cli.runs.provenance import sha256_file

    digest = functools.cache(sha256_file)
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
                regions=regions.get(store_id(path)),
                overwrite=manner.overwrite,
                dry_run=manner.dry_run,
                threads=threads,
            )
        )
    return jobs


def check_detector(config: DetectConfig, own: Layer) -> None:
    """Refuse, before any slide, a detector, device or setting that serves none of them.

    Raises:
        UsageError: it is not known, not installed, not there, or of a wrong value.
        WeightsError: its file of weights is not there, or none was given.
    """
    from cytofm_cli.nuclei.run import DetectJob, check_weights, settings_of

    job = DetectJob(slide_id="", path="", config=config, own=own)
    settings_of(job)
    check_device(config.device)
    check_weights(job)
    if config.weights is not None and not config.weights.is_file():
        what = absent(config.weights)
        raise WeightsError(f"{config.weights}: {what}.", hint="check --weights.")


def with_nuclei(config: DetectConfig, manner: Manner) -> DetectConfig:
    """Put what a detector like `import` reads in its place, whichever option gave it."""
    if config.weights is None or not detectors.find(config.detector).from_files:
        return config
    manner.warn(
        f"--detector {config.detector} has no weights: give the file or folder with --nuclei"
    )
    return replace(config, nuclei=config.weights, weights=None)


def nuclei_of(config: DetectConfig, slide_ids: Sequence[str], manner: Manner) -> dict[str, Path]:
    """Return the file of nuclei of each slide that has one, and name what is left over."""
    if config.nuclei is None:
        return {}
    from cytofm_cli.nuclei.files import match_files

    files = match_files(config.nuclei, slide_ids)
    if told := files.leftover(len(slide_ids)):
        manner.warn(told)
    return files.of_slide
