"""Run a command in a child of limited memory, time and files, without a network."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from mutants import Prepared
from warm import leave

MOST_BYTES: Final = 2 << 30
MOST_SECONDS: Final = 20.0
MORE_SECONDS: Final = 2.0  # for each file of a batch
MOST_FILE_BYTES: Final = 1 << 30


def _limited(prepared: Prepared) -> None:
    _confine(prepared.folder)
    from cytofm_cli.__main__ import main

    main(prepared.words)


def _confine(folder: Path) -> None:
    """Limit this process: its memory, its files, where it writes, and no network."""
    os.setsid()
    os.chdir(folder)
    for name in ("out", "err"):
        handle = os.open(f"said.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1 if name == "out" else 2)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    os.environ["CYTOFM_CACHE_DIR"] = str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(MOST_SECONDS), int(MOST_SECONDS) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_no_network)


def _no_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        os.write(2, b"NETWORK\n")
        os._exit(99)


def run_limited(prepared: Prepared) -> tuple[int | None, float, int]:
    """Run a command in a limited child; return its exit code (None: it hung), seconds, peak."""
    start = time.monotonic()
    # Where others compute, a second of this machine is no second of its processor.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    most = busy * (MOST_SECONDS + MORE_SECONDS * len(prepared.mutants))
    pid = os.fork()
    if pid == 0:
        leave(functools.partial(_limited, prepared))
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        seconds = time.monotonic() - start
        hung = not done and seconds > most
        if done or hung:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        if hung:
            _, _, usage = os.wait4(pid, 0)
            return None, seconds, usage.ru_maxrss * 1024
        if done:
            return os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss * 1024
        time.sleep(0.005)
