"""Settings → slides of simulated cells whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.given import PathLike, config_of
from cytofm_cli.api.inputs import take_shard
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import UsageError
from cytofm_cli.simulate.check import check_preset
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.preset import load_preset
from cytofm_cli.work.batch import Note, Reporter, Status, Task
from cytofm_cli.work.files import output_errors


def simulate_slides(
    out: PathLike,
    config: SimulateConfig | None = None,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    shard: str | None = None,
    workers: int | None = None,
    threads: int | None = None,
    timeout_s: float = 300.0,
    fail_fast: bool = False,
    fork: bool = False,
    listen: Listen | None = None,
    **settings: Any,
) -> Outcomes:
    """Simulate a cohort: slides, labels, cells, and the posterior of each label given its cells.

    Slides that are done stay. `labels.csv`, `cells.csv`, `posterior.csv` and `simulate.json`
    appear when all of them are.

    Args:
        out: folder of the cohort.
        config: settings as a whole; instead, each may be given by its name (`patients=10`).
        overwrite, dry_run, shard, workers, threads, timeout_s, fail_fast, fork, listen: see
            `cytofm_cli.api.cohort.Manner`.
        **settings: fields of `SimulateConfig`.

    Returns:
        One outcome a slide, `path` being its file.

    Raises:
        UsageError: impossible settings, no such preset, or `overwrite` with a `shard`.
        ConfigMismatchError: `out` is a cohort of other settings, or something else.
        DiskFullError: there is not enough room.
    """
    from cytofm_cli.runs.folder import begin, refuse_changes
    from cytofm_cli.runs.record import changes
    from cytofm_cli.simulate.cohort import make_cohort
    from cytofm_cli.simulate.run import SimulateJob
    from cytofm_cli.simulate.tables import RUN, check_space, finish, record_of
    from cytofm_cli.units import human_bytes

    config = config_of(SimulateConfig, config, settings, "simulate_slides")
    if overwrite and shard is not None:
        raise UsageError(
            f"{out}: --overwrite with --shard: each part would remove what the others have made.",
            hint="remove the folder, and run the parts without --overwrite",
        )
    preset = check_preset(load_preset(config.preset), config.preset)
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
    folder, record = Path(out), record_of(config, preset)
    former = RUN.former(folder, overwrite=overwrite)
    if former is not None and not overwrite:
        settled = {name: former[name] for name in RUN.sections}
        refuse_changes(folder, changes(settled, record), overwrite="begins anew")
    cohort = make_cohort(config, preset)
    n_workers, n_threads = manner.crew(len(cohort))
    jobs = [
        SimulateJob(
            slide=slide,
            folder=folder,
            config=config,
            preset=preset,
            threads=n_threads,
            dry_run=dry_run,
        )
        for slide in cohort
    ]
    own = take_shard(jobs, shard, key=lambda job: job.slide_id)
    n_bytes = check_space(folder, own)
    if listen is not None and n_bytes:
        listen(Note("", f"simulate: {len(own)} slides, about {human_bytes(n_bytes)}"))
    if not dry_run:
        with output_errors(folder):
            begin(folder, record, overwrite=overwrite)
    outcomes = run_cohort("simulate", own, simulate_one, folder, manner, workers=n_workers)
    if not dry_run:
        with output_errors(folder):
            finish(folder, jobs)
    return outcomes


def simulate_one(task: Task, report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Simulate one slide."""
    from cytofm_cli.simulate.run import simulate_slide

    return simulate_slide(task.payload, report.progress)
