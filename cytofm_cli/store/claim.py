"""Claims: at most one process works on one step of one slide, on shared disks too.

A claim is a small file made with O_EXCL, which is atomic on local and network filesystems;
no flock, which some cluster filesystems refuse. Its modification time is the heartbeat. A
claim is stale when its process is gone (same host) or its heartbeat is old (other hosts).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cytofm_cli.errors import TryAgainError

HEARTBEAT_S = 30.0
# Network filesystems cache attributes for up to a minute: several missed beats, not one.
STALE_S = 600.0


class ClaimHeldError(TryAgainError):
    """Another living process holds the claim."""


@contextlib.contextmanager
def claim(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold `path` as a claim for the length of a `with` block.

    Args:
        path: the claim file; its folder exists.
        wait_s: how long to wait for another holder.

    Raises:
        ClaimHeldError: another living process holds it (exit code 75).
    """
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + wait_s
    while not _try_create(path, token):
        if _is_stale(path) and _remove_stale(path, token):
            continue
        if time.monotonic() >= deadline:
            holder = _read(path)
            raise ClaimHeldError(
                f"{path.name}: process {holder.get('pid')} on {holder.get('host')} is at it.",
                hint="wait for it, or run again later.",
            )
        time.sleep(0.05)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def _try_create(path: Path, token: str) -> bool:
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "token": token,
    }
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as handle:
        json.dump(content, handle)
    return True


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(path: Path) -> bool:
    holder = _read(path)
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return False
    if not holder:  # killed between creating and writing it
        return age_s > 1.0
    if holder.get("host") == socket.gethostname():
        pid = int(str(holder.get("pid", 0)))
        return _process_start(pid) != holder.get("started")
    return age_s > STALE_S


def _process_start(pid: int) -> str | None:
    """Return the start time of a process, None if it is gone: a pid alone may be reused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A killed process stays as a zombie until its parent looks; it does nothing any more.
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def _remove_stale(path: Path, token: str) -> bool:
    """Remove a stale claim; of several processes that try, one succeeds."""
    aside = path.with_name(f"{path.name}.{token}.stale")
    try:
        path.rename(aside)
    except OSError:
        return False
    fresh = not _is_stale(aside)
    if fresh:  # another process renewed it between our look and our rename: give it back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return not fresh


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)
