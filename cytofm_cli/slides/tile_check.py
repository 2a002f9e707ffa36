"""Look at the compressed data of a tile where decoders would not notice that they are damaged.

JPEG: markers in the middle (10 µs a tile); where the tiles cannot be copied, so that nobody checks
them later, one decoding. Deflate: the checksum at the end, which libtiff does
not read (one fast decoding). LZW, Zstandard and LZMA fail by themselves; PackBits and WebP have
nothing to check.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from typing import Final, Protocol

from cytofm_cli.slides import native_jpeg, tiff
from cytofm_cli.slides.base import slide_error
from cytofm_cli.slides.jpeg_check import is_sound
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Box, Size

# A picture in one strip would be unpacked a second time as a whole.
_MOST_BYTES: Final = 64_000_000


class _Check(Protocol):
    tile_px: Size
    grid: Size

    def refuse_broken(self, column: int, row: int) -> None: ...


class CheckedOnce:
    """The tiles of one directory, each looked at when it is first read."""

    def __init__(self, path: str, directory: Directory) -> None:
        self._check: _Check | None = native_jpeg.open_tiles(path, directory)
        if self._check is None and directory.codec == "jpeg" and directory.tile_px:
            self._check = _JpegTiles(path, directory, directory.tile_px)
        if directory.codec == "deflate" and not directory.planar:
            self._check = _DeflateTiles(path, directory)
        grid = self._check.grid if self._check else Size(0, 0)
        self._seen = bytearray(grid.w * grid.h)

    def refuse_broken(self, box: Box) -> None:
        """Refuse a box if data under it are damaged.

        Raises:
            SlideError: they are.
        """
        if self._check is None:
            return
        (width, height), (x, y, w, h) = self._check.tile_px, box
        for row in range(y // height, -(-(y + h) // height)):
            for column in range(x // width, -(-(x + w) // width)):
                index = row * self._check.grid.w + column
                if not self._seen[index]:
                    self._check.refuse_broken(column, row)
                    self._seen[index] = 1


class CheckedLevels:
    """The tiles of all levels of a TIFF, each looked at when it is first read.

    Args:
        path: of the file.
        levels: the directories of each level; none of a level that is not looked at.
    """

    def __init__(self, path: str, levels: Sequence[Sequence[Directory]]) -> None:
        self._path, self._levels = path, levels
        self._checks: dict[int, list[CheckedOnce]] = {}

    def refuse_broken(self, level: int, box: Box) -> None:
        """Refuse a box of a level if data under it are damaged.

        Raises:
            SlideError: they are.
        """
        checks = self._checks.get(level)
        if checks is None:
            checks = [CheckedOnce(self._path, each) for each in self._levels[level]]
            self._checks[level] = checks
        for check in checks:
            check.refuse_broken(box)

    def clear(self) -> None:
        """Release the file."""
        self._checks.clear()


class _Tiles:
    """What lies in the file for each tile or strip of a directory."""

    def __init__(self, path: str, directory: Directory, tile_px: Size) -> None:
        self.tile_px, self.grid = tile_px, directory.grid
        self._path = path
        self._offsets, self._counts = directory.offsets, directory.byte_counts
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def _stored(self, column: int, row: int) -> bytes:
        index = row * self.grid.w + column
        count = int(self._counts[index])
        return os.pread(self._descriptor, count, int(self._offsets[index])) if count else b""


class _JpegTiles(_Tiles):
    """The JPEG tiles of a directory of any number of samples."""

    def __init__(self, path: str, directory: Directory, tile_px: Size) -> None:
        super().__init__(path, directory, tile_px)
        tables = directory.tags.get(tiff.JPEG_TABLES)
        self._tables = tables if isinstance(tables, bytes) else None

    def refuse_broken(self, column: int, row: int) -> None:
        raw = self._stored(column, row)
        if raw and not is_sound(raw, self._tables):
            raise slide_error(self._path, f"damaged JPEG tile at column {column}, row {row}.")


class _DeflateTiles(_Tiles):
    """The tiles or strips of a directory whose data end with their Adler-32 checksum."""

    def __init__(self, path: str, directory: Directory) -> None:
        width, height = directory.size_px
        rows = min(directory.number(tiff.ROWS_PER_STRIP, height), height)
        super().__init__(path, directory, directory.tile_px or Size(width, rows))
        bits = self.tile_px.w * directory.samples * directory.number(tiff.BITS_PER_SAMPLE, 1)
        self._n_bytes = -(-bits // 8) * self.tile_px.h

    def refuse_broken(self, column: int, row: int) -> None:
        import imagecodecs

        if self._n_bytes > _MOST_BYTES:
            return
        raw = self._stored(column, row)
        if not raw:
            return
        try:
            imagecodecs.deflate_decode(raw, out=self._n_bytes)
        except RuntimeError as error:
            raise slide_error(
                self._path, f"damaged data at column {column}, row {row} ({error})."
            ) from error
