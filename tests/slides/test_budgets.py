"""A small file that claims gigabytes is refused before memory or disk is taken for it."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import tiff
from cytofm_cli.slides.open import open_slide

MB = 1 << 20
PICTURE = [(258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3)]


def write_tiff(path: Path, tags: list[tuple[int, int, int, int]], data: bytes, at: int) -> Path:
    """Write a TIFF of one directory, whose data begin at a byte."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    assert len(head) <= at
    path.write_bytes(head.ljust(at, b"\0") + data)
    return path


def shared_region(path: Path) -> Path:
    """Many private tags that all hold the same 9 MB."""
    strip = [(256, 4, 1, 64), (257, 4, 1, 64), (273, 4, 1, 999), (278, 4, 1, 64), (279, 4, 1, 99)]
    tags = [*PICTURE, *strip, *((40_000 + i, 7, 9 * MB, 999) for i in range(40))]
    return write_tiff(path, tags, bytes(9 * MB), 999)


def equal_subdirectories(path: Path) -> Path:
    """A list of 100 000 SubIFDs, all the first directory."""
    tags = [*PICTURE, (256, 4, 1, 64), (257, 4, 1, 64), (330, 4, 100_000, 200)]
    return write_tiff(path, tags, struct.pack("<I", 8) * 100_000, 200)


def one_tile(path: Path) -> Path:
    """A tile of 60 000 x 60 000 px, of which a megabyte is stored."""
    tile = [(322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 300), (325, 4, 1, MB)]
    return write_tiff(
        path, [*PICTURE, (256, 4, 1, 60_000), (257, 4, 1, 60_000), *tile], bytes(MB), 300
    )


def one_strip(path: Path) -> Path:
    """The same in a strip."""
    strip = [(273, 4, 1, 300), (278, 4, 1, 60_000), (279, 4, 1, MB)]
    return write_tiff(
        path, [*PICTURE, (256, 4, 1, 60_000), (257, 4, 1, 60_000), *strip], bytes(MB), 300
    )


def picture(path: Path) -> Path:
    """A PNG of 60 000 x 60 000 px in a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    data = zlib.compress(bytes(1000)) + bytes(MB)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (shared_region, "its tags state to hold more than the whole file"),
        (equal_subdirectories, "its directories form a loop"),
        (one_tile, "claims tiles of 10800000000 bytes each, and stores at most 1048576 of one"),
        (one_strip, "claims strips of 10800000000 bytes each, and stores at most 1048576 of one"),
        (picture, "it states to hold 10800000000 bytes, and 10"),
    ],
)
def test_open__a_small_file_that_claims_gigabytes_is_refused(
    tmp_path: Path, make, told: str
) -> None:
    path = str(make(tmp_path / "slide.tif"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reader in ("auto", "vips", "tifffile", "tiffslide"):
        with pytest.raises(SlideError) as refused:
            open_slide(path, reader=reader)
        if make is not picture or reader in ("auto", "vips"):
            assert told in refused.value.message
    taken_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken_kb < 500_000


def test_verify__a_large_strip_that_is_stored_as_it_is_may_be_read() -> None:
    """A field of 20 000 x 20 000 px without compression, or in a tenth of it, is no lie."""
    for codec, n_bytes in ((1, 1_200_000_000), (7, 120_000_000)):
        tags = {
            tiff.IMAGE_WIDTH: 20_000, tiff.IMAGE_LENGTH: 20_000, tiff.SAMPLES_PER_PIXEL: 3,
            tiff.BITS_PER_SAMPLE: 8, tiff.COMPRESSION: codec, tiff.ROWS_PER_STRIP: 20_000,
            tiff.STRIP_OFFSETS: 100, tiff.STRIP_BYTE_COUNTS: n_bytes,
        }  # fmt: skip
        arrays = {tag: np.array([value], np.uint32) for tag, value in tags.items()}
        tiff.verify("a.tif", [tiff.Directory(page=0, sub=None, tags=arrays)], n_bytes + 200)


def test_open__a_picture_of_size_0_with_a_level_that_has_one_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for subifds in (1, 0):
            file.write(pixels, tile=(64, 64), photometric="rgb", metadata=None, subifds=subifds)
    data = path.read_bytes()
    width = struct.pack("<HHII", tiff.IMAGE_WIDTH, 4, 1, 64)
    assert data.count(width) == 2
    path.write_bytes(data.replace(width, width[:8] + bytes(4), 1))
    with pytest.raises(SlideError, match="without a picture size"):
        open_slide(str(path))
