"""Run one function over many slides in child processes that may hang or crash.

The reading libraries are C code: a damaged file can make them loop for ever or die with
SIGSEGV, which no exception handler survives. So slides are worked on in forked children; the
supervisor, which opens no slide, kills a child that makes no progress, records the failure,
starts another and goes on. A child keeps what it loaded (a model) from slide to slide.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Literal

from cytofm_cli.errors import ConfigMismatchError, CytofmError, SlideError, SlideTimeoutError
from cytofm_cli.work.claim import ClaimHeldError
from cytofm_cli.work.signals import catch_signals

Status = Literal["done", "skipped", "held", "refused", "failed"]
_POLL_S = 0.5
_STOP_GRACE_S = 5.0
_BETWEEN_REPORTS_S = 0.2


@dataclass(frozen=True)
class Task:
    """One slide to work on; `payload` must pickle."""

    slide_id: str
    path: str
    payload: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of one slide.

    Attributes:
        status: done now, skipped (was done before), held by another process, refused (was done
            before with other settings, and is kept), or failed.
        facts: what the work returned, as JSON values.
        error: why it failed, or is refused.
    """

    slide_id: str
    path: str
    status: Status
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    error: CytofmError | None = None


@dataclass(frozen=True)
class Progress:
    """How far a slide is: `done` of `total` parts."""

    slide_id: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    """A line for the user, said while a slide is worked on."""

    slide_id: str
    text: str


Event = Outcome | Progress | Note


class Reporter:
    """The child's voice: every report also shows the supervisor that the child is alive."""

    def __init__(self, pipe: Connection | _Ear, slide_id: str) -> None:
        self._pipe = pipe
        self._slide_id = slide_id
        self._last = 0.0

    def progress(self, done: int, total: int) -> None:
        """Report `done` of `total` parts; cheap enough for every tile."""
        now = time.monotonic()
        if now - self._last > _BETWEEN_REPORTS_S:
            self._last = now
            self._pipe.send(Progress(self._slide_id, done, total))

    def note(self, text: str) -> None:
        """Say a line to the user."""
        self._pipe.send(Note(self._slide_id, text))


# Returns (status, facts); raises CytofmError when the slide cannot be done.
Work = Callable[[Task, Reporter], tuple[Status, dict[str, Any]]]


def run_batch(
    work: Work, tasks: Sequence[Task], *, workers: int, stall_s: float
) -> Generator[Event, None, None]:
    """Work on every task; yield progress, notes, and one outcome a task.

    Args:
        work: runs in a child process; whatever it loads stays loaded there.
        tasks: the slides, in order.
        workers: child processes at a time.
        stall_s: seconds without any progress after which a slide is given up.

    Raises:
        StoppedError: a signal asked to stop; children are gone, finished slides are kept.
    """
    waiting = list(reversed(tasks))
    crew: list[_Worker] = []
    with catch_signals() as stop:
        try:
            while waiting or any(worker.task for worker in crew):
                while waiting and len(crew) < workers:
                    crew.append(_Worker(work))
                for worker in crew:
                    if worker.task is None and waiting:
                        worker.give(waiting.pop())
                wait([handle for worker in crew for handle in worker.handles()], _POLL_S)
                if stop:
                    raise stop.error()
                for worker in list(crew):
                    yield from worker.events(stall_s)
                    if worker.gone:
                        crew.remove(worker)
        finally:
            _dismiss(crew)


def do_here(work: Work, tasks: Sequence[Task], hear: Callable[[Event], None]) -> None:
    """Work on every task in this process, one after the other; nothing guards against a crash.

    Args:
        work: what is done.
        tasks: the slides, in order.
        hear: called with progress and notes while a slide is worked on, and with its outcome.
    """
    for task in tasks:
        hear(_attempt(work, task, Reporter(_Ear(hear), task.slide_id)))


@dataclass(frozen=True)
class _Ear:
    """Takes what a child would send through its pipe."""

    send: Callable[[Event], None]


