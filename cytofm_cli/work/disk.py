"""Try in a folder what stores rest on: renames, claims, flushes, clock, room for bytes and files.

Everything is tried in a hidden folder of its own, which is removed. What only shows between two
machines (how long one sees old attributes of what the other wrote) cannot be tried from one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cytofm_cli.units import human_bytes
from cytofm_cli.work.claim import STALE_S
from cytofm_cli.work.files import output_errors

_FEW_FILES: Final = 1000
_FEW_BYTES: Final = 1 << 30
_CLOCK_S: Final = 5.0
_TOOL_S: Final = 10.0


class Trial(NamedTuple):
    """What was tried, whether it went as stores need it, and what came of it."""

    name: str
    fine: bool
    text: str


def try_folder(folder: Path) -> Iterator[Trial]:
    """Try a folder in which stores are to lie.

    Raises:
        OutputError, DiskFullError: nothing can be written there.
    """
    yield Trial("file system", True, _file_system(folder))
    room = folder / f".doctor-{secrets.token_hex(4)}.partial"
    with output_errors(folder):
        room.mkdir()
    try:
        yield Trial("write access", True, "yes")
        yield from _room(folder)
        yield _try("clock", _clock, room)
        yield _try("rename of files and folders", _renames, room)
        yield _try("claims (exclusive creation)", _claims, room)
        yield _try("flush to the disk", _flushes, room)
        yield Trial("hard links", True, _links(room))
        yield _try("names of files", _names, room)
    finally:
        shutil.rmtree(room, ignore_errors=True)


class _UnfitError(Exception):
    """The file system does something else than stores need."""


def _try(name: str, trial: Callable[[Path], str], room: Path) -> Trial:
    try:
        return Trial(name, True, trial(room))
    except (_UnfitError, OSError) as error:
        return Trial(name, False, str(error))


def _file_system(folder: Path) -> str:
    """Return kind and mount of a file system, as Linux lists them."""
    where = str(folder.resolve())
    best = ("", "unknown")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, kind, *_ = line.split(" ")
            inside = where == mount or where.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best[0]):
                best = (mount, kind)
    return f"{best[1]}, mounted at {best[0]}" if best[0] else best[1]


def _room(folder: Path) -> Iterator[Trial]:
    """Say what is free; many cluster file systems answer with the quota of the project."""
    free = os.statvfs(folder)
    n_bytes = free.f_bavail * free.f_frsize
    yield Trial("room for bytes", n_bytes >= _FEW_BYTES, f"{human_bytes(n_bytes)} free")
    if free.f_files:
        told = f"{free.f_favail} of {free.f_files} free; a store takes 75 and more"
        yield Trial("room for files", free.f_favail >= _FEW_FILES, told)
    if told := _quota(folder):
        yield Trial("quota", True, told)


def _quota(folder: Path) -> str:
    """Return what the tools of the site say of this user's quota, in their own words."""
    lustre = "lustre" in _file_system(folder)
    words = (
        ["lfs", "quota", "-h", "-u", str(os.getuid()), str(folder)] if lustre else ["quota", "-s"]
    )
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - words of our own, no shell
            words, capture_output=True, text=True, timeout=_TOOL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return " | ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def _clock(room: Path) -> str:
    """Compare the clock that stamps files with this machine's: claims lapse by the former."""
    before = time.time()
    (room / "now").touch()
    ahead_s = (room / "now").stat().st_mtime - (before + time.time()) / 2
    if abs(ahead_s) > STALE_S / 10:
        raise _UnfitError(f"files are stamped {ahead_s:+.0f} s from this machine's clock")
    close = abs(ahead_s) < _CLOCK_S
    return "as this machine's" if close else f"{ahead_s:+.0f} s from this machine's"


def _renames(room: Path) -> str:
    """Try that a new file takes the place of the old one, and that a full folder is in the way."""
    old, new, empty = room / "old", room / "new", room / "empty"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)
    if old.read_text() != "new" or new.exists():
        raise _UnfitError("a file that is renamed over another does not take its place")
    full = [room / name for name in ("full", "other")]
    for folder in (*full, empty):
        folder.mkdir()
    for folder in full:
        (folder / "file").touch()
    with contextlib.suppress(OSError):
        full[0].rename(full[1])
        raise _UnfitError("a folder is renamed over one that is not empty: stores could be lost")
    full[0].rename(empty)
    if not (empty / "file").exists() or full[0].exists():
        raise _UnfitError("a folder that is renamed does not arrive whole")
    return "at once, and never over a full folder"


def _claims(room: Path) -> str:
    path = room / "claim"
    for first in (True, False):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            if not first:
                return "one of two gets it"
    raise _UnfitError("two processes could hold the same slide: O_EXCL is not kept")


def _flushes(room: Path) -> str:
    start = time.perf_counter()
    for path, flags in ((room / "flushed", os.O_CREAT | os.O_WRONLY), (room, os.O_RDONLY)):
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    return f"{1000 * (time.perf_counter() - start):.1f} ms for a file and its folder"


def _links(room: Path) -> str:
    (room / "linked").touch()
    try:
        os.link(room / "linked", room / "link")
    except OSError:
        return "none; nothing needs them"
    return "yes"


def _names(room: Path) -> str:
    most = os.pathconf(room, "PC_NAME_MAX")
    (room / "Case").touch()
    if (room / "case").exists():
        raise _UnfitError("upper and lower case are one: slides that differ by it would collide")
    for name in ("naïve 切片", "n" * most):
        (room / name).touch()
    if "naïve 切片" not in {path.name for path in room.iterdir()}:
        raise _UnfitError("names come back other than they were written (Unicode is rewritten)")
    return f"up to {most} bytes, case and Unicode kept"
