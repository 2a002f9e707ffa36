"""Damage in JPEG data: found where it shifts or ends the picture, and nothing else."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.jpeg_check import is_sound, refuse_broken_scan
from cytofm_cli.slides.open import open_slide
from cytofm_cli.testing.samples.slides import draw
from cytofm_cli.units import Box, Size

SIDE = 256


def streams(subsampling: str, quality: int) -> list[bytes]:
    """Encode pictures of discs with noise, of glass, and of one colour."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    found = []
    for _ in range(4):
        pixels = np.full((SIDE, SIDE, 3), 235.0)
        for cx, cy in rng.integers(0, SIDE, (12, 2)):
            pixels[(x - cx) ** 2 + (y - cy) ** 2 < 400] = rng.uniform(30, 200, 3)
        found.append(pixels + rng.normal(0, 4, pixels.shape))
    found += [np.full((SIDE, SIDE, 3), level) for level in (0, 127, 128, 255)]
    return [
        imagecodecs.jpeg8_encode(
            pixels.clip(0, 255).astype(np.uint8), level=quality, subsampling=subsampling
        )
        for pixels in found
    ]


def scan_start(stream: bytes) -> int:
    return stream.index(b"\xff\xda") + 14


ALL = [(s, q) for s in ("444", "422", "420") for q in (60, 80, 95)]


@pytest.mark.parametrize(("subsampling", "quality"), ALL)
def test_sound__of_whole_streams(subsampling, quality) -> None:
    for stream in streams(subsampling, quality):
        refuse_broken_scan(stream)
        assert is_sound(stream)


@pytest.mark.parametrize(("subsampling", "quality"), ALL)
@pytest.mark.parametrize("fill", [b"\0", b"\xff\xd9", b"\xa5", None], ids=str)
def test_sound__not_where_half_the_data_are_overwritten(subsampling, quality, fill) -> None:
    rng = random.Random(0)
    for stream in streams(subsampling, quality)[:4]:
        middle = (scan_start(stream) + len(stream)) // 2
        n = len(stream) - 2 - middle
        junk = rng.randbytes(n) if fill is None else (fill * n)[:n]
        assert not is_sound(stream[:middle] + junk + stream[-2:])


@pytest.mark.parametrize(("subsampling", "quality"), ALL)
def test_sound__not_where_the_data_end_early_or_go_on(subsampling, quality) -> None:
    one, other = streams(subsampling, quality)[:2]
    middle = (scan_start(one) + len(one)) // 2
    assert not is_sound(one[:middle] + one[-2:])
    assert not is_sound(one[:-2] + other[scan_start(other) :])


def test_scan__end_of_image_and_other_markers_in_the_middle_are_named() -> None:
    stream = streams("420", 80)[0]
    middle = (scan_start(stream) + len(stream)) // 2
    for marker, told in ((b"\xff\xd9", "ends in the middle"), (b"\xff\xc4", "marker 0xc4")):
        with pytest.raises(ValueError, match=told):
            refuse_broken_scan(stream[:middle] + marker + stream[middle + 2 :])


