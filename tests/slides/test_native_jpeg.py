"""Native JPEG tiles: complete streams that decode to the very pixels of the slide."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import NativeJpeg
from cytofm_cli.slides.native_jpeg import complete
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box, Size


def assert_tiles_equal_pixels(path: str, *, pil: bool = True) -> int:
    """Decode all tiles of all levels with two decoders; compare with every reader's pixels."""
    n_tiles = 0
    slides = [open_slide(path, reader=reader) for reader in ("vips", "openslide")]
    for level, facts in enumerate(slides[0].info.levels):
        tiles = slides[0].native_jpeg(level)
        assert isinstance(tiles, NativeJpeg)
        tw, th = tiles.tile_px
        for row in range(tiles.grid.h):
            for column in range(tiles.grid.w):
                x, y = column * tw, row * th
                box = Box(x, y, min(tw, facts.size_px.w - x), min(th, facts.size_px.h - y))
                stream = tiles.stream(column, row)
                pixels = imagecodecs.jpeg8_decode(stream)
                assert pixels.shape == (th, tw, 3)
                for slide in slides:
                    if slide.info.reader == "vips" or facts.downsample % 1 == 0:
                        np.testing.assert_array_equal(
                            pixels[: box.h, : box.w], slide.read(level, box)
                        )
                if pil:
                    np.testing.assert_array_equal(
                        np.asarray(Image.open(io.BytesIO(stream))), pixels
                    )
                n_tiles += 1
    for slide in slides:
        slide.close()
    return n_tiles


@pytest.mark.parametrize("options", [{"Q": 75}, {"Q": 95}, {"bigtiff": True}], ids=str)
def test_stream__decodes_to_the_pixels_of_the_slide(save, options) -> None:
    """libvips writes 4:2:0 below Q 90 and 4:4:4 from there on."""
    assert assert_tiles_equal_pixels(save("a.tif", compression="jpeg", **options)) == 30 + 9 + 4 + 1


def test_stream__of_levels_in_sub_directories(save) -> None:
    path = save("a.tif", compression="jpeg", subifd=True)
    slide = open_slide(path)
    assert len(slide.info.levels) == 4
    tiles = slide.native_jpeg(1)
    pixels = imagecodecs.jpeg8_decode(tiles.stream(1, 1))
    np.testing.assert_array_equal(pixels, slide.read(1, Box(128, 128, 128, 128)))


def test_stream__rgb_without_colour_transform(tmp_path, picture) -> None:
    path = str(tmp_path / "rgb.tif")
    tifffile.imwrite(
        path, picture, tile=(128, 128), photometric="rgb", metadata=None,
        compression="jpeg", compressionargs={"level": 90, "outcolorspace": "rgb"},
    )  # fmt: skip
    assert assert_tiles_equal_pixels(path) == 30
    slide = open_slide(path)
    assert abs(slide.read(0, Box(0, 0, 701, 523)).astype(int) - picture).mean() < 4
    assert b"Adobe\x00\x64\x00\x00\x00\x00\x00" in slide.native_jpeg(0).stream(0, 0)


@pytest.mark.needs_shared("data/wsi")
def test_stream__of_a_real_aperio_slide(shared) -> None:
    assert assert_tiles_equal_pixels(str(shared / "wsi" / "cmu-1-small-region.svs")) == 130


def test_stream__keeps_the_entropy_coded_bytes(save) -> None:
    path = save("a.tif", compression="jpeg")
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        tif.filehandle.seek(page.dataoffsets[8])
        raw = tif.filehandle.read(page.databytecounts[8])
    stream = open_slide(path).native_jpeg(0).stream(2, 1)
    scan = raw.index(b"\xff\xda")
    assert stream.endswith(raw[scan:].rstrip(b"\0"))


@pytest.mark.parametrize("reader", ["vips", "openslide"])
def test_stream__tile_left_out_is_none(save, patch, reader) -> None:
    path = patch(save("a.tif", compression="jpeg"), "TileByteCounts", 8, 0)
    slide = open_slide(path)
    assert slide.info.reader == "openslide"  # libvips would take the gap for damage
    tiles = open_slide(path, reader=reader).native_jpeg(0)
    assert tiles.stream(2, 1) is None
    assert tiles.stream(1, 1) is not None
    np.testing.assert_array_equal(slide.read(0, Box(256, 128, 128, 128)), 255)
    assert slide.read(0, Box(0, 0, 128, 128)).min() < 200


def test_stream__damaged_tile_raises_and_the_next_is_fine(save, patch) -> None:
    path = patch(save("a.tif", compression="jpeg"), "TileOffsets", 8, 16)
    tiles = open_slide(path).native_jpeg(0)
    with pytest.raises(SlideError, match="column 2, row 1"):
        tiles.stream(2, 1)
    assert tiles.stream(3, 1) is not None


@pytest.mark.parametrize("codec", ["deflate", "lzw", "none"])
def test_native_jpeg__none_for_other_codecs(save, codec) -> None:
    assert open_slide(save("a.tif", compression=codec)).native_jpeg(0) is None


def test_native_jpeg__none_for_grey_and_for_fields(save, picture) -> None:
    assert open_slide(save("g.tif", picture[..., 0], compression="jpeg")).native_jpeg(0) is None
    assert open_slide(save("a.jpg")).native_jpeg(0) is None


def test_complete__refuses_what_is_no_whole_stream() -> None:
    raw = imagecodecs.jpeg8_encode(np.zeros((64, 64, 3), np.uint8))
    assert complete(raw, b"", 1, Size(64, 64))[:2] == b"\xff\xd8"
    assert imagecodecs.jpeg8_decode(complete(raw + bytes(2), b"", 1, Size(64, 64))).shape == (
        64,
        64,
        3,
    )
    grey = imagecodecs.jpeg8_encode(np.zeros((64, 64), np.uint8))
    for bad, why in (
        (raw[:-2], "whole"),
        (b"\0" + raw, "whole"),
        (grey, "1 components"),
        (raw[:4] + b"\xff\xd9", "cut off"),
        (raw.replace(b"\xff\xc0", b"\xff\xc9"), "coding"),
    ):
        with pytest.raises(ValueError, match=why):
            complete(bad, b"", 1, Size(64, 64))
    with pytest.raises(ValueError, match="64 x 64 px instead of 32 x 64"):
        complete(raw, b"", 1, Size(32, 64))
