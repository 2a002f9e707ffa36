"""Claims: at most one process works on one thing at a time, on shared disks too.

A claim is a small file made with O_EXCL, which is atomic on local and network filesystems;
no flock, which some cluster filesystems refuse. Its modification time is the heartbeat. A
claim is stale when its process can be looked up and is gone, or when its heartbeat is old. A
process number says something only in its own PID namespace, under its own kernel: containers
share a host's name, and machines may share theirs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cytofm_cli.errors import TryAgainError

HEARTBEAT_S = 30.0
# Network filesystems cache attributes for up to a minute: several missed beats, not one.
STALE_S = 600.0
_HOST_BYTES = 32
# The longest of `.claim`, `.claim.<host>-<pid>-<8 hex>.stale`, `.<host>-<pid>.partial`.
SUFFIX_BYTES = 72
_HIDDEN = "hidden"  # a process of another user, of which /proc may show nothing


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
    token = f"{host_tag()}-{os.getpid()}-{secrets.token_hex(4)}"
    deadline = time.monotonic() + wait_s
    while not _try_create(path, token):
        if _is_stale(path) and _remove_stale(path, token):
            continue
        if time.monotonic() >= deadline:
            holder = _read(path)
            raise ClaimHeldError(
                f"{path.name}: process {holder.get('pid')} on {holder.get('host')} is at it.",
                hint="wait for it, or run again later; without a sign of life its claim lapses "
                f"after {STALE_S / 60:.0f} minutes.",
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


def host_tag() -> str:
    """Return the start of the host's name, short enough to be part of a file's name."""
    return os.fsencode(socket.gethostname())[:_HOST_BYTES].decode("utf-8", "ignore")


def _try_create(path: Path, token: str) -> bool:
    content = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "token": token,
        **_realm(),
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_stale(path: Path) -> bool:
    holder = _read(path)
    if not holder:  # killed between creating and writing it
        return _silent(path, 1.0)
    if holder.get("host") == socket.gethostname() and _in_our_realm(holder):
        started = _process_start(int(str(holder.get("pid", 0))))
        if started != _HIDDEN:
            return started != holder.get("started")
    return _silent(path, STALE_S)


def _in_our_realm(holder: Mapping[str, object]) -> bool:
    """Tell whether its process number means the same process here; older claims do not say."""
    return all(holder.get(key, value) == value for key, value in _realm().items())


def _realm() -> dict[str, str | None]:
    """Return where a process number is valid: which start of which kernel, which namespace."""
    boot = namespace = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return {"boot": boot, "pid_namespace": namespace}


def _silent(path: Path, seconds: float) -> bool:
    """Tell whether the last heartbeat is older than so many seconds, by the disk's own clock."""
    try:
        beat = path.stat().st_mtime
    except OSError:  # gone just now
        return False
    return time.time() - beat > seconds and _now_on_disk(path) - beat > seconds


def _now_on_disk(path: Path) -> float:
    """Return the time by the clock that stamped the claim, that of a file server perhaps."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.stale")
    try:
        with probe.open("x"):
            return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _process_start(pid: int) -> str | None:
    """Return the start time of a process, None if it is gone: a pid alone may be reused."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        # A killed process stays as a zombie until its parent looks; it does nothing any more.
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    hidden = Path("/proc/self/stat").exists()  # else no /proc: macOS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return _HIDDEN if hidden else "alive"


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
