"""Run `cytofm` in forks of one warm process, and end it before any change of the file system.

A process of its own, which has no threads: it imports what commands need, then forks one child a
request. In the child an audit hook of Python sees every change that Python code is about to make
(files opened for writing, renamed, removed; folders made and removed), also in the children of
that child, and kills them all before the K-th one: as when the power fails, between two calls of
the system.

Requests and answers are lines of JSON: {"do": "start", and what `Request` holds} → {"pid"};
{"do": "wait", "pid", "limit_s"} → {"code", "changes"}.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import json
import mmap
import os
import pkgutil
import re
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

CRASHED = -signal.SIGKILL
HUNG = 1000  # no exit code of any process
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FREEING = frozenset({"os.rename", "os.remove", "os.rmdir", "os.truncate"})
_DEVICES = re.compile("/proc/|/dev/(?!shm/)")  # what lies in /dev/shm are files
_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
)
_WARM = (
    "anndata cv2 h5py imagecodecs numcodecs numpy numpy.core.multiarray PIL.JpegImagePlugin"
    " PIL.PngImagePlugin pydantic.json_schema safetensors.numpy safetensors.torch scipy.optimize"
    " scipy.stats shellingham sklearn.linear_model tensorboard.compat.proto.summary_pb2"
    " tensorboard.summary.writer.record_writer tifffile torch typer zarr"
).split()
# libvips starts threads when it is loaded, and the suites load what they test.
_NOT_WARM = (".readers.", ".testing")


def _is_change(event: str, arguments: tuple[object, ...]) -> bool:
    if event != "open":
        return event in _CHANGES
    path, _, flags = arguments
    if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & _WRITES:
        return False
    return _DEVICES.match(os.fsdecode(path)) is None


@dataclass(frozen=True)
class Request:
    """A command to start; see `Warm.start`."""

    words: list[str]
    said: str
    cwd: str
    crash_at: int | None
    fail: tuple[int, int, int] | None
    clock_s: float


def _watching(count: mmap.mmap, request: Request) -> Callable[[str, tuple[object, ...]], None]:
    first, n, number_of_error = request.fail or (0, 0, 0)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if not _is_change(event, arguments):
            return
        number = struct.unpack("<q", count[:8])[0]
        if request.crash_at is not None and number >= request.crash_at:
            os.killpg(0, signal.SIGKILL)
        count[:8] = struct.pack("<q", number + 1)
        if first <= number < first + n and not _needs_no_space(event, number_of_error):
            raise OSError(number_of_error, os.strerror(number_of_error), arguments[0])

    return hook


def _needs_no_space(event: str, number_of_error: int) -> bool:
    return number_of_error in (errno.ENOSPC, errno.EDQUOT) and event in _FREEING


def _child(request: Request, count: mmap.mmap) -> None:
    from cytofm_cli.__main__ import main

    os.setsid()
    os.chdir(request.cwd)
    words_out = os.open(request.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(words_out, 1)
    os.dup2(words_out, 2)
    _shift_clock(request.clock_s)
    sys.addaudithook(_watching(count, request))
    leave(functools.partial(main, request.words))


def leave(command: Callable[[], object]) -> NoReturn:
    """Run a command in this process, which is a fork, and end it with the command's exit code."""
    code = 1
    try:
        command()
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shift_clock(seconds: float) -> None:
    if seconds:
        now, now_ns = time.time, time.time_ns
        time.time = lambda: now() + seconds
        time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def _wait(pid: int, limit_s: float) -> int:
    deadline = time.monotonic() + limit_s
    while True:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return HUNG
        time.sleep(0.005)


def load() -> None:
    """Import what commands need: all of ours, and the libraries that they load late."""
    import cytofm_cli

    sys.dont_write_bytecode = True
    ours = (module.name for module in pkgutil.walk_packages(cytofm_cli.__path__, "cytofm_cli."))
    for name in (*_WARM, *(name for name in ours if not any(part in name for part in _NOT_WARM))):
        with contextlib.suppress(ImportError):  # an optional package
            __import__(name)
    gc.collect()
    gc.freeze()  # no child copies what it does not change


def serve() -> None:
    """Answer requests until stdin ends."""
    load()
    counts: dict[int, mmap.mmap] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked.pop("do") == "start":
            count = mmap.mmap(-1, 8)
            pid = os.fork()
            if pid == 0:
                _child(Request(**asked), count)
            counts[pid] = count
            answer = {"pid": pid}
        else:
            code = _wait(asked["pid"], asked["limit_s"])
            count = counts.pop(asked["pid"])
            answer = {"code": code, "changes": struct.unpack("<q", count[:8])[0]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
