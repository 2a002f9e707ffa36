"""Run one function over many items on workers of dask.distributed, on other machines.

The engine is an existing one, and so is its scheduler; durable truth stays in what the items
write. What it takes to lose nothing there:

- at most one item a worker is with the scheduler, so that an item that kills its process takes
  no other along (tasks that are assigned ahead go down with it);
- failures come back as values, so that only what lost its worker is tried again;
- the work stays loaded in a worker from item to item;
- a worker reports as it goes; one that falls silent is started anew, its item given up.

Workers see the same folders by the same names as this process, and have the same cytofm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli import __version__
from cytofm_cli.config import Settings
from cytofm_cli.errors import CytofmError, TryAgainError, UsageError
from cytofm_cli.work.batch import (
    Event,
    Explain,
    Loss,
    Note,
    Outcome,
    Progress,
    Task,
    Work,
    attempt,
)
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.signals import catch_signals

if TYPE_CHECKING:
    from distributed import Client, Future

_POLL_S: Final = 0.5
_PATIENCE_S: Final = 60.0
# The work that this worker has loaded, by the run that it belongs to.
_loaded: dict[str, Work] = {}


def run_on(
    connect: Callable[[], contextlib.AbstractContextManager[Client]],
    work: Work,
    tasks: Sequence[Task],
    *,
    workers: int | None,
    threads: int | None,
    stall_s: float,
    explain: Explain,
) -> Generator[Event, None, None]:
    """Do what `cytofm_cli.work.batch.run_batch` does, on workers of dask.distributed.

    Args:
        connect: gives the client.
        work, tasks, stall_s, explain: as of `run_batch`.
        workers: items at a time; None: as many as there are workers.
        threads: processors for each item; None: those of its worker.

    Raises:
        StoppedError: a signal asked to stop; what is finished is kept.
        TryAgainError: the scheduler is gone.
    """
    with catch_signals() as stop, connect() as client:
        batch = _Batch(client, work, deque(tasks), threads, stall_s, explain)
        with contextlib.closing(batch.events(workers)) as events:
            for event in events:
                if stop:
                    raise stop.error()
                if event is not None:
                    yield event


@dataclass
class _Batch:
    """The items of a run, and where they are."""

    client: Client
    work: Work
    waiting: deque[Task]
    threads: int | None
    stall_s: float
    explain: Explain
    run: str = field(default_factory=lambda: f"cytofm-{secrets.token_hex(6)}")
    flying: dict[Future, Task] = field(default_factory=dict)
    heard: dict[str, tuple[float, str]] = field(default_factory=dict)  # item: (when, worker)
    said: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)

    def events(self, limit: int | None) -> Generator[Event | None, None, None]:
        """Yield what workers say and what becomes of each item; None where nothing happens."""
        self.client.subscribe_topic(self.run, lambda event: self.said.put(event[1]))
        content = pickle.dumps(self.work)
        idle_since = time.monotonic()
        try:
            while self.waiting or self.flying:
                n_workers = self._n_workers()
                while self.waiting and len(self.flying) < min(n_workers, limit or n_workers):
                    self._submit(content, self.waiting.popleft())
                if n_workers:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > _PATIENCE_S:
                    idle_since = time.monotonic()
                    yield Note("", "no worker is there yet; waiting for one")
                yield None
                yield from self._news()
        finally:
            with contextlib.suppress(Exception):  # of a scheduler that is gone
                self.client.cancel(list(self.flying), force=True)
                self.client.unsubscribe_topic(self.run)

    def _n_workers(self) -> int:
        try:
            return len(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, RuntimeError, KeyError) as error:
            raise _gone() from error

    def _submit(self, content: bytes, task: Task) -> None:
        key = f"{self.run}-{task.name}-{secrets.token_hex(3)}"
        here = Here(self.run, str(Path.cwd()), __version__, self.threads)
        future = self.client.submit(do_here, content, task, self.explain, here, key=key, pure=False)
        self.flying[future] = task
        future.add_done_callback(lambda future: self.said.put({}))  # ends the waiting

    def _news(self) -> Iterator[Event]:
        """Wait a little; yield what has been said, what is done, and what is given up."""
        timeout = _POLL_S
        with contextlib.suppress(queue.Empty):
            while told := self.said.get(timeout=timeout):
                yield from self._hear(told)
                timeout = 0.0
        if self.client.status not in ("running", "newly-created"):
            raise _gone()
        for future in [one for one in self.flying if one.done()]:
            task = self.flying.pop(future)
            yield self._outcome(future, task)
        yield from self._give_up()

    def _hear(self, told: dict[str, Any]) -> Iterator[Event]:
        name = str(told["name"])
        self.heard[name] = time.monotonic(), str(told["worker"])
        if "text" in told:
            yield Note(name, str(told["text"]))
        elif "total" in told:
            yield Progress(name, int(told["done"]), int(told["total"]))

    def _outcome(self, future: Future, task: Task) -> Outcome:
        from distributed import KilledWorker

        self.heard.pop(task.name, None)
        if future.cancelled():  # nobody here did: the scheduler has forgotten it
            raise _gone()
        try:
            outcome: Outcome = future.result()
        except KilledWorker:
            return self._lost(task, Loss("crashed", "its worker died, time and again"))
        except CytofmError as error:  # of the worker, not of the item
            error.of_all_slides = True
            raise
        except Exception as error:  # the engine's own, e.g. what cannot be unpickled there
            told = f"{task.path}: {type(error).__name__}: {error}"
            return Outcome(task.name, task.path, "failed", error=CytofmError(told))
        future.release()
        return outcome

    def _give_up(self) -> Iterator[Event]:
        """Give up what has been silent for too long, and start its worker anew."""
        now = time.monotonic()
        for future, task in list(self.flying.items()):
            when, worker = self.heard.get(task.name, (now, ""))
            if now - when <= self.stall_s:
                continue
            del self.flying[future], self.heard[task.name]
            self.client.cancel([future], force=True)
            with contextlib.suppress(Exception):  # it may be gone already
                self.client.restart_workers([worker], timeout=_PATIENCE_S)
            yield self._lost(task, Loss("stalled", f"{self.stall_s:.0f} s"))

    def _lost(self, task: Task, loss: Loss) -> Outcome:
        return Outcome(task.name, task.path, "failed", error=self.explain(task, loss))


def _gone() -> TryAgainError:
    return TryAgainError(
        "the scheduler is gone; what was finished is kept.", hint="the same command goes on."
    )


@dataclass(frozen=True)
class Here:
    """What a worker is told beside its item.

    Attributes:
        run: a name that no other run has.
        folder: where relative paths start.
        version: of cytofm.
        threads: processors for an item; None: all of the worker.
    """

    run: str
    folder: str
    version: str
    threads: int | None


def do_here(content: bytes, task: Task, explain: Explain, here: Here) -> Outcome:
    """Do an item in this worker, by the work that it has loaded for this run.

    Raises:
        UsageError: it has another cytofm, or does not see the folder that names start from.
    """
    from distributed import get_worker

    worker = get_worker()
    _refuse_others(here.version, here.folder)
    if here.run not in _loaded:
        _loaded.clear()  # models of a run before: their memory is wanted
        _loaded[here.run] = pickle.loads(content)  # noqa: S301 - of our own client, as is this function

    def say(message: object) -> None:
        told: dict[str, object] = {"name": task.name, "worker": worker.address}
        if isinstance(message, Progress):
            told |= {"done": message.done, "total": message.total}
        elif isinstance(message, Note):
            told |= {"text": message.text}
        worker.log_event(here.run, told)

    say(None)
    job = with_threads(task.payload, here.threads or cpu_count())
    return attempt(_loaded[here.run], explain, dataclasses.replace(task, payload=job), say)


def _refuse_others(version: str, folder: str) -> None:
    if version != __version__:
        raise UsageError(
            f"a worker has cytofm {__version__}, this is {version}.",
            hint="start the workers with the same environment",
        )
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: a worker does not see this folder ({error.strerror}).",
            hint="run where all machines see the same files",
        ) from error


def with_threads(job: Any, n: int) -> Any:
    """Return a job, and the jobs that it holds, told how many threads to take."""
    if type(job) is tuple:
        return tuple(with_threads(part, n) for part in job)
    is_job = dataclasses.is_dataclass(job) and not isinstance(job, type)
    if not is_job or isinstance(job, Settings):
        return job  # settings can change a result, threads cannot
    values = {of.name: getattr(job, of.name) for of in dataclasses.fields(job) if of.init}
    new = {
        name: n if name == "threads" else with_threads(value, n) for name, value in values.items()
    }
    return dataclasses.replace(job, **new)
