"""Stores → files of other tools."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, Paths, config_of, plugin_settings, words_of
from cytofm_cli.api.inputs import find_stores, refuse_namesakes, store_id, take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.config import Layer
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.plan import ExportPlan
from cytofm_cli.work.batch import Reporter, Status, Task

if TYPE_CHECKING:
    from cytofm_cli.exporters.product import Product


def export(
    stores: Paths,
    out: PathLike,
    to: str | Sequence[str] | None = None,
    config: ExportConfig | None = None,
    *,
    exporter_settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    fail_fast: bool = True,
    **settings: Any,
) -> list[Path]:
    """Write bags as h5, pt or h5ad files, nuclei as GeoJSON or CSV; what is up to date stays.

    Args:
        stores: stores, or folders of stores: one or several.
        out: folder for the files.
        to: kinds of files: h5, h5ad, pt, geojson, csv, spatialdata, or a plug-in's; one or
            several; None: h5.
        config: settings as a whole; instead, each may be given by its name
            (`layout="clam"`, `unit="cell"`).
        exporter_settings: settings of the exporter itself, by name.
        overwrite: make finished files anew, also with other settings.
        fail_fast: stop at the first store that fails; False: raise when all have been tried.
        **settings: fields of `ExportConfig`, or of `cytofm_cli.api.cohort.Manner`
            (`workers=4`, `shard="0/8"`, `dry_run=True`, …).

    Returns:
        The files, in the order of the stores.

    Raises:
        UsageError: no such kind of file, or a setting that has no effect on it.
        CytofmError: a store cannot be exported.
    """
    if to is not None:
        settings = {**settings, "to": tuple(words_of(to))}
    names = ("dry_run", "shard", "workers", "threads", "timeout_s", "fork", "listen")
    manner = {name: settings.pop(name) for name in names if name in settings}
    config = config_of(ExportConfig, config, settings, "export")
    outcomes = export_stores(
        stores, out, config,
        exporter_settings=exporter_settings, overwrite=overwrite, fail_fast=fail_fast, **manner,
    )  # fmt: skip
    outcomes.raise_failures()
    return [Path(made["file"]) for outcome in outcomes for made in outcome.facts["files"]]


def export_stores(
    stores: Paths,
    out: PathLike,
    config: ExportConfig,
    *,
    exporter_settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    listen: Listen | None = None,
) -> Outcomes:
    """Do what `export` does, and say what became of each store; arguments as there.

    Returns:
        One outcome a store; `facts["files"]` lists {"file", "status": "written" or "skipped"}.

    Raises:
        UsageError: as `export`; or two stores whose files would have the same names.
    """
    manner = Manner(
        overwrite=overwrite,
        dry_run=dry_run,
        shard=shard,
        workers=workers,
        threads=threads,
        timeout_s=timeout_s,
        fail_fast=fail_fast,
        fork=fork,
        listen=listen,
    )
    own = plugin_settings(exporter_settings, "exporter_settings")
    ExportPlan.of(config, own)
    found = find_stores(words_of(stores))
    refuse_namesakes(found, hint="export them to a folder each")
    paths = take_shard(found, shard, key=store_id)
    jobs = [
        ExportJob(
            slide_id=store_id(path), path=str(path), folder=Path(out), config=config, own=own,
            overwrite=overwrite, dry_run=dry_run,
        )
        for path in paths
    ]  # fmt: skip
    n_workers, _ = manner.crew(len(paths))
    return run_cohort("export", jobs, Exporting(), Path(out), manner, workers=n_workers)


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What to do with one store.

    Attributes:
        slide_id: name of the store.
        path: the store.
        folder: for the files.
        config: the settings.
        own: settings of the exporter itself.
        overwrite: make finished files anew.
        dry_run: write nothing.
    """

    slide_id: str
    path: str
    folder: Path
    config: ExportConfig
    own: Layer
    overwrite: bool = False
    dry_run: bool = False


class Exporting:
    """Exports store after store; the plan is made once. Each process gets its own."""

    def __init__(self) -> None:
        self._plan: ExportPlan | None = None

    def __call__(self, task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
        """Write the files of one store that are not there or are out of date."""
        from cytofm_cli.exporters.product import make, status_of
        from cytofm_cli.store.io import claim_step, tidy

        job: ExportJob = task.payload
        if self._plan is None:
            self._plan = ExportPlan.of(job.config, job.own)
        products = self._plan.products(
            Path(job.path), job.folder, note=report.note, report=report.progress
        )
        planned = [status_of(product, job.folder, overwrite=job.overwrite) for product in products]
        # One claim a kind: other commands may write some of them, too.
        claims = [f"export.{kind}" for kind in sorted(self._plan.chosen)]
        if job.dry_run or "written" not in planned:
            for name in () if job.dry_run else claims:
                tidy(job.folder, job.slide_id, name)
            return _told(job, products, planned)
        with contextlib.ExitStack() as held:
            for name in claims:
                held.enter_context(claim_step(job.folder, job.slide_id, name))
            made = [make(product, job.folder, overwrite=job.overwrite) for product in products]
        return _told(job, products, made)


def _told(
    job: ExportJob, products: Sequence[Product], statuses: Sequence[str]
) -> tuple[Status, dict[str, Any]]:
    from cytofm_cli.exporters.product import files_of

    status: Status = "done" if "written" in statuses else "skipped"
    return status, {"store": job.path, "files": files_of(products, statuses)}
