"""A supervisor in an interpreter of its own, for callers that must not fork.

A Python session has threads (libvips, torch, Jupyter), and a child that is forked off one of
those may wait for ever for a lock. So a fresh interpreter, which has none, forks the workers, as
the command line does, and sends what they say. It runs no code of the caller's script: no
`if __name__ == "__main__":` is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from cytofm_cli.api.failures import explain
from cytofm_cli.errors import CytofmError
from cytofm_cli.work.batch import Event, Task, Work, run_batch
from cytofm_cli.work.children import die_with

_START = (
    "import json, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from cytofm_cli.api.fresh import serve\n"
    "serve(int(sys.argv[2]), int(sys.argv[3]))\n"
)
_STOP_GRACE_S = 15.0


def run_fresh(
    work: Work, tasks: Sequence[Task], *, workers: int, stall_s: float
) -> Generator[Event, None, None]:
    """Do what `cytofm_cli.work.batch.run_batch` does, in a fresh interpreter.

    Raises:
        CytofmError: it could not go on, or a signal stopped it.
    """
    ours, theirs = Pipe()
    # -P: no module of the working folder, be it called json, comes before the standard library.
    words = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(theirs.fileno())]
    with contextlib.closing(theirs):
        supervisor = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
            [*words, str(os.getpid())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
    try:
        with contextlib.suppress(BrokenPipeError):  # it died: `recv` tells
            ours.send((work, list(tasks), workers, stall_s))
        yield from _events(ours)
    finally:
        ours.close()  # else it could wait for ever for room in the pipe
        _end(supervisor)


def _events(pipe: Connection) -> Generator[Event, None, None]:
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError) as error:
            raise CytofmError(
                "the process that supervises the slides is gone.",
                hint="run the same again; without workers= it is done in this process.",
            ) from error
        if message is None:
            return
        if isinstance(message, CytofmError):
            raise message
        yield message


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Wait for the supervisor, which is done or is asked to drop its slides."""
    if supervisor.poll() is None:
        supervisor.terminate()
    try:
        supervisor.wait(_STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def serve(handle: int, parent: int) -> None:
    """Be the supervisor: take the tasks from the pipe, send every event through it."""
    die_with(parent)
    pipe = Connection(handle)
    work, tasks, workers, stall_s = pipe.recv()
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        try:
            with contextlib.closing(
                run_batch(work, tasks, workers=workers, stall_s=stall_s, explain=explain)
            ) as events:
                for event in events:
                    pipe.send(event)
        except CytofmError as error:
            pipe.send(error)
        else:
            pipe.send(None)
