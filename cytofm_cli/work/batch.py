"""Run one function over many items in child processes that may hang or crash.

Libraries that read files are C code: a damaged file can make them loop for ever or die with
SIGSEGV, which no exception handler survives. So items are worked on in forked children; the
supervisor, which opens no file, kills a child that makes no progress, records the failure,
starts another and goes on. A child keeps what it loaded (a model) from item to item.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from cytofm_cli.errors import (
    ConfigMismatchError,
    CytofmError,
    DiskFullError,
    OutOfMemoryError,
    TryAgainError,
)
from cytofm_cli.work.children import Lost, Say, supervise
from cytofm_cli.work.files import known_error
from cytofm_cli.work.memory import is_out_of_memory
from cytofm_cli.work.signals import catch_signals

Status = Literal["done", "skipped", "held", "refused", "failed"]
_BETWEEN_REPORTS_S = 0.2
_NO_ROOM = (DiskFullError, OutOfMemoryError)


@dataclass(frozen=True)
class Task:
    """One item to work on, by a name of its own; `payload` must pickle."""

    name: str
    path: str
    payload: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
        status: done now, skipped (was done before), held by another process, refused (was done
            before with other settings, and is kept), or failed.
        facts: what the work returned, or its error tells beside the message, as JSON values.
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
    """How far an item is: `done` of `total` parts."""

    slide_id: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    """A line for the user, said while an item is worked on."""

    slide_id: str
    text: str


Event = Outcome | Progress | Note


@dataclass(frozen=True)
class Loss:
    """Why an item could not be finished; it is no error that the work itself raised.

    Attributes:
        why: silent for too long, killed from outside (most likely for lack of memory), crashed,
            or out of memory.
        detail: for how long, or by which signal or exit code.
    """

    why: Literal["stalled", "killed", "crashed", "out of memory"]
    detail: str = ""


# Says a loss in the words of the caller, who knows what an item is.
Explain = Callable[[Task, Loss], CytofmError]


class Reporter:
    """The child's voice: every report also shows the supervisor that the child is alive."""

    def __init__(self, say: Say, name: str) -> None:
        self._say = say
        self._name = name
        self._last = 0.0

    def progress(self, done: int, total: int) -> None:
        """Report `done` of `total` parts; cheap enough for every part."""
        now = time.monotonic()
        if now - self._last > _BETWEEN_REPORTS_S:
            self._last = now
            self._say(Progress(self._name, done, total))

    def note(self, text: str) -> None:
        """Say a line to the user."""
        self._say(Note(self._name, text))


# Returns (status, facts); raises CytofmError when the item cannot be done.
Work = Callable[[Task, Reporter], tuple[Status, dict[str, Any]]]


def run_batch(
    work: Work, tasks: Sequence[Task], *, workers: int, stall_s: float, explain: Explain
) -> Generator[Event, None, None]:
    """Work on every task; yield progress, notes, and one outcome a task.

    Args:
        work: runs in a child process; whatever it loads stays loaded there.
        tasks: the items, in order.
        workers: child processes at a time.
        stall_s: seconds without any progress after which an item is given up.
        explain: turns the loss of an item into its error.

    Raises:
        StoppedError: a signal asked to stop; children are gone, finished items are kept.
    """
    answer = partial(attempt, work, explain)
    with (
        catch_signals() as stop,
        closing(
            supervise(answer, tasks, workers=workers, stop=stop, method="fork", stall_s=stall_s)
        ) as heard,
    ):
        for news in heard:
            if isinstance(news, Lost):
                yield Outcome(
                    slide_id=news.task.name,
                    path=news.task.path,
                    status="failed",
                    seconds=news.seconds,
                    error=explain(news.task, Loss(news.why, news.detail)),
                )
            else:
                yield news.message


def attempt(work: Work, explain: Explain, task: Task, say: Say) -> Outcome:
    """Work on one task in this process, whatever becomes of it; arguments as of `run_batch`."""
    start = time.monotonic()
    status: Status = "failed"
    facts: dict[str, Any] = {}
    error: CytofmError | None = None
    try:
        status, facts = work(task, Reporter(say, task.name))
    except TryAgainError as passing:  # too little room fails; all else another look may mend
        status = "failed" if isinstance(passing, _NO_ROOM) else "held"
        error, facts = passing, passing.facts
    except ConfigMismatchError as other:
        status, error, facts = "refused", other, other.facts
    except CytofmError as known:
        error, facts = known, known.facts
    except Exception as bug:
        if is_out_of_memory(bug):
            error = explain(task, Loss("out of memory"))
        elif (ailing := known_error(bug, task.path)) is not None:
            error, facts = ailing, {"traceback": traceback.format_exc()}
        else:  # one item's surprise must not end the others; the trace goes to the record
            error = CytofmError(f"{task.path}: {type(bug).__name__}: {bug}")
            facts = {"traceback": traceback.format_exc()}
    if error is not None:
        # Libraries (tblib, which comes with dask) make pickle take the cause along, and the errors
        # of others may not come back from a pickle.
        error.__cause__ = error.__context__ = None
    return Outcome(
        slide_id=task.name,
        path=task.path,
        status=status,
        seconds=time.monotonic() - start,
        facts=facts,
        error=error,
    )
