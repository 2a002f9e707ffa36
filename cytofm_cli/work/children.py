"""Child processes under one supervisor: started, given tasks, listened to, given up, dismissed.

A child keeps what it loaded from task to task. Two ways to start one: "fork" takes what the
supervisor holds along without pickling, and is safe only while this process has no threads (torch
and libvips start some); "spawn" begins afresh and imports what it needs.

The supervisor alone hears the terminal and the scheduler; it tells its children by SIGTERM. They
die with it, also by kill -9.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

from cytofm_cli.work.memory import keep_freed, share_heap
from cytofm_cli.work.signals import StopFlag

Task = TypeVar("Task")
Method = Literal["fork", "spawn"]
Say = Callable[[object], None]
Answer = Callable[[Task, Say], object]
_slot: int | None = None

POLL_S: Final = 0.5
# Of the time between two looks at the children this much counts: in a longer one this process,
# and most likely its children with it, was suspended (Ctrl-Z, `scontrol suspend`).
MOST_GAP_S: Final = 10 * POLL_S
STOP_GRACE_S: Final = 5.0
_OURS_TO_HEAR: Final = frozenset({signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})
_TERMINATED: Final = 128 + signal.SIGTERM
_SAFE_PATH: Final = "PYTHONSAFEPATH"


@dataclass(frozen=True)
class Said(Generic[Task]):
    """What a child sent about a task; `is_answer`: it was the last, the task is done."""

    task: Task
    message: Any
    is_answer: bool


@dataclass(frozen=True)
class Lost(Generic[Task]):
    """A task whose child is gone.

    Attributes:
        task: what it was at.
        why: silent for too long, killed from outside (most likely for lack of memory), or
            crashed.
        detail: for how long, or by which signal or exit code.
        seconds: since the task was given.
    """

    task: Task
    why: Literal["stalled", "killed", "crashed"]
    detail: str
    seconds: float


def supervise(
    answer: Answer[Task],
    tasks: Sequence[Task],
    *,
    workers: int,
    stop: StopFlag,
    method: Method,
    stall_s: float | None = None,
    start: Callable[..., None] | None = None,
    start_args: Sequence[Any] = (),
) -> Generator[Said[Task] | Lost[Task], None, None]:
    """Have every task done by children; yield what they say, and what is lost.

    No child is left when the generator ends or is closed. One that is gone is replaced.

    Args:
        answer: (task, say) → answer, in a child; `say` sends a message before the answer. It
            catches its own exceptions. With "spawn" it is importable, and all of it pickles.
        tasks: done in this order; they pickle.
        workers: children at a time.
        stop: looked at twice a second.
        method: how to start a child.
        stall_s: seconds without a message after which a child is given up; None: never.
        start: called once in each child with `start_args`.

    Raises:
        StoppedError: a signal asked to stop.
    """
    waiting, crew, watch = deque(tasks), list[_Child[Task]](), _Watch()
    try:
        while waiting or any(child.is_busy for child in crew):
            for child in crew:
                if waiting and not child.is_busy:
                    child.give(waiting.popleft())
            while waiting and len(crew) < workers:
                taken = {child.slot for child in crew}
                slot = next(number for number in range(workers) if number not in taken)
                crew.append(_Child(answer, method, start, start_args, slot, watch))
                crew[-1].give(waiting.popleft())
            wait([handle for child in crew for handle in child.handles()], POLL_S)
            watch.look()
            if stop:
                raise stop.error()
            for child in list(crew):
                for news in child.news(stall_s):
                    if isinstance(news, Lost) and child.was_terminated and _is_asked(stop):
                        raise stop.error()
                    yield news
                if child.is_gone:
                    crew.remove(child)
    finally:
        _dismiss(crew)


def slot() -> int | None:
    """Return which of the children at a time this process is, from 0; None: it is no child.

    One that is gone leaves its number to the one that replaces it.
    """
    return _slot


def _is_asked(stop: StopFlag) -> bool:
    """Wait a little for our own signal: one to all processes reaches a child first now and then."""
    deadline = time.monotonic() + POLL_S
    while not stop and time.monotonic() < deadline:
        time.sleep(POLL_S / 10)
    return bool(stop)


class _Watch:
    """How long this process has watched, s: the time in which it was suspended does not count."""

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        self.seconds += min(now - self._last, MOST_GAP_S)
        self._last = now


class _Child(Generic[Task]):
    """A child process and the supervisor's end of its pipe."""

    def __init__(
        self,
        answer: Answer[Task],
        method: Method,
        start: Callable[..., None] | None,
        start_args: Sequence[Any],
        slot: int,
        watch: _Watch,
    ) -> None:
        self.slot = slot
        context = multiprocessing.get_context(method)
        self.pipe, theirs = context.Pipe()
        forked_along = self.pipe if method == "fork" else None
        arguments = (os.getpid(), theirs, forked_along, slot, answer, start, tuple(start_args))
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=arguments, daemon=False
        )
        self.task: Task | None = None
        self.is_busy = self.is_gone = False
        self._watch, self._heard, self._given = watch, watch.seconds, time.monotonic()
        sys.stdout.flush()  # else a forked child prints what is waiting a second time
        sys.stderr.flush()
        if method == "spawn":
            # Python's tracker of resources comes with the first child, and lets SIGINT through
            # again once it has started: so it starts alone.
            with _signals_held_back(), _safe_path():
                resource_tracker.ensure_running()
        # Killed before it has read all that it is sent: `news` finds it dead.
        with _signals_held_back(), _safe_path(), contextlib.suppress(BrokenPipeError):
            self.process.start()
        theirs.close()

    def handles(self) -> list[Any]:
        return [self.pipe, self.process.sentinel] if self._is_started else [self.pipe]

    def give(self, task: Task) -> None:
        self.task, self.is_busy = task, True
        self._heard, self._given = self._watch.seconds, time.monotonic()
        with contextlib.suppress(OSError):  # it died while idle: `news` tells
            self.pipe.send(task)

    def news(self, stall_s: float | None) -> Iterator[Said[Task] | Lost[Task]]:
        """Yield what the child has sent, or the loss of its task if it hangs or died."""
        alive = self._is_started and self.process.is_alive()
        while self.pipe.poll():
            try:
                message, is_answer = self.pipe.recv()
            except (EOFError, OSError):
                alive = False
                break
            self._heard, task = self._watch.seconds, self.task
            self.is_busy = not is_answer
            yield Said(task, message, is_answer)  # type: ignore[arg-type]
        silent_s = self._watch.seconds - self._heard
        if not alive:
            self.kill()
            if self.is_busy:
                yield self._lost(*self._death())
        elif self.is_busy and stall_s is not None and silent_s > stall_s:
            if self._is_suspended():  # it alone: its time begins anew
                self._heard = self._watch.seconds
                return
            self.kill()
            yield self._lost("stalled", f"{stall_s:.0f} s")

    @property
    def was_terminated(self) -> bool:
        return self._is_started and self.process.exitcode in (_TERMINATED, -signal.SIGTERM)

    def kill(self) -> None:
        if self._is_started:
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.is_gone = True

    def dismiss(self) -> None:
        """Ask it to leave: at once if it is idle; a busy one drops its task."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)  # read also by work that catches the signal and ends cleanly
        if self._is_started and self.is_busy:
            self.process.terminate()

    @property
    def _is_started(self) -> bool:
        return self.process.pid is not None

    def _is_suspended(self) -> bool:
        """Tell whether a signal or a debugger holds the child; where that is not told: no."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        return stat.rpartition(")")[2].split()[:1] in (["T"], ["t"])

    def _death(self) -> tuple[Literal["killed", "crashed"], str]:
        code = self.process.exitcode if self._is_started else -signal.SIGKILL
        if code == -signal.SIGKILL:
            return "killed", signal.SIGKILL.name
        if code is not None and code < 0:
            return "crashed", signal.Signals(-code).name
        return "crashed", f"exit code {code}"

    def _lost(self, why: Literal["stalled", "killed", "crashed"], detail: str) -> Lost[Task]:
        self.is_busy = False
        seconds = time.monotonic() - self._given
        return Lost(self.task, why, detail, seconds)  # type: ignore[arg-type]


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Let a spawned child start without the working folder on its path.

    It begins as `python -c`, before it is told the path of this process: a `signal.py` that lies
    where the command is called would be run in place of Python's own.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


