"""Claims: at most one process works on one thing at a time, on shared disks too.

A claim is a small file made with O_EXCL, which is atomic on local and network filesystems;
no flock, which some cluster filesystems refuse. Its modification time is the heartbeat. A
claim is stale when its process can be looked up and is gone. A process number says something
only in its own PID namespace, under its own kernel: containers share a host's name, and machines
may share theirs. What cannot be looked up is stale when its heartbeat is old, or of a time that is
still to come, by the clock of the disk, and has not changed while we looked again and again:
clocks jump and disagree, the number of looks does not. A job that Slurm has put back into its queue
after the loss of a node starts elsewhere, and knows that its former run is over: its claims say
which run of which job they are of, and those of a former run are stale at once.

A process that was suspended for so long that another took its claim learns so at the next
`refuse_lost`, before it could put its work over the other's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cytofm_cli.errors import StoppedError, TryAgainError
from cytofm_cli.named_files import without_waiting

HEARTBEAT_S = 10.0
# Network filesystems cache attributes for up to a minute: several missed beats, not one.
STALE_S = 600.0
# How often, and how many seconds apart, a claim that looks abandoned is looked at: for longer than
# between two beats of former versions, which were 30 s apart.
LOOKS, LOOK_S = 35, 1.0
_HOST_BYTES = 32
# The longest of `.claim`, `.claim.<host>-<pid>-<8 hex>.stale`, `.<host>-<pid>.partial`.
SUFFIX_BYTES = 72
_HIDDEN = "hidden"  # a process of another user, of which /proc may show nothing


_held: dict[Path, str] = {}  # the claims of this process by absolute path, with their tokens


class ClaimHeldError(TryAgainError):
    """Another living process holds the claim."""


@dataclass(frozen=True)
class _Sight:
    """A claim as it was seen: what it says, and its last heartbeat, ns."""

    holder: Mapping[str, object]
    beat_ns: int


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
        sight = _look(path)
        if sight is not None and _is_stale(path, sight) and _remove_stale(path, token, sight):
            continue
        if time.monotonic() >= deadline:
            raise _held_by(path)
        time.sleep(0.05)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, token, stop), daemon=True)
    beat.start()
    _held[path.absolute()] = token
    try:
        yield
        # What was done is done; `refuse_lost` has looked before it was put into place.
    except StoppedError:
        raise
    except Exception as error:
        refuse_lost(path, error)  # whoever took the claim has cleared away what we were at
        raise
    finally:
        stop.set()
        beat.join(LOOK_S)  # whoever forks next forks no thread along
        _held.pop(path.absolute(), None)
        if _read(path).get("token") == token:
            path.unlink(missing_ok=True)


def refuse_lost(path: Path, why: Exception | None = None) -> None:
    """Refuse to go on under a claim of this process that another one has taken meanwhile.

    Args:
        path: a claim; one that this process does not hold is not judged.
        why: what went wrong since.

    Raises:
        ClaimHeldError: it was taken.
    """
    token = _held.get(path.absolute())
    if token is not None and _read(path).get("token") != token:
        raise ClaimHeldError(
            f"{path.name}: another process took this claim, as this one gave no sign of life.",
            hint="run the same command again.",
        ) from why


def host_tag() -> str:
    """Return the start of the host's name, short enough to be part of a file's name."""
    return os.fsencode(socket.gethostname())[:_HOST_BYTES].decode("utf-8", "ignore")


@functools.cache
def realm_tag() -> str:
    """Return six hex digits for where a process number of ours is valid."""
    return hashlib.sha256(json.dumps(_realm()).encode()).hexdigest()[:6]


def is_gone(pid: int) -> bool:
    """Tell whether a process of this realm does not run any more."""
    return _process_start(pid) is None


def _try_create(path: Path, token: str) -> bool:
    content: dict[str, object] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
        "token": token,
        **_realm(),
    }
    if (job := _slurm_job()) is not None:
        content["job"] = job
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as handle:
        json.dump(content, handle)
    return True


def _look(path: Path) -> _Sight | None:
    """Look at a claim; None: it is gone. Opening it makes network filesystems look again, too."""
    try:
        # A pipe that bears the name of a claim would be waited for.
        with open(path, "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            text = file.read() if stat.S_ISREG(status.st_mode) else b""
    except OSError:
        return None
    return _Sight(_parsed(text), status.st_mtime_ns)


def _read(path: Path) -> Mapping[str, object]:
    sight = _look(path)
    return {} if sight is None else sight.holder


def _parsed(text: bytes) -> dict[str, object]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _held_by(path: Path) -> ClaimHeldError:
    holder = _read(path)
    return ClaimHeldError(
        f"{path.name}: process {holder.get('pid')} on {holder.get('host')} is at it.",
        hint="wait for it, or run again later; without a sign of life its claim lapses "
        f"after {STALE_S / 60:.0f} minutes.",
    )


def _is_stale(path: Path, sight: _Sight) -> bool:
    holder = sight.holder
    if not holder:  # killed between creating and writing it
        return _is_silent(path, sight, 1.0) and _stays(path, sight, 1)
    if _is_of_former_run(holder):
        return True
    if holder.get("host") == socket.gethostname() and _in_our_realm(holder):
        started = _process_start(_number(holder.get("pid")))
        if started != _HIDDEN:
            return started != holder.get("started")
    return _is_silent(path, sight, STALE_S) and _stays(path, sight, LOOKS)


def _stays(path: Path, sight: _Sight, looks: int) -> bool:
    """Tell whether a claim is the same at each of so many looks."""
    for _ in range(looks):
        time.sleep(LOOK_S)
        if _look(path) != sight:
            return False
    return True


def _number(text: object) -> int:
    try:
        return int(str(text))
    except ValueError:
        return 0


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


def _slurm_job() -> dict[str, str | int] | None:
    """Return which job of Slurm this process is of, and how often that was started anew."""
    said = os.environ.get
    if not said("SLURM_JOB_ID"):
        return None
    restarts = said("SLURM_RESTART_COUNT", "")  # not there in the first run
    return {
        "cluster": said("SLURM_CLUSTER_NAME", ""),  # several clusters may share a disk
        "id": said("SLURM_JOB_ID", ""),
        "task": said("SLURM_ARRAY_TASK_ID", ""),
        "restart": int(restarts) if restarts.isdecimal() else 0,
    }


def _is_of_former_run(holder: Mapping[str, object]) -> bool:
    """Tell whether its holder was of this very job, before Slurm requeued it: one run at a time."""
    ours, theirs = _slurm_job(), holder.get("job")
    if ours is None or not isinstance(theirs, Mapping):
        return False
    now, then = ours.pop("restart"), theirs.get("restart")
    same = all(theirs.get(key) == value for key, value in ours.items())
    return same and isinstance(then, int) and then < int(now)


def _is_silent(path: Path, sight: _Sight, seconds: float) -> bool:
    """Tell whether the last heartbeat is older than so many seconds, by the disk's own clock.

    A time that is still to come says nothing: the clock that stamped it was ahead.
    """
    silent_s = _now_on_disk(path) - sight.beat_ns * 1e-9
    return silent_s > seconds or silent_s < -HEARTBEAT_S


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


def _remove_stale(path: Path, token: str, sight: _Sight) -> bool:
    """Remove a stale claim; of several processes that try, one succeeds."""
    aside = path.with_name(f"{path.name}.{token}.stale")
    try:
        path.rename(aside)
    except OSError:
        return False
    fresh = _look(aside) != sight
    if fresh:  # another process renewed it between our look and our rename: give it back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    return not fresh


def _heartbeat(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        if _read(path).get("token") == token:  # the claim of another is for it to keep alive
            with contextlib.suppress(OSError):
                os.utime(path)
