"""Do one step for many slides: here, in forked children, or in a process of their own."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cytofm_cli.api.failures import FailureLog, explain
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.errors import CytofmError, CytofmWarning, UsageError
from cytofm_cli.work.batch import Event, Note, Outcome, Task, Work, attempt, run_batch
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.device import OnGpus
from cytofm_cli.work.files import output_errors
from cytofm_cli.work.joining import check_place, join
from cytofm_cli.work.shard import resolve_shard

# A slide that another process holds is looked at again before the step says "held".
_LOOKS_AT_HELD = 3
_BETWEEN_LOOKS_S = 1.0
WARNING = "warning: "  # what a `Note` to be heeded starts with


@dataclass(frozen=True)
class Started:
    """So many slides are begun; said again for those that other processes held."""

    n_slides: int


Listen = Callable[[Event | Started], None]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the slides of a step are done; nothing here changes a result.

    Attributes:
        overwrite: make finished steps anew, also with other settings.
        dry_run: say what would be done, write nothing.
        shard: do the i-th of n parts, "i/n"; "slurm": that of this task of a Slurm array.
        workers: slides at a time, each in a process of its own; None: in this process, one after
            the other; with `fork`, as fits.
        threads: processors to use; None: all allowed.
        timeout_s: give a slide up after so long without progress; not in this process.
        fail_fast: raise the error of the first slide that fails.
        fork: fork the children off this process, which then must have no threads (no libvips, no
            torch): a command line's. Else they are forked off a fresh interpreter.
        gpus: compute on so many GPUs, one worker on each, unless `workers` says how many.
        on: workers of dask.distributed on other machines: address of a scheduler, its scheduler
            file, or a batch system to submit them to (`cytofm_cli.work.joining`). `workers` is
            then how many; `threads`, for each, are those of the worker unless said. A dry run
            asks nobody: it is done here.
        only_reads: what is done writes nothing, and keeps no list of failures.
        listen: called with `Started`, `Progress`, `Note` and `Outcome`, in this process; None:
            warnings and failures become Python warnings.
    """

    overwrite: bool = False
    dry_run: bool = False
    shard: str | None = None
    workers: int | None = None
    threads: int | None = None
    timeout_s: float = 300.0
    fail_fast: bool = False
    fork: bool = False
    gpus: int | None = None
    on: str | None = None
    only_reads: bool = False
    listen: Listen | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shard", resolve_shard(self.shard))
        if self.on is not None:
            if self.gpus is not None:
                raise UsageError(
                    "--on and --gpus: workers of a cluster have one GPU each.",
                    hint="leave --gpus out, and start a worker for each GPU",
                )
            check_place(self.on)
            if self.dry_run:  # no job is submitted to say what would be done
                object.__setattr__(self, "on", None)
                object.__setattr__(self, "workers", None)
        if self.workers is None and self.gpus is not None:
            object.__setattr__(self, "workers", self.gpus)

    @property
    def keeps_list(self) -> bool:
        """Whether what fails is listed in `failures.jsonl`."""
        return not (self.dry_run or self.only_reads)

    def crew(self, n_slides: int) -> tuple[int, int]:
        """Split the processors over slides: (slides at a time, threads for each)."""
        if self.on is not None:
            return self.workers or 1, self.threads or 1
        processors = self.threads or cpu_count()
        if self.workers is None and not self.fork:
            return 1, processors
        workers = min(self.workers or processors, max(1, n_slides))
        return workers, max(1, processors // workers)

    def warn(self, text: str) -> None:
        """Say something about all slides that the caller should look at."""
        self.say(WARNING + text)

    def say(self, text: str) -> None:
        """Say something about all slides."""
        (self.listen or Warnings())(Note("", text))


class Job(Protocol):
    """What a step is told about one slide."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        ...

    @property
    def path(self) -> str:
        """Path of the slide or of its store."""
        ...


def run_cohort(
    step: str, jobs: Sequence[Job], work: Work, folder: Path, manner: Manner, *, workers: int
) -> Outcomes:
    """Do a step for every slide; one that fails does not stop the others.

    Args:
        step: its name in `failures.jsonl`, e.g. "tile".
        jobs: the slides; they must pickle.
        work: an importable function, or an object of an importable class, that does one.
        folder: where `failures.jsonl` goes.
        manner: how.
        workers: slides at a time, if not in this process.

    Raises:
        CytofmError: of all slides (no such encoder, a wrong device), or of one with `fail_fast`.
        OutputError: `folder` cannot be written.
        StoppedError: a signal asked to stop; finished slides are kept.
    """
    tasks = [Task(name=job.slide_id, path=job.path, payload=job) for job in jobs]
    with output_errors(folder):
        is_ours = manner.keeps_list and not folder.exists()
        if manner.keeps_list:
            folder.mkdir(parents=True, exist_ok=True)
        log = FailureLog(folder, step, manner.shard)
    listen = manner.listen or Warnings()
    if manner.gpus is not None:
        work = OnGpus(work, manner.gpus)
    try:
        outcomes = _do(tasks, work, manner, log, listen, workers)
    except CytofmError:
        if is_ours:
            with contextlib.suppress(OSError):  # else something is in it
                folder.rmdir()
        raise
    for _ in range(0 if manner.on is not None else _LOOKS_AT_HELD):
        held = {outcome.slide_id for outcome in outcomes if outcome.status == "held"}
        if not held:
            break
        # By now the others may have finished them, or have been killed.
        time.sleep(_BETWEEN_LOOKS_S)
        again = [task for task in tasks if task.name in held]
        outcomes = [outcome for outcome in outcomes if outcome.slide_id not in held]
        outcomes += _do(again, work, manner, log, listen, 1)
    if manner.keeps_list:
        log.flush()
    order = {task.name: place for place, task in enumerate(tasks)}
    outcomes.sort(key=lambda outcome: order[outcome.slide_id])
    return Outcomes(outcomes, log.path if manner.keeps_list else None)


def alone(task: Task, work: Work, manner: Manner) -> Outcome:
    """Do one thing that comes before all slides, where the slides are done.

    Raises:
        StoppedError: a signal asked to stop.
    """
    if manner.workers is None and not manner.fork:
        return attempt(work, explain, task, lambda event: None)
    with contextlib.closing(_elsewhere(work, [task], manner, 1)) as events:
        return next(event for event in events if isinstance(event, Outcome))


def _do(
    tasks: Sequence[Task],
    work: Work,
    manner: Manner,
    log: FailureLog,
    listen: Listen,
    workers: int,
) -> list[Outcome]:
    outcomes: list[Outcome] = []

    def hear(event: Any) -> None:
        if not isinstance(event, Outcome):
            listen(event)
            return
        if event.error is not None and event.error.of_all_slides:
            raise event.error
        outcomes.append(event)
        if manner.keeps_list:
            log.update(event)
        listen(event)
        if manner.fail_fast and event.status == "failed" and event.error is not None:
            raise event.error

    listen(Started(len(tasks)))
    if manner.workers is None and not manner.fork and manner.on is None:
        for task in tasks:
            hear(attempt(work, explain, task, hear))
    else:
        with contextlib.closing(_elsewhere(work, tasks, manner, workers)) as events:
            for event in events:
                hear(event)
    return outcomes


def _elsewhere(
    work: Work, tasks: Sequence[Task], manner: Manner, workers: int
) -> Generator[Event, None, None]:
    if manner.on is not None:
        return _on_cluster(work, tasks, manner)
    if manner.fork:
        stall_s = manner.timeout_s
        return run_batch(work, tasks, workers=workers, stall_s=stall_s, explain=explain)
    from cytofm_cli.api.fresh import run_fresh

    return run_fresh(work, tasks, workers=workers, stall_s=manner.timeout_s)


def _on_cluster(work: Work, tasks: Sequence[Task], manner: Manner) -> Generator[Event, None, None]:
    from cytofm_cli.work.engine import run_on

    def connect() -> contextlib.AbstractContextManager[Any]:
        return join(
            str(manner.on), workers=manner.workers, threads=manner.threads, warn=manner.warn
        )

    return run_on(
        connect,
        work,
        tasks,
        workers=manner.workers,
        threads=manner.threads,
        stall_s=manner.timeout_s,
        explain=explain,
    )


class Warnings:
    """What a caller hears who does not listen: warnings and failures, as Python warnings.

    They wait for the end of the slide: where warnings are errors, its work is not the place.
    """

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def __call__(self, event: Event | Started) -> None:
        if isinstance(event, Note) and event.text.startswith(WARNING):
            self._waiting.append(event.text.removeprefix(WARNING))
        if isinstance(event, Outcome) and event.error is not None and event.status != "held":
            self._waiting.append(event.error.one_line())
        if isinstance(event, Outcome) or (isinstance(event, Note) and not event.slide_id):
            waiting, self._waiting = self._waiting, []
            for text in waiting:
                warnings.warn(text, CytofmWarning, stacklevel=2)