def _dismiss(crew: Sequence[_Child[Any]]) -> None:
    for child in crew:
        child.dismiss()
    deadline = time.monotonic() + STOP_GRACE_S
    for child in crew:
        if child.process.pid is not None:
            child.process.join(max(0.0, deadline - time.monotonic()))
        child.kill()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Hold back what only the supervisor hears while a child starts: it inherits the mask.

    It keeps the mask for good, so that work which catches signals, too, never sees these.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS_TO_HEAR)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(
    parent: int,
    pipe: Connection,
    supervisors_end: Connection | None,
    slot: int,
    answer: Answer[Any],
    start: Callable[..., None] | None,
    start_args: tuple[Any, ...],
) -> None:
    """Live as a child: answer one task after the other until told to leave."""
    if supervisors_end is not None:
        supervisors_end.close()
    global _slot  # noqa: PLW0603 - a child is one for its whole life
    _slot = slot
    die_with(parent)
    share_heap()
    keep_freed()
    for number in _OURS_TO_HEAR:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED))
    sys.unraisablehook = _leave_callbacks
    if start is not None:
        start(*start_args)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            task = None
        if task is None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # not through what the supervisor registered for its own end
        pipe.send((answer(task, lambda message: pipe.send((message, False))), True))


def _leave_callbacks(told: sys.UnraisableHookArgs) -> None:
    """End a child that was asked to while C called Python, which swallows that, with a trace."""
    if isinstance(told.exc_value, SystemExit):
        os._exit(_TERMINATED)
    sys.__unraisablehook__(told)


def die_with(parent: int) -> None:
    """Ask Linux to kill this child when the supervisor is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
