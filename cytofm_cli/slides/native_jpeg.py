"""The JPEG tiles of a TIFF slide as complete streams, copied without decoding.

TIFF keeps quantisation and Huffman tables once a level (JPEGTables, TIFF Technical Note 2)
and the colour model in a tag instead of the stream. `complete` puts both where every
decoder looks: the tables after SOI, the colour model in an Adobe APP14 marker (ITU-T T.872
§6.5.3), in place of any JFIF marker, which would claim YCbCr.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import tiff
from cytofm_cli.slides.base import slide_error
from cytofm_cli.slides.jpeg_check import refuse_broken_scan
from cytofm_cli.slides.tiff import Directory
from cytofm_cli.units import Size

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_SOS: Final = 0xDA
_APP0: Final = 0xE0
_APP14: Final = 0xEE
# Baseline, extended and progressive Huffman coding: what every JPEG decoder reads.
_SOF: Final = (0xC0, 0xC1, 0xC2)
_OTHER_SOF: Final = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_ASKED: Final = 8  # tiles that are asked what they are
_FEW: Final = 3  # of so few tiles all may be damaged
# Bytes of padding after EOI that writers add.
_MAX_PADDING: Final = 16


class TiffJpegTiles:
    """The JPEG tiles of one directory; `NativeJpeg` of a TIFF slide."""

    def __init__(self, path: str, directory: Directory, tile_px: Size) -> None:
        self.tile_px = tile_px
        self.grid = directory.grid
        self._path = path
        self._offsets = directory.offsets
        self._counts = directory.byte_counts
        tables = directory.tags.get(tiff.JPEG_TABLES)
        self._tables = tables if isinstance(tables, bytes) else b""
        rgb = directory.number(tiff.PHOTOMETRIC) == tiff.PHOTOMETRIC_RGB
        self._transform = 0 if rgb else 1
        self.has_ends = True
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def stream(self, column: int, row: int) -> bytes | None:
        """Return the complete JPEG stream of a tile; None where the file leaves it out.

        Raises:
            SlideError: the bytes there are no whole JPEG stream of the size of a tile, or have
                markers in their scan that cannot be there.
        """
        raw = self._raw(column, row)
        if not raw:
            return None
        try:
            refuse_broken_scan(raw)
            return complete(raw, self._tables, self._transform, self.tile_px)
        except ValueError as error:
            raise self._damaged(column, row, error) from error

    def refuse_broken(self, column: int, row: int) -> None:
        """Refuse a tile in whose scan there are markers that cannot be there, or that has no end.

        Raises:
            SlideError: it is so.
        """
        raw = self._raw(column, row)
        try:
            refuse_broken_scan(raw)
            if raw and self.has_ends and _end(raw) < 0:
                raise ValueError("it is no whole JPEG stream")
        except ValueError as error:
            raise self._damaged(column, row, error) from error

    def has_frame(self, row: int, column: int) -> bool:
        """Tell whether a tile begins as a stream that can be completed, whatever its data are."""
        try:
            complete(self._raw(column, row) + _EOI, b"", self._transform, self.tile_px)
        except (ValueError, SlideError):
            return False
        return True

    def has_end(self, row: int, column: int) -> bool:
        """Tell whether a tile ends as a JPEG stream must; some writers always leave it out."""
        try:
            return _end(self._raw(column, row)) >= 0
        except SlideError:
            return False

    def _raw(self, column: int, row: int) -> bytes:
        """Return the bytes of a tile; none where the file leaves it out."""
        if not (0 <= column < self.grid.w and 0 <= row < self.grid.h):
            raise IndexError(f"tile ({column}, {row}) is outside the grid {self.grid}")
        index = row * self.grid.w + column
        count = int(self._counts[index])
        raw = os.pread(self._descriptor, count, int(self._offsets[index])) if count else b""
        if len(raw) != count:
            raise self._damaged(column, row, "it is cut off")
        return raw

    def _damaged(self, column: int, row: int, why: object) -> SlideError:
        return slide_error(self._path, f"damaged JPEG tile at column {column}, row {row}: {why}.")


def open_tiles(path: str, directory: Directory) -> TiffJpegTiles | None:
    """Give access to the JPEG tiles of a directory.

    Returns:
        None if its tiles are not JPEG, not three 8-bit samples, or if of several stored tiles none
        begins as a stream that can be completed. That the data of one are damaged says nothing of
        the others: then it is this that tells.
    """
    tile_px = directory.tile_px
    if directory.codec != "jpeg" or tile_px is None or directory.samples != 3:
        return None
    if directory.number(tiff.PLANAR_CONFIGURATION, 1) != 1:
        return None
    if directory.number(tiff.PHOTOMETRIC) not in (tiff.PHOTOMETRIC_RGB, tiff.PHOTOMETRIC_YCBCR):
        return None
    tiles = TiffJpegTiles(path, directory, tile_px)
    stored = directory.byte_counts.nonzero()[0]
    some = [divmod(index, tiles.grid.w) for index in stored[:: max(1, stored.size // _ASKED)]]
    if not any(tiles.has_frame(row, column) for row, column in some):
        return None
    tiles.has_ends = len(some) < _FEW or any(tiles.has_end(row, column) for row, column in some)
    return tiles


def complete(raw: bytes, tables: bytes, transform: int, tile_px: Size) -> bytes:
    """Merge tables and colour model into an abbreviated JPEG stream.

    Args:
        raw: the bytes of one TIFF tile.
        tables: the JPEGTables of its directory, or b"".
        transform: Adobe's colour transform: 0 for RGB, 1 for YCbCr.
        tile_px: the size that the frame must have.

    Returns:
        A stream that decodes alone. The entropy-coded data are the same bytes.

    Raises:
        ValueError: not a whole 8-bit, three-component JPEG stream of that size.
    """
    end = _end(raw)
    if raw[:2] != _SOI or end < 0:
        raise ValueError("it is no whole JPEG stream")
    raw = raw[: end + 2]
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    parts = [_SOI, adobe]
    if tables:
        parts += [segment for code, segment in _segments(tables) if code not in (_APP0, _APP14)]
    framed = False
    for code, segment in _segments(raw):
        if code in _SOF:
            _check_frame(segment, tile_px)
            framed = True
        if code in _OTHER_SOF:
            raise ValueError("its coding is not baseline, extended or progressive")
        if code == _SOS:
            if not framed:
                raise ValueError("it has no frame header")
            return b"".join([*parts, segment])
        if code not in (_APP0, _APP14):
            parts.append(segment)
    raise ValueError("it has no scan")


def _end(raw: bytes) -> int:
    """Return where the marker at the end of a stream is, or -1."""
    return raw.rfind(_EOI, max(0, len(raw) - _MAX_PADDING - 2))


def _segments(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker code, bytes with marker) up to the first scan, which is the rest."""
    place = 2
    while place + 4 <= len(raw):
        if raw[place] != 0xFF:
            raise ValueError("a marker is missing")
        code = raw[place + 1]
        if code == 0xFF:  # fill byte
            place += 1
            continue
        if code == _SOS:
            yield code, raw[place:]
            return
        (length,) = struct.unpack_from(">H", raw, place + 2)
        segment = raw[place : place + 2 + length]
        if length < 2 or len(segment) != 2 + length:
            raise ValueError("a segment is cut off")
        yield code, segment
        place += 2 + length


def _check_frame(segment: bytes, tile_px: Size) -> None:
    if len(segment) < 10:
        raise ValueError("its frame header is cut off")
    precision, height, width, components = struct.unpack_from(">BHHB", segment, 4)
    if (width, height) != tuple(tile_px):
        raise ValueError(f"it is {width} x {height} px instead of {tile_px.w} x {tile_px.h}")
    if precision != 8 or components != 3:
        raise ValueError(f"it has {components} components of {precision} bits")
