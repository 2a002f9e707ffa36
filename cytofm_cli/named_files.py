"""Files that a user names: plain ones, and pipes (`<(command)`) where they are read from the start.

A pipe gives its content once; so what it gave is kept, for steps that read a table again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

_given: Final[dict[tuple[int, int], bytes]] = {}  # by device and inode of a pipe


def absent(path: Path, what: str = "file") -> str:
    """Say why there is no plain file at a path.

    Args:
        path: where none is.
        what: what could be there.
    """
    if path.is_dir():
        return "is a folder"
    if path.is_fifo():
        return "is a pipe, which can be read only once: write it into a file"
    return "is no plain file" if path.exists() else f"no such {what}"


def read_bounded(path: Path, most: int) -> bytes:
    """Read a plain file, or a pipe, up to a size.

    Raises:
        OSError: it cannot be read, is a device, which has no end, or has more bytes.
    """
    with open_bounded(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(path, most)
    return data


def open_bounded(path: Path, most: int) -> BinaryIO:
    """Open a plain file, or what a pipe gave, to be read more than once.

    Raises:
        OSError: it cannot be read, is a device, which has no end, or has more bytes.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", opener=without_waiting))
        status = os.fstat(file.fileno())
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            raise OSError(errno.EINVAL, "is a device", str(path))
        if status.st_size > most:
            raise _too_large(path, most)
        os.set_blocking(file.fileno(), True)
        if stat.S_ISREG(status.st_mode):
            stack.pop_all()
            return file
        data = _read_pipe(file, most)
    if len(data) > most:
        raise _too_large(path, most)
    pipe = status.st_dev, status.st_ino
    if data:
        _given[pipe] = data
    return io.BytesIO(_given.get(pipe, b""))


def without_waiting(path: str | Path, flags: int) -> int:
    """Open a pipe that has no writer without waiting for one; an `opener` of `open`."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"has over {most} bytes", str(path))


def _read_pipe(file: BinaryIO, most: int) -> bytes:
    parts, size = [], 0
    while size <= most and (part := file.read(1 << 20)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)
