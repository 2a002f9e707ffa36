"""Spread work over processes that stop on request and leave with their parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from cytofm_cli.errors import OutOfMemoryError
from cytofm_cli.work.batch import die_with_parent
from cytofm_cli.work.signals import StopFlag, catch_signals

Task = TypeVar("Task")
Result = TypeVar("Result")
_POLL_S = 0.5
_STOP_GRACE_S = 5.0
# The parent hears these for all; it tells the workers by SIGTERM.
_PARENTS = frozenset({signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2})


@contextlib.contextmanager
def stop_requests() -> Iterator[StopFlag]:
    """Catch stop signals in the main thread; elsewhere give a flag that is never set."""
    if threading.current_thread() is threading.main_thread():
        with catch_signals() as stop:
            yield stop
    else:
        yield StopFlag()


def in_processes(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    stop: StopFlag,
    start: Callable[..., None] | None = None,
    *start_args: Any,
) -> Generator[tuple[Task, Result], None, None]:
    """Do tasks in spawned processes; yield each with its result as it ends.

    Args:
        work: importable function of one task.
        tasks: they must pickle.
        workers: processes.
        stop: looked at twice a second.
        start: called once in each process with `start_args`.

    Raises:
        StoppedError: a signal asked to stop; no process is left.
        OutOfMemoryError: a process was killed.
    """
    others = set(multiprocessing.active_children())
    arguments = (os.getpid(), start, start_args)
    with _held_back():
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _begin, arguments)
    left: dict[Future[Result], Task] = {}
    try:
        with _held_back():
            for task in tasks:
                left[pool.submit(work, task)] = task
        while left:
            ended, _ = wait(left, _POLL_S, FIRST_COMPLETED)
            if stop:
                raise stop.error()
            for future in ended:
                result = future.result()
                yield left.pop(future), result
    except (BrokenProcessPool, BrokenPipeError) as error:
        time.sleep(_POLL_S)  # a signal to all processes reaches the workers first now and then
        if stop:
            raise stop.error() from error
        raise OutOfMemoryError(
            "a worker process was killed, most likely for lack of memory.",
            hint="give the job more memory, or fewer --workers; then run the same command again.",
        ) from error
    finally:
        if left:
            _dismiss([child for child in multiprocessing.active_children() if child not in others])
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold signals back while processes start: these inherit the mask and never see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int, start: Callable[..., None] | None, start_args: tuple[Any, ...]) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start(*start_args)


def _dismiss(children: Sequence[BaseProcess]) -> None:
    deadline = time.monotonic() + _STOP_GRACE_S
    # Asked more than once: work that catches the signal ends cleanly, then its process goes.
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        for child in children:
            child.terminate()
        time.sleep(_POLL_S / 2)
    for child in children:
        child.kill()
        child.join()