def test_scan__restart_markers_have_an_order(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(path, quality=80, restart_marker_blocks=7)
    stream = path.read_bytes()
    refuse_broken_scan(stream)
    assert is_sound(stream)
    third = stream.index(b"\xff\xd2", scan_start(stream))
    broken = stream[:third] + b"\xff\xd6" + stream[third + 2 :]
    with pytest.raises(ValueError, match="out of turn"):
        refuse_broken_scan(broken)
    assert not is_sound(broken)


def test_sound__progressive_streams_are_decoded() -> None:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(out, "jpeg", quality=80, progressive=True)
    assert is_sound(out.getvalue())


def test_sound__not_what_is_no_jpeg() -> None:
    for stream in (b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(100)):
        assert not is_sound(stream)


@pytest.fixture
def corrupt(save: Callable[..., str]) -> str:
    """Make a slide whose tile of column 2, row 1 ends in the middle of its data."""
    path = save("a.tif", compression="jpeg", pyramid=False)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[8], page.databytecounts[8]
    with Path(path).open("r+b") as handle:
        handle.seek(offset + count // 2)
        handle.write(b"\xff\xd9" * 20)
    return path


def test_read__of_a_tile_that_ends_early_is_an_error_and_the_rest_reads(corrupt) -> None:
    slide = open_slide(corrupt)
    assert slide.info.reader == "vips"
    for _ in range(2):
        with pytest.raises(SlideError, match="column 2, row 1: its scan ends in the middle"):
            slide.read(0, Box(250, 120, 20, 20))
    assert slide.read(0, Box(0, 0, 256, 128)).shape == (128, 256, 3)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
@pytest.mark.parametrize("junk", [b"\xff\xd9", b"\0"], ids=["end of image", "no end"])
def test_read__of_a_damaged_first_tile_of_any_level_is_an_error(save, level, junk) -> None:
    """The first tile used to tell whether tiles can be checked at all."""
    path = save("a.tif", compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[level]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    first, last = places[0], places[-1]
    with Path(path).open("r+b") as handle:
        for offset, count in {first, last}:
            handle.seek(offset + count // 2)
            handle.write((junk * count)[: count - count // 2])
    with open_slide(path) as slide:
        tiles = slide.native_jpeg(level)
        assert tiles is not None
        with pytest.raises(SlideError, match="damaged JPEG tile at column 0, row 0"):
            tiles.stream(0, 0)
        width, height = slide.info.levels[level].size_px
        for x, y in {(0, 0), (width - 1, height - 1)}:
            with pytest.raises(SlideError, match="damaged"):
                slide.read(level, Box(x, y, 1, 1))


@pytest.mark.parametrize("junk", [b"", b"\xff\xd9", b"\0", b"\x5a"], ids=str)
@pytest.mark.parametrize(
    ("reader", "kind", "tile"),
    [("openslide", "grey", (128, 128))]
    + [
        (reader, kind, tile)
        for reader in ("auto", "tifffile")
        for kind in ("grey", "ink", "planes", "channels")
        for tile in ((128, 128), None)
    ],
)
def test_read__of_damaged_jpeg_of_other_than_three_samples(
    tmp_path, junk, reader, kind, tile
) -> None:
    """Of these nobody copies tiles, so nobody else checks their data."""
    pixels = draw(Size(384, 256))
    four = np.dstack([pixels, pixels[..., :1]])
    data, words = {
        "grey": (pixels[..., 0], {"photometric": "minisblack"}),
        "ink": (four, {"photometric": "separated"}),
        "planes": (np.moveaxis(pixels, 2, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        "channels": (np.moveaxis(pixels, 2, 0), {"photometric": "minisblack", "ome": True}),
    }[kind]
    path = tmp_path / ("a.ome.tif" if kind == "channels" else "a.tif")
    own = {"metadata": {"axes": "CYX"}} if words.pop("ome", False) else {"metadata": None}
    shape = {"tile": tile} if tile else {"rowsperstrip": 64}
    tifffile.imwrite(path, np.ascontiguousarray(data), compression="jpeg", **shape, **own, **words)
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[1], tif.pages[0].databytecounts[1]
    if junk:
        with path.open("r+b") as handle:
            handle.seek(offset + count // 2)
            handle.write((junk * count)[: count // 2 - 2])
    with open_slide(str(path), reader=reader) as slide:
        if not junk:
            assert slide.read(0, Box(0, 0, 384, 256)).std() > 5
            return
        with pytest.raises(SlideError):
            slide.read(0, Box(0, 0, 384, 256))
        if tile:  # libvips unpacks strips from the top
            assert slide.read(0, Box(0, 128, 128, 128)).std() > 5


@pytest.mark.parametrize("size", [(640, 480), (637, 477)])
@pytest.mark.parametrize("damage", ["end of image", "zeros", "hole", "cut"])
def test_field__of_damaged_jpeg_data_is_refused_not_read_grey(tmp_path, size, damage) -> None:
    """What a camera's photograph has behind its data is no damage."""
    Image.fromarray(draw(Size(*size))).save(tmp_path / "a.jpg", quality=90)
    stream = (tmp_path / "a.jpg").read_bytes()
    middle, box = len(stream) // 2, Box(0, 0, *size)
    (tmp_path / "tail.jpg").write_bytes(stream[:-2] + bytes(3) + stream[-2:] + b"maker's own")
    with open_slide(str(tmp_path / "tail.jpg")) as slide, Image.open(tmp_path / "a.jpg") as whole:
        assert np.abs(slide.read(0, box).astype(int) - np.asarray(whole)).mean() < 2
    broken = {
        "end of image": stream[:middle] + b"\xff\xd9" * 20 + stream[middle + 40 :],
        "zeros": stream[:middle] + bytes(4000) + stream[middle + 4000 :],
        "hole": stream[:middle] + stream[middle + 900 :],
        "cut": stream[:middle],
    }
    (tmp_path / "a.jpg").write_bytes(broken[damage])
    with pytest.raises(SlideError, match=r"a\.jpg"), open_slide(str(tmp_path / "a.jpg")) as slide:
        slide.read(0, box)
