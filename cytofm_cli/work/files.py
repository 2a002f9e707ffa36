"""Write files so that a reader, or a kill at any moment, finds the old one or the new one.

A file is written under a hidden name beside its place, flushed to the disk, and renamed. Without
the flush some file systems keep the rename and lose the content when the machine goes down.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from cytofm_cli.errors import CytofmError, DiskFullError, InputError, OutputError
from cytofm_cli.named_files import without_waiting
from cytofm_cli.work.claim import host_tag, is_gone, realm_tag

RECORD_BYTES: Final = 256 << 20  # of JSON and TOML: far more than any has
_SUFFIX: Final = ".partial"
_ABANDONED_S: Final = 3600.0
# Of the name of the file; with host, process and token the whole fits every file system.
_KEPT_BYTES: Final = 80
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNWRITABLE: Final = frozenset(
    {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}
)
# What disks, mounts, permissions and names do to a program; anything else is its own doing.
_OF_THE_SYSTEM: Final = frozenset(
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENAMETOOLONG ENOENT ENOTDIR EISDIR ELOOP EIO EBADF ENXIO "
    "ESTALE ETIMEDOUT ENOLCK EFBIG".split()
)
_SOMEWHERE: Final = "standard output, or a file"
# How Rust (safetensors) and HDF5 spell the number of an error of the system.
_NUMBER: Final = re.compile(r"\b(?:os error |errno = )(\d+)")


class NoPlainFileError(OSError):
    """A pipe, a device or a folder lies where a file is read."""


@contextlib.contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give the name of a new, empty, hidden file, which takes the place of `path` at the end.

    Its name is nobody else's, and it is removed if the block fails. Whatever the block writes it
    with, it gets the permissions of an ordinary new file.

    Args:
        path: the file to make or to replace; its folder is made.
        flush: wait until the content is on the disk. False for a file within a folder that is
            itself flushed and renamed into place later.

    Raises:
        OutputError, DiskFullError, InputError: see `output_errors`; or `path` is a folder.
    """
    with output_errors(path.parent):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder.", hint="name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path = real_place(path)
        if flush:
            _remove_abandoned(path.parent)
        partial = path.with_name(_hidden_name(path.name))
        try:
            mode = _create(partial)
            yield partial
            if partial.stat().st_mode != mode:  # some libraries leave it to its owner alone
                partial.chmod(mode)
            if flush:
                _flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give the name of a hidden folder, not made yet, which takes the place of `path` at the end.

    The caller is the only one who writes there (`claim`). Between the old one and the new one
    there is a moment without any; killed then, the caller makes it again.

    Raises:
        OutputError, DiskFullError, InputError: see `output_errors`.
    """
    with output_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path = real_place(path)
        for left in path.parent.glob(f"{glob.escape(_hidden_stem(path.name))}.*{_SUFFIX}"):
            shutil.rmtree(left, ignore_errors=True)
        partial, aside = (path.with_name(_hidden_name(path.name)) for _ in range(2))
        try:
            yield partial
            flush_folder(partial)
            put_in_place(partial, path, aside)
        finally:
            for left in (partial, aside):
                shutil.rmtree(left, ignore_errors=True)


def put_in_place(made: Path, path: Path, aside: Path) -> None:
    """Rename a finished folder into its place, and remove what was there.

    A kill at any moment leaves the old one whole, under its name or as `aside`, or the new one.

    Args:
        made: the folder, on the same disk.
        path: its place.
        aside: where what was there goes meanwhile; nobody else's.
    """
    put_aside(path, aside)
    made.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def put_aside(path: Path, aside: Path) -> None:
    """Rename a folder, if it is there; what a killed command left under the other name goes."""
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)


def real_place(path: Path) -> Path:
    """Return where a file or folder lies that may be named by a link, which stays what it is.

    Workflow engines stage what they give to a command as links, often to another disk.
    """
    return path.resolve() if path.is_symlink() else path.absolute()


def is_partial(name: str) -> bool:
    """Tell whether a name is that of something half-written, which a killed process has left."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def write_bytes(path: Path, data: bytes, *, flush: bool = True) -> None:
    """Write a file, visible only when complete; see `replacing`."""
    with replacing(path, flush=flush) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str, *, flush: bool = True) -> None:
    r"""Write UTF-8, visible only when complete; see `replacing`.

    What is no UTF-8, as in names of files, becomes \udcXX, which is how JSON spells it too.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), flush=flush)


def write_json(path: Path, value: Any, *, indent: int | None = None, flush: bool = True) -> None:
    """Write JSON in UTF-8, visible only when complete; see `replacing`.

    Raises:
        ValueError: it holds a number that is not finite, which JSON has no word for.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", flush=flush)


