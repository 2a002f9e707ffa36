"""Decoded tiles that the steps of one slide share, so that each is decoded once.

They lie in a file without a name in the folder for temporary files, which the system removes
with the process, however that ends. It is written and read as a file and not mapped: a full disk
is then an error that ends the keeping, and not a crash, and its pages are not memory of ours.
What does not fit is decoded again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

# 2 700 tiles of 512 px; of a smaller disk no more than a quarter of what is free.
MOST_BYTES: Final = 2 * 2**30
_MOST_OF_FREE: Final = 0.25

_now: ContextVar[KeptTiles | None] = ContextVar("_now", default=None)


class _Tiles(Protocol):
    xy_px0: NDArray[np.int32]

    def read(self, index: int) -> NDArray[np.uint8]: ...


@contextlib.contextmanager
def keep_tiles(most_bytes: int | None = None) -> Iterator[None]:
    """Let everything that opens tiles in this block, in this thread, share what it decodes.

    Args:
        most_bytes: of decoded tiles that are kept; None: `MOST_BYTES`.
    """
    with contextlib.ExitStack() as stack:
        kept = None
        with contextlib.suppress(OSError):  # no such folder, or none that can be written
            file = stack.enter_context(tempfile.TemporaryFile(prefix="cytofm-"))
            most = MOST_BYTES if most_bytes is None else most_bytes
            kept = KeptTiles(file, min(most, _room(file)))
        token = _now.set(kept)
        try:
            yield
        finally:
            _now.reset(token)


def shared(tiles: _Tiles, source: str) -> _Tiles:
    """Return tiles that share what they decode with others of the same source.

    Args:
        tiles: whose `read` decodes.
        source: what they are tiles of, down to its version; equal text means equal pixels.
    """
    kept = _now.get()
    return tiles if kept is None else SharedTiles(tiles, kept, source)


class KeptTiles:
    """A file of decoded tiles; any thread may use it.

    Args:
        file: open for reading and writing, empty.
        most_bytes: what it may grow to.
    """

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._descriptor, self._left, self._end = file.fileno(), most_bytes, 0
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int], tuple[int, tuple[int, ...]]] = {}

    def find(self, source: str, index: int) -> NDArray[np.uint8] | None:
        """Return a tile, None if it is not kept."""
        place = self._places.get((source, index))
        if place is None:
            return None
        offset, shape = place
        n_bytes = int(np.prod(shape))
        try:
            data = os.pread(self._descriptor, n_bytes, offset)
        except OSError:
            return None
        return np.frombuffer(data, dtype=np.uint8).reshape(shape) if len(data) == n_bytes else None

    def keep(self, source: str, index: int, tile: NDArray[np.uint8]) -> None:
        """Keep a tile, if there is room for it."""
        with self._lock:
            if tile.nbytes > self._left or (source, index) in self._places:
                return
            offset, self._end = self._end, self._end + tile.nbytes
            self._left -= tile.nbytes
        data = np.ascontiguousarray(tile).data.cast("B")
        try:
            whole = os.pwrite(self._descriptor, data, offset) == tile.nbytes
        except OSError:  # the disk is full: what is kept stays of use
            whole = False
        with self._lock:
            if whole:
                self._places[source, index] = (offset, tile.shape)
            else:
                self._left = 0


class SharedTiles:
    """Tiles that look first among those that are kept.

    Args:
        tiles: whose `read` decodes.
        kept: the others.
        source: see `shared`.
    """

    def __init__(self, tiles: _Tiles, kept: KeptTiles, source: str) -> None:
        self.xy_px0 = tiles.xy_px0
        self._tiles, self._kept, self._source = tiles, kept, source

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile as (tile_px, tile_px, 3) uint8 RGB."""
        tile = self._kept.find(self._source, index)
        if tile is None:
            tile = self._tiles.read(index)
            self._kept.keep(self._source, index, tile)
        return tile


def _room(file: BinaryIO) -> int:
    """Return how many bytes may be written beside what others need."""
    free = os.fstatvfs(file.fileno())
    return int(free.f_bavail * free.f_frsize * _MOST_OF_FREE)
