"""Run `cytofm` in forks of one warm process, and end it before any change of the file system.

A process of its own, which has no threads: it imports what commands need, then forks one child a
request. In the child an audit hook of Python sees every change that Python code is about to make
(files opened for writing, renamed, removed; folders made and removed), also in the children of
that child, and kills them all before the K-th one: as when the power fails, between two calls of
the system.

Requests and answers are lines of JSON: {"words", "crash_at", "said", "cwd"} → {"code", "changes"}.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable

CRASHED = -signal.SIGKILL
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
)
_WARM = (
    "anndata h5py imagecodecs numcodecs numpy safetensors.numpy scipy.optimize scipy.stats"
    " sklearn.linear_model tifffile torch zarr cytofm_cli.api.embed cytofm_cli.api.run"
    " cytofm_cli.cells.run cytofm_cli.encoders.run cytofm_cli.evaluate.run"
    " cytofm_cli.maps.heatmap cytofm_cli.mil.cells cytofm_cli.mil.run cytofm_cli.nuclei.run"
    " cytofm_cli.pretrain.run cytofm_cli.report.report cytofm_cli.tiles.run cytofm_cli.views.run"
).split()


def _is_change(event: str, arguments: tuple[object, ...]) -> bool:
    if event != "open":
        return event in _CHANGES
    path, _, flags = arguments
    if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & _WRITES:
        return False
    return not os.fsdecode(path).startswith(("/dev/", "/proc/"))


def _counting(count: mmap.mmap, crash_at: int | None) -> Callable[[str, tuple[object, ...]], None]:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if _is_change(event, arguments):
            number = struct.unpack("<q", count[:8])[0]
            if crash_at is not None and number >= crash_at:
                os.killpg(0, signal.SIGKILL)
            count[:8] = struct.pack("<q", number + 1)

    return hook


def _child(words: list[str], said: str, cwd: str, count: mmap.mmap, crash_at: int | None) -> None:
    from cytofm_cli.__main__ import main

    os.setsid()
    os.chdir(cwd)
    words_out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(words_out, 1)
    os.dup2(words_out, 2)
    sys.addaudithook(_counting(count, crash_at))
    code = 1
    try:
        main(words)
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def load() -> None:
    """Import what commands need."""
    sys.dont_write_bytecode = True
    for name in _WARM:
        try:
            __import__(name)
        except ImportError:  # an optional package
            continue


def serve() -> None:
    """Answer requests until stdin ends."""
    load()
    for line in sys.stdin:
        request = json.loads(line)
        count = mmap.mmap(-1, 8)
        pid = os.fork()
        if pid == 0:
            _child(*(request[key] for key in ("words", "said", "cwd")), count, request["crash_at"])
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        answer = {"code": code, "changes": struct.unpack("<q", count[:8])[0]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