class _Worker:
    """A child process and the supervisor's end of its pipe."""

    def __init__(self, work: Work) -> None:
        context = mp.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process: ForkProcess = context.Process(
            target=_child, args=(work, theirs, self.pipe), daemon=False
        )
        sys.stdout.flush()
        sys.stderr.flush()
        self.process.start()
        theirs.close()
        self.task: Task | None = None
        self.gone = False
        self._heard = self._given = time.monotonic()

    def handles(self) -> list[Any]:
        return [self.pipe, self.process.sentinel]

    def give(self, task: Task) -> None:
        self.task = task
        self._heard = self._given = time.monotonic()
        with contextlib.suppress(OSError):  # died while idle: `events` reports it
            self.pipe.send(task)

    def events(self, stall_s: float) -> Iterator[Event]:
        """Yield what the child has sent, or the failure of its slide if it hangs or died."""
        alive = self.process.is_alive()
        while self.pipe.poll():
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                alive = False
                break
            self._heard = time.monotonic()
            if isinstance(message, Outcome):
                self.task = None
            yield message
        if alive and self.task and time.monotonic() - self._heard > stall_s:
            self.kill()
            yield self._failed(
                SlideTimeoutError(
                    f"{self.task.path}: no progress for {stall_s:.0f} s; given up.",
                    hint="is the disk slow? then raise --timeout-s; else the file is damaged.",
                )
            )
        elif not alive:
            self.kill()
            if self.task:
                yield self._failed(self._death())

    def _death(self) -> SlideError:
        code = self.process.exitcode or 0
        path = self.task.path if self.task else ""
        if code == -signal.SIGKILL:
            return SlideError(
                f"{path}: the process was killed, most likely for lack of memory.",
                hint="give the job more memory, or fewer --workers.",
            )
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return SlideError(
            f"{path}: crashed the reading library ({why}).",
            hint="the file is damaged; scan it again.",
        )

    def _failed(self, error: CytofmError) -> Outcome:
        assert self.task is not None
        outcome = Outcome(
            slide_id=self.task.slide_id,
            path=self.task.path,
            status="failed",
            seconds=time.monotonic() - self._given,
            error=error,
        )
        self.task = None
        return outcome

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.gone = True


def _dismiss(crew: Sequence[_Worker]) -> None:
    """End all children: idle ones leave, busy ones drop their slide."""
    for worker in crew:
        if worker.task is None:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
        else:
            worker.process.terminate()
    deadline = time.monotonic() + _STOP_GRACE_S
    for worker in crew:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.kill()


def _child(work: Work, pipe: Connection, supervisors_end: Connection) -> None:
    supervisors_end.close()
    die_with_parent()
    # The supervisor hears the terminal's and the scheduler's signals and tells us by SIGTERM.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            task = None
        if task is None:
            os._exit(0)
        pipe.send(_attempt(work, task, Reporter(pipe, task.slide_id)))


def _attempt(work: Work, task: Task, report: Reporter) -> Outcome:
    start = time.monotonic()
    status: Status = "failed"
    facts: dict[str, Any] = {}
    error: CytofmError | None = None
    try:
        status, facts = work(task, report)
    except ClaimHeldError as held:
        status, error = "held", held
    except ConfigMismatchError as other:
        status, error = "refused", other
    except CytofmError as known:
        error = known
    except MemoryError:
        error = SlideError(f"{task.path}: out of memory.", hint="use fewer --workers.")
    except Exception as bug:
        # One slide's surprise must not end the others; the trace goes to the record.
        error = CytofmError(f"{task.path}: {type(bug).__name__}: {bug}")
        facts = {"traceback": traceback.format_exc()}
    return Outcome(
        slide_id=task.slide_id,
        path=task.path,
        status=status,
        seconds=time.monotonic() - start,
        facts=facts,
        error=error,
    )


def die_with_parent() -> None:
    """Ask Linux to kill this child when the supervisor is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
