"""Spread one function over spawned processes: results as they come, the first error ends it.

For work that computes with torch, whose threads do not survive a fork. Items that may crash or
hang on their own are for `cytofm_cli.work.batch`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

from cytofm_cli.errors import CytofmError, OutOfMemoryError
from cytofm_cli.work.children import Lost, Say, supervise
from cytofm_cli.work.signals import StopFlag

Task = TypeVar("Task")
Result = TypeVar("Result")


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
        CytofmError: a process crashed.
        Exception: what `work` raised.
    """
    answer = partial(_attempt, work)
    with closing(
        supervise(
            answer,
            tasks,
            workers=workers,
            stop=stop,
            method="spawn",
            start=start,
            start_args=start_args,
        )
    ) as heard:
        for news in heard:
            if isinstance(news, Lost):
                raise _of_loss(news)
            result, error = news.message
            if error is not None:
                raise error
            yield news.task, result


def _attempt(
    work: Callable[[Task], Result], task: Task, _say: Say
) -> tuple[Result | None, Exception | None]:
    try:
        return work(task), None
    except Exception as error:
        told = error if _travels(error) else RuntimeError(f"{type(error).__name__}: {error}")
        if not isinstance(error, CytofmError):  # a bug: tell where
            told.add_note(f"In a worker process:\n{traceback.format_exc()}")
        return None, told


def _travels(error: Exception) -> bool:
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))  # not all that leaves arrives
    except Exception:  # its class decides what pickling it raises
        return False
    return True


def _of_loss(lost: Lost[Any]) -> CytofmError:
    if lost.why == "killed":
        return OutOfMemoryError(
            "a worker process was killed, most likely for lack of memory.",
            hint="give the job more memory, or fewer --workers; then run the same command again.",
        )
    return CytofmError(
        f"a worker process crashed ({lost.detail}).", hint="run the same command again."
    )
