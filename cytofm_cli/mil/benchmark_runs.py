"""The runs of a benchmark, made in processes of this machine or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from cytofm_cli.errors import CytofmError, StoppedError
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.run import train_run
from cytofm_cli.work import batch
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.joining import join
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import catch_signals

# Name, settings, bags, labels, folder of the RUN, what to tune, whether to make it anew.
RunTask = tuple[str, dict[str, Any], Path, Path, Path, dict[str, Sequence[str]], bool]
Progress = Callable[[int, int, str], None]


def tasks_of(
    jobs: Mapping[str, MilConfig],
    bags: Mapping[str, Path],
    labels: Path,
    runs: Mapping[str, Path],
    tune: Mapping[str, Sequence[str]],
    *,
    overwrite: bool,
) -> list[RunTask]:
    """Return what each run is told, one model at a time in each.

    Args:
        jobs: settings, by name of the run.
        bags, runs: folders of its bags and of itself, by that name.
        labels, tune, overwrite: as of `cytofm_cli.mil.run.train_run`.
    """
    return [
        (
            name,
            asdict(replace(job, workers=1)),
            bags[name],
            labels,
            runs[name],
            dict(tune),
            overwrite,
        )
        for name, job in jobs.items()
    ]


def make_here(tasks: Sequence[RunTask], workers: int | None, progress: Progress) -> dict[str, str]:
    """Make runs in processes of this machine; return what failed, by name, and why.

    Args:
        tasks: at least one.
        workers: runs at a time; None: a processor each, or a GPU each.
        progress: called with (runs done, of how many, name of the last).

    Raises:
        StoppedError: a signal asked to stop.
    """
    devices = {task[1]["device"] for task in tasks}
    as_fits = cpu_count() if devices == {"cpu"} else len(devices)
    workers = min(workers or as_fits, len(tasks))
    reasons: dict[str, str | None] = {}
    if workers == 1:
        for task in tasks:
            reasons[task[0]] = make_one(task)
            progress(len(reasons), len(tasks), task[0])
        return _failed(tasks, reasons)
    with catch_signals() as stop, closing(in_processes(make_one, tasks, workers, stop)) as ended:
        for task, reason in ended:
            reasons[task[0]] = reason
            progress(len(reasons), len(tasks), task[0])
    return _failed(tasks, reasons)


def make_on(
    where: str,
    tasks: Sequence[RunTask],
    workers: int | None,
    warn: Callable[[str], None],
    progress: Progress,
) -> dict[str, str]:
    """Make runs on a cluster, the next on each worker that is free; return what failed and why.

    Args:
        where, workers, warn: as of `cytofm_cli.work.joining.join`.
        tasks, progress: as of `make_here`.

    Raises:
        StoppedError: a signal asked to stop.
        TryAgainError: the scheduler is gone.
    """
    from cytofm_cli.work.engine import run_on

    def connect() -> AbstractContextManager[Any]:
        return join(where, workers=workers, threads=None, warn=warn)

    each = [batch.Task(name=task[0], path=str(task[4]), payload=task) for task in tasks]
    reasons: dict[str, str | None] = {}
    # A model that trains for hours says nothing: no run is given up for being silent.
    events = run_on(
        connect, make_there, each, workers=workers, threads=None, stall_s=inf, explain=lost_there
    )
    with closing(events):
        for event in events:
            if isinstance(event, batch.Outcome):
                told = event.error.one_line() if event.error is not None else None
                reasons[event.slide_id] = told or event.facts.get("reason")
                progress(len(reasons), len(tasks), event.slide_id)
    return _failed(tasks, reasons)


def make_there(task: batch.Task, _report: batch.Reporter) -> tuple[batch.Status, dict[str, Any]]:
    """Make a run on a worker of a cluster."""
    return "done", {"reason": make_one(task.payload)}


def lost_there(task: batch.Task, loss: batch.Loss) -> CytofmError:
    """Say that a run was lost with its worker."""
    return CytofmError(f"{task.path}: its worker {loss.why}.", hint="run the same command again.")


def make_one(task: RunTask) -> str | None:
    """Make a run; return why it failed, if it did."""
    _, settings, bags, labels, run, tune, overwrite = task
    try:
        train_run(MilConfig(**settings), bags, labels, run, tune=tune, overwrite=overwrite)
    except StoppedError:
        raise
    except CytofmError as error:
        return error.one_line()
    return None


def _failed(tasks: Sequence[RunTask], reasons: Mapping[str, str | None]) -> dict[str, str]:
    """Return the reasons of those that failed, in the order of the tasks."""
    named = {task[0]: reasons[task[0]] for task in tasks}
    return {name: reason for name, reason in named.items() if reason is not None}