def flush_folder(folder: Path) -> None:
    """Wait until all files in a folder, and below it, are on the disk.

    Once before a folder is renamed into place, instead of file by file while it is filled: the
    system has written most of it by then. On a local disk 10 ms for 2 MB, 0.1 to 0.4 s for
    300 MB that take 1 s to write.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            _flush(path)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half-written; the caller is the only one who writes."""
    for left in folder.glob(f".*-*{_SUFFIX}"):
        if left.is_file():
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def output_errors(where: Path) -> Iterator[None]:
    """Turn failures to write into errors that say what and where.

    Raises:
        DiskFullError: no space is left, or no quota.
        OutputError: it may not be written, or a file stands where a folder is needed.
        InputError: a name is too long.
    """
    try:
        yield
    except CytofmError:
        raise
    except Exception as error:
        if (full := disk_full(where, error)) is not None:
            raise full from error
        number = _error_number(error)
        if number == errno.ENAMETOOLONG:
            raise InputError(
                f"{where}: a file name is too long for the disk.", hint="use shorter names."
            ) from error
        if number in (errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{where}: is a file, or lies in one; a folder is needed.",
                hint="write to another folder.",
            ) from error
        if number in _UNWRITABLE:
            raise OutputError(
                f"{where}: cannot be written ({os.strerror(number or 0)}).",
                hint="check its permissions, or write to another folder.",
            ) from error
        raise


def disk_full(where: object, error: Exception) -> DiskFullError | None:
    """Return what to say of an error if a disk, or a quota, is full; None: it is something else."""
    if _error_number(error) not in _FULL:
        return None
    return DiskFullError(
        f"{where}: no space left on the disk.",
        hint="make room and run the same command again; what was finished is kept.",
    )


def known_error(error: Exception, item: str | None = None) -> CytofmError | None:
    """Return what a failure of the system means, met where nobody had a word for it.

    Args:
        error: the failure.
        item: what was worked on, to be named first.

    Returns:
        None: it is a bug.
    """
    name = getattr(error, "filename", None)
    file = os.fsdecode(name) if isinstance(name, str | bytes) else ""
    if (full := disk_full(item or file or _SOMEWHERE, error)) is not None:
        return full
    number = error.errno if isinstance(error, OSError) else None
    where = ": ".join(filter(None, (item, file))) or _SOMEWHERE
    if isinstance(error, NoPlainFileError):
        return InputError(f"{where}: {error.strerror}.", hint="put the file itself there.")
    if number is None or number not in _OF_THE_SYSTEM:
        return None
    return InputError(
        f"{where}: cannot be read or written ({os.strerror(number)}).",
        hint="check the path, its permissions and the disk.",
    )


def _error_number(error: Exception) -> int | None:
    """Return the number of the system's error; of a full disk some libraries only tell in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = _NUMBER.search(str(error))
    if told and int(told[1]) in _FULL:
        return int(told[1])
    before = error.__context__
    while before is not None:  # torch's writer hides what its file said
        if isinstance(before, OSError) and before.errno in _FULL:
            return before.errno
        before = before.__context__
    return None


def _hidden_name(name: str) -> str:
    owner = f"{host_tag()}-{os.getpid()}-{realm_tag()}"
    return f"{_hidden_stem(name)}.{owner}{secrets.token_hex(4)}{_SUFFIX}"


def _hidden_stem(name: str) -> str:
    return f".{os.fsencode(name)[:_KEPT_BYTES].decode('utf-8', 'ignore')}"


def _create(path: Path) -> int:
    """Make an empty file as `open` would; return its mode."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)


def read_plain(path: Path | str, most: int = RECORD_BYTES) -> bytes:
    """Read a file, if it is a plain one: links in a store that was fetched lead where they like.

    A device has no end, and a pipe waits for a writer.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no plain file, or is larger.
    """
    descriptor, size = _open_descriptor(path)
    try:
        if size > most:
            raise OSError(errno.EFBIG, f"has over {most} bytes", str(path))
        # Not by a file object, which asks four times more what it reads: cohorts have many records.
        return b"".join(iter(lambda: os.read(descriptor, size + 1), b""))
    finally:
        os.close(descriptor)


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading, if it is a plain one.

    Raises:
        OSError: it cannot be opened, or is none.
    """
    descriptor, _ = _open_descriptor(path)
    return open(descriptor, "rb")  # noqa: PTH123 - the caller closes it


def _open_descriptor(path: Path | str) -> tuple[int, int]:
    """Open a plain file; return its descriptor and its bytes. Errors as of `open_plain`."""
    descriptor = without_waiting(path, os.O_RDONLY)
    told = os.fstat(descriptor)
    if not stat.S_ISREG(told.st_mode):
        os.close(descriptor)
        raise NoPlainFileError(errno.EINVAL, "is no plain file", str(path))
    return descriptor, told.st_size


def plain(path: Path) -> Path:
    """Return the path of a plain file, for a library that opens it by its name.

    Raises:
        OSError: it cannot be opened, or is none.
    """
    open_plain(path).close()
    return path


def require_plain(folder: Path) -> None:
    """Refuse a folder in which something is neither a plain file nor a folder, for other readers.

    Raises:
        OSError: names it; or there is no such folder.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.is_file() or entry.is_dir()) and entry.name[:1] != ".":
                raise NoPlainFileError(errno.EINVAL, "is no plain file", entry.path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@functools.lru_cache(1024)  # not for every file: a folder of many is long to list
def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left; where that cannot be looked up, what is old."""
    for left in folder.glob(f".*-*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            old = time.time() - left.stat().st_mtime > _ABANDONED_S
            if left.is_file() and (old or _owner_is_gone(left.name)):
                left.unlink()


def _owner_is_gone(name: str) -> bool:
    owner = rf"\.{re.escape(host_tag())}-(\d+)-{realm_tag()}[0-9a-f]{{8}}{re.escape(_SUFFIX)}$"
    told = re.search(owner, name)
    return told is not None and is_gone(int(told[1]))
