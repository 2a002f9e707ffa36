"""Walk the directories of a TIFF file without decoding anything.

Classic TIFF and BigTIFF, both byte orders (TIFF 6.0; BigTIFF as in libtiff). It is here,
and not tifffile, because the walk takes a millisecond and tifffile's import 0.15 s, and
because the table of tiles tells a truncated or lying file before any decoder meets it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import DAMAGED_HINT, slide_error
from cytofm_cli.units import Size
from cytofm_cli.urls import check_url, is_url
from cytofm_cli.work.budget import FREE_BYTES

# Tag numbers, named as in the TIFF 6.0 specification.
NEW_SUBFILE_TYPE: Final = 254
IMAGE_WIDTH: Final = 256
IMAGE_LENGTH: Final = 257
BITS_PER_SAMPLE: Final = 258
COMPRESSION: Final = 259
PHOTOMETRIC: Final = 262
IMAGE_DESCRIPTION: Final = 270
STRIP_OFFSETS: Final = 273
ORIENTATION: Final = 274
SAMPLES_PER_PIXEL: Final = 277
ROWS_PER_STRIP: Final = 278
STRIP_BYTE_COUNTS: Final = 279
X_RESOLUTION: Final = 282
Y_RESOLUTION: Final = 283
PLANAR_CONFIGURATION: Final = 284
RESOLUTION_UNIT: Final = 296
PAGE_NAME: Final = 285
SOFTWARE: Final = 305
PREDICTOR: Final = 317
COLOR_MAP: Final = 320
TILE_WIDTH: Final = 322
TILE_LENGTH: Final = 323
TILE_OFFSETS: Final = 324
TILE_BYTE_COUNTS: Final = 325
SUB_IFDS: Final = 330
INK_SET: Final = 332
EXTRA_SAMPLES: Final = 338
SAMPLE_FORMAT: Final = 339
JPEG_TABLES: Final = 347
YCBCR_COEFFICIENTS: Final = 529
YCBCR_SUBSAMPLING: Final = 530
REFERENCE_BLACK_WHITE: Final = 532
XMP: Final = 700
ICC_PROFILE: Final = 34675
NDPI_FORMAT: Final = 65420
NDPI_Z_OFFSET: Final = 65424

CODECS: Final = {
    1: "none",
    2: "ccitt",
    3: "ccitt",
    4: "ccitt",
    5: "lzw",
    6: "old-jpeg",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    34925: "lzma",
    50000: "zstd",
    50001: "webp",
    50002: "jpegxl",
    52546: "jpegxl",
}
PHOTOMETRIC_RGB: Final = 2
PHOTOMETRIC_YCBCR: Final = 6
# The bit of NewSubfileType that says that a directory is a transparency mask.
MASK: Final = 4
INCH_UM: Final = 25_400.0
CENTIMETRE_UM: Final = 10_000.0

_TYPES: Final = {
    1: "u1", 2: "S1", 3: "u2", 4: "u4", 5: "u4", 6: "i1", 7: "S1", 8: "i2", 9: "i4", 10: "i4",
    11: "f4", 12: "f8", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
_RATIONAL: Final = (5, 10)
_TEXT: Final = (2, 7)
_MAX_DIRECTORIES: Final = 65_536
# What directories may share of a file (tables of JPEG, descriptions) beside its whole length.
_SHARED_BYTES: Final = 32 << 20
# A tile or strip is decoded as a whole: up to here whatever it claims, above by what it has.
_FREE_SEGMENT_BYTES: Final = FREE_BYTES
_MOST_UNPACKED: Final = 100
_MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Value = bytes | NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Directory:
    """One image of a TIFF file.

    Attributes:
        page: index in the main chain of directories.
        sub: index among the SubIFDs of that page; None for the page itself.
        tags: number → bytes (text and opaque data) or an array (numbers).
    """

    page: int
    sub: int | None
    tags: Mapping[int, Value] = field(repr=False)

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first value of a numeric tag."""
        value = self.tags.get(tag)
        if value is None or isinstance(value, bytes) or value.size == 0:
            return default
        return int(value[0]) if np.isfinite(value[0]) else default

    def text(self, tag: int) -> str:
        """Return a text tag, without its closing zero."""
        value = self.tags.get(tag)
        return value.split(b"\0")[0].decode("utf-8", "replace") if isinstance(value, bytes) else ""

    def array(self, tag: int) -> NDArray[np.int64]:
        """Return a numeric tag as int64; empty where it is missing."""
        value = self.tags.get(tag)
        if value is None or isinstance(value, bytes):
            return np.zeros(0, np.int64)
        with np.errstate(invalid="ignore"):  # of a damaged file: no place, no length
            return value.astype(np.int64)

    @property
    def size_px(self) -> Size:
        """Width and height."""
        return Size(self.number(IMAGE_WIDTH), self.number(IMAGE_LENGTH))

    @property
    def tile_px(self) -> Size | None:
        """Width and height of the tiles; None for strips."""
        width, height = self.number(TILE_WIDTH), self.number(TILE_LENGTH)
        return Size(width, height) if width > 0 and height > 0 else None

    @property
    def codec(self) -> str:
        """The name of the compression."""
        number = self.number(COMPRESSION, 1)
        return CODECS.get(number, f"tiff-{number}")

    @property
    def samples(self) -> int:
        """Samples per pixel."""
        return self.number(SAMPLES_PER_PIXEL, 1)

    @property
    def planar(self) -> bool:
        """Whether each sample has tiles or strips of its own."""
        return self.samples > 1 and self.number(PLANAR_CONFIGURATION, 1) == 2

    @property
    def grid(self) -> Size:
        """Columns and rows of tiles; strips are one column."""
        width, height = self.size_px
        if self.tile_px:
            return Size(math.ceil(width / self.tile_px.w), math.ceil(height / self.tile_px.h))
        rows = min(self.number(ROWS_PER_STRIP, height), height)
        return Size(1, math.ceil(height / rows) if rows > 0 else 0)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each tile or strip begins, row-major."""
        return self.array(TILE_OFFSETS if self.tile_px else STRIP_OFFSETS)

    @property
    def byte_counts(self) -> NDArray[np.int64]:
        """How long each tile or strip is; 0 for a tile that is left out."""
        return self.array(TILE_BYTE_COUNTS if self.tile_px else STRIP_BYTE_COUNTS)

    def resolution_um(self) -> tuple[float | None, float | None]:
        """Return µm/px along x and y from the resolution tags, plausible or not."""
        unit = {2: INCH_UM, 3: CENTIMETRE_UM}.get(self.number(RESOLUTION_UNIT, 2))
        pair = []
        for tag in (X_RESOLUTION, Y_RESOLUTION):
            value = self.tags.get(tag)
            per_unit = 0.0
            if value is not None and not isinstance(value, bytes) and value.size:
                per_unit = float(value[0])
            pair.append(unit / per_unit if unit and per_unit > 0 else None)
        return pair[0], pair[1]


class TooLargeError(SlideError):
    """A file whose directories or tiles claim far more than the file has: no reader may try it."""


def is_tiff(head: bytes) -> bool:
    """Tell from its first four bytes whether a file is a TIFF."""
    return head[:4] in _MAGIC


def read_directories(path: str) -> list[Directory]:
    """Read all directories of a TIFF: each page, followed by its SubIFDs.

    Args:
        path: a local file, or an fsspec URL.

    Raises:
        SlideError: not a TIFF, or a directory is damaged or beyond the end of the file.
    """
    try:
        with open_file(path) as handle:
            return _Walk(path, handle).directories()
    except SlideError:
        raise
    except OSError as error:
        raise slide_error(path, f"cannot be read ({error.strerror or error}).") from error
    except (struct.error, ValueError, OverflowError, MemoryError, ImportError) as error:
        where = "cannot be read" if "://" in path else "damaged TIFF directory"
        raise slide_error(path, f"{where} ({error}).") from error


def open_file(path: str) -> BinaryIO:
    """Open a local file, or one behind an fsspec URL.

    Raises:
        OSError: it is not there.
    """
    if not is_url(path):
        return open(path, "rb", buffering=0)  # noqa: PTH123 - a str, as given
    check_url(path)
    import fsspec

    handle: BinaryIO = fsspec.open(path, "rb").open()
    return handle


class _Walk:
    """One pass over the directories of an open file."""

    def __init__(self, path: str, handle: BinaryIO) -> None:
        self.path = path
        self.handle = handle
        self.size_bytes = handle.seek(0, os.SEEK_END)
        self.left_bytes = self.size_bytes + _SHARED_BYTES
        head = self.read(0, 8)
        if not is_tiff(head):
            raise slide_error(path, "not a TIFF file.")
        self.order: Literal["<", ">"] = "<" if head[:2] == b"II" else ">"
        self.big = head[2:4] in (b"+\0", b"\0+")
        self.first = self.unpack("Q", self.read(8, 8)) if self.big else self.unpack("I", head[4:8])

    def unpack(self, code: str, raw: bytes) -> int:
        return int(struct.unpack(self.order + code, raw)[0])

    def read(self, offset: int, n_bytes: int) -> bytes:
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size_bytes:
            raise slide_error(self.path, "is truncated: a TIFF directory is beyond its end.")
        self.left_bytes -= n_bytes
        if self.left_bytes < 0:
            raise TooLargeError(
                f"{self.path}: damaged TIFF: its tags state to hold more than the whole file.",
                hint=DAMAGED_HINT,
            )
        self.handle.seek(offset)
        return self.handle.read(n_bytes)

    def directories(self) -> list[Directory]:
        listed: list[Directory] = []
        offset, seen, page = self.first, set[int](), 0
        while offset:
            if offset in seen or page >= _MAX_DIRECTORIES:
                raise slide_error(self.path, "damaged TIFF: its directories form a loop.")
            seen.add(offset)
            tags, following = self.directory(offset)
            main = Directory(page=page, sub=None, tags=tags)
            listed.append(main)
            for sub, sub_offset in enumerate(main.array(SUB_IFDS).tolist()):
                if sub_offset in seen or len(listed) >= _MAX_DIRECTORIES:
                    raise TooLargeError(
                        f"{self.path}: damaged TIFF: its directories form a loop.",
                        hint=DAMAGED_HINT,
                    )
                seen.add(sub_offset)
                sub_tags, _ = self.directory(sub_offset)
                listed.append(Directory(page=page, sub=sub, tags=sub_tags))
            offset, page = following, page + 1
        if not listed:
            raise slide_error(self.path, "a TIFF without any image.")
        return listed

    def directory(self, offset: int) -> tuple[dict[int, Value], int]:
        word, count_bytes, entry_bytes = ("Q", 8, 20) if self.big else ("I", 2, 12)
        count = self.unpack("Q" if self.big else "H", self.read(offset, count_bytes))
        if count > 4096:
            raise slide_error(self.path, f"damaged TIFF directory with {count} entries.")
        raw = self.read(offset + count_bytes, count * entry_bytes)
        tags: dict[int, Value] = {}
        for start in range(0, len(raw), entry_bytes):
            self.entry(tags, raw[start : start + entry_bytes], word)
        width = 8 if self.big else 4
        end = offset + count_bytes + len(raw)
        # Some writers end the file right after the last entry.
        last = end + width > self.size_bytes
        return tags, 0 if last else self.unpack(word, self.read(end, width))

    def entry(self, tags: dict[int, Value], raw: bytes, word: str) -> None:
        tag, kind = struct.unpack(self.order + "HH", raw[:4])
        if kind not in _TYPES:
            return
        inline = 8 if self.big else 4
        count = self.unpack(word, raw[4 : 4 + inline])
        number = np.dtype(_TYPES[kind]).newbyteorder(self.order)
        n_bytes = count * number.itemsize * (2 if kind in _RATIONAL else 1)
        data = raw[-inline:][:n_bytes]
        if n_bytes > inline:
            offset = self.unpack(word, raw[-inline:])
            if tag == ICC_PROFILE or offset + n_bytes > self.size_bytes:
                # Only that a colour profile is there matters; and a private tag that points
                # nowhere harms nobody (a damaged table of tiles is found by `verify`).
                tags[tag] = b""
                return
            data = self.read(offset, n_bytes)
        if kind in _TEXT:
            tags[tag] = data
        elif kind in _RATIONAL:
            pairs = np.frombuffer(data, number).reshape(-1, 2).astype(np.float64)
            tags[tag] = np.divide(
                pairs[:, 0], pairs[:, 1], out=np.zeros(len(pairs)), where=pairs[:, 1] != 0
            )
        else:
            tags[tag] = np.frombuffer(data, number)


# A slide that stores fewer of its tiles than one in this many is not sparse, it is broken.
_MIN_STORED: Final = 200
# The best that a codec can do with a blank picture, with room to spare: two bits a block of
# 64 pixels in JPEG, 1032 to 1 in deflate with one bit a pixel. More cannot be in the file.
MAX_PX_PER_BYTE: Final = {"jpeg": 1000, "deflate": 8800, "png": 8800}


def verify(path: str, directories: Sequence[Directory], size_bytes: int) -> None:
    """Refuse a file whose table of tiles cannot be true.

    Costs no decoding.

    Args:
        path: for the message.
        directories: those that will be read.
        size_bytes: length of the file.

    Raises:
        SlideError: too few tiles for the size claimed, or tiles beyond the end of the file.
    """
    for directory in directories:
        problem = _problem(directory, size_bytes)
        if problem:
            raise TooLargeError(f"{path}: {problem}", hint="copy the file again from its source.")


def _segment_bytes(directory: Directory) -> int:
    """Return the bytes that one tile or strip of a directory takes when it is decoded."""
    width, height = directory.size_px
    rows = min(directory.number(ROWS_PER_STRIP, height), height)
    side = directory.tile_px or Size(width, rows)
    samples = 1 if directory.planar else directory.samples
    return side.w * side.h * samples * -(-directory.number(BITS_PER_SAMPLE, 1) // 8)


def _problem(directory: Directory, size_bytes: int) -> str | None:
    width, height = directory.size_px
    unit = "tiles" if directory.tile_px else "strips"
    claim = f"claims {width} x {height} px"
    if width < 1 or height < 1:
        return "is a TIFF without a picture size."
    expected = directory.grid.w * directory.grid.h * (directory.samples if directory.planar else 1)
    offsets, counts = directory.offsets, directory.byte_counts
    if offsets.size < expected or 0 < counts.size < expected:
        return f"{claim} but lists {min(offsets.size, counts.size)} of {expected} {unit}."
    counts = counts[:expected]
    stored = counts > 0
    ends = offsets[:expected][stored] + counts[stored] if counts.size else offsets[:expected]
    beyond = int((ends > size_bytes).sum())
    if beyond:
        return f"is truncated: {beyond} of {expected} {unit} lie beyond its end."
    distinct = np.unique(offsets[:expected][stored]).size if counts.size else expected
    if distinct * _MIN_STORED < expected or distinct == 0:
        return f"{claim} but holds {distinct} of {expected} {unit}."
    if (n_unpacked := _segment_bytes(directory)) > _FREE_SEGMENT_BYTES:
        most = int(counts.max(initial=0)) if counts.size else size_bytes
        if n_unpacked > _FREE_SEGMENT_BYTES + _MOST_UNPACKED * most:
            return f"claims {unit} of {n_unpacked} bytes each, and stores at most {most} of one."
    tile = directory.tile_px
    n_px = int(stored.sum()) * tile.w * tile.h if tile else width * height
    n_bytes = int(counts.sum())
    if 0 < n_bytes * MAX_PX_PER_BYTE.get(directory.codec, n_px) < n_px:
        return f"{claim} but has only {n_bytes} bytes."
    return None
