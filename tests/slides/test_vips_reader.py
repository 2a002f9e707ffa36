"""The direct path: pixels equal to OpenSlide's, colours, fields of view, damage, memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box


def read_all(path: str, level: int = 0) -> np.ndarray:
    slide = open_slide(path)
    pixels = slide.read(level, Box(0, 0, *slide.info.levels[level].size_px))
    slide.close()
    return pixels


@pytest.mark.parametrize(
    "options", [{"Q": 75}, {"Q": 95}, {"compression": "lzw"}, {"compression": "none"}], ids=str
)
def test_read__equals_openslide_and_tiffslide(save, options) -> None:
    """Regions at random places, aligned or not, at all levels (OpenSlide where it is exact)."""
    path = save("a.tif", **{"compression": "jpeg", **options})
    ours, *others = (open_slide(path, reader=r) for r in ("vips", "openslide", "tiffslide"))
    assert [level.size_px for level in ours.info.levels] == [
        level.size_px for level in others[0].info.levels
    ]
    rng = np.random.default_rng(0)
    for level, facts in enumerate(ours.info.levels):
        width, height = facts.size_px
        for _ in range(8):
            w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            got = ours.read(level, Box(x, y, w, h))
            for other in others:
                if other.info.reader == "tiffslide" or facts.downsample % 1 == 0:
                    np.testing.assert_array_equal(got, other.read(level, Box(x, y, w, h)))
    for slide in (ours, *others):
        slide.close()


@pytest.mark.needs_shared("data/wsi")
def test_read__equals_openslide_on_a_real_aperio_slide(shared) -> None:
    path = str(shared / "wsi" / "cmu-1-small-region.svs")
    ours, other = open_slide(path), open_slide(path, reader="openslide")
    assert (ours.info.reader, ours.info.mpp, ours.info.objective) == ("vips", 0.499, 20.0)
    assert other.info.mpp == ours.info.mpp
    for box in (Box(0, 0, 2220, 2967), Box(239, 241, 482, 3), Box(2219, 2966, 1, 1)):
        np.testing.assert_array_equal(ours.read(0, box), other.read(0, box))


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 90), st.integers(1, 70), st.sampled_from(["png", "tif"]))
def test_read__lossless_round_trip_of_any_size(save, w, h, kind) -> None:
    pixels = np.random.default_rng(w).integers(0, 256, (h, w, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_all(save(f"a.{kind}", pixels, tiled=False)), pixels)


def test_read__grey_bilevel_palette_and_alpha_become_rgb(save, tmp_path, picture) -> None:
    grey = picture[..., 0]
    np.testing.assert_array_equal(read_all(save("g.png", grey)), np.repeat(grey[..., None], 3, 2))
    bits = np.where(grey > 150, 255, 0).astype(np.uint8)
    path = save("b.tif", bits, tiled=False, bitdepth=1, compression="ccittfax4")
    np.testing.assert_array_equal(read_all(path), np.repeat(bits[..., None], 3, 2))
    index = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    colours = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint16) * 257
    tifffile.imwrite(tmp_path / "p.tif", index, photometric="palette", colormap=colours)
    expected = (colours.T // 257)[index]
    np.testing.assert_array_equal(read_all(str(tmp_path / "p.tif")), expected)
    alpha = np.array([[0, 255, 128]], np.uint8)
    colour = np.array([[[10, 20, 30]] * 3], np.uint8)
    on_white = [[[255, 255, 255], [10, 20, 30], [132, 137, 142]]]
    path = save("a.png", np.dstack([colour, alpha]))
    np.testing.assert_allclose(read_all(path).astype(int), on_white, atol=1)
    path = save("ga.png", np.dstack([colour[..., :1], alpha]))
    np.testing.assert_allclose(read_all(path).astype(int)[..., 0], [[255, 10, 132]], atol=1)


def test_read__associated_alpha_is_not_applied_twice(tmp_path) -> None:
    half = np.array([[[50, 100, 0, 128]]], np.uint8).repeat(16, 0).repeat(16, 1)
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, half, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(read_all(path)[3, 3].astype(int), [177, 227, 127], atol=2)


def test_read__cmyk_jpeg_becomes_rgb(tmp_path) -> None:
    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "c.jpg")  # red ink
    red, green, blue = read_all(str(tmp_path / "c.jpg"))[5, 5].astype(int)
    assert red > 150
    assert max(green, blue) < 110


def test_read__sixteen_bits_are_refused(save, tmp_path, picture) -> None:
    wide = picture.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "w.tif", wide, photometric="rgb", tile=(128, 128))
    for path in (str(tmp_path / "w.tif"), save("w.png", wide)):
        with pytest.raises(SlideError, match="8-bit"):
            open_slide(path)


def test_info__orientation_and_profile_are_told_not_applied(tmp_path, picture) -> None:
    image = Image.fromarray(picture)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "o.jpg", exif=exif, icc_profile=b"x" * 200)
    slide = open_slide(str(tmp_path / "o.jpg"))
    assert slide.info.size_px0 == (701, 523)
    assert any("Orientation 6" in note for note in slide.info.notes)


def test_info__resolution_only_if_a_microscope_could_have_it(save) -> None:
    def mpp(name: str, **options: object) -> tuple[float | None, str | None]:
        info = open_slide(save(name, **options)).info
        return info.mpp, info.mpp_source

    assert mpp("a.tif", xres=4000, yres=4000) == (pytest.approx(0.25), "tiff.XResolution")
    assert mpp("b.tif", xres=4000, yres=4100)[0] == pytest.approx(0.25 * (1 + 40 / 41) / 2)
    assert mpp("c.tif", xres=4000, yres=3000) == (None, None)  # not square
    assert mpp("d.tif", xres=300 / 25.4, yres=300 / 25.4) == (None, None)  # print
    assert mpp("e.png", tiled=False) == (None, None)
    notes = open_slide(save("c.tif", xres=4000, yres=3000)).info.notes
    assert any("not square" in note for note in notes)


def test_read__damaged_tile_raises_and_the_rest_still_reads(save, patch, caplog) -> None:
    good = save("a.tif", compression="jpeg")
    path = patch(good, "TileOffsets", 8, 16)  # column 2, row 1: bytes that are no JPEG
    slide, sound = open_slide(path), open_slide(good)
    with pytest.raises(SlideError, match=r"patched-a\.tif: damaged JPEG tile at column 2, row 1"):
        slide.read(0, Box(300, 150, 20, 20))
    for box in (Box(0, 0, 128, 128), Box(400, 130, 200, 100), Box(0, 300, 701, 200)):
        np.testing.assert_array_equal(slide.read(0, box), sound.read(0, box))
    with pytest.raises(SlideError):
        slide.read(0, Box(256, 128, 1, 1))


@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd", "lzma"])
@pytest.mark.parametrize("tile", [(128, 128), None])
@pytest.mark.parametrize("junk", [b"\0", b"\xff", b""], ids=["zeros", "ones", "cut"])
def test_read__damaged_data_of_any_codec_raise(tmp_path, picture, codec, tile, junk) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, picture, tile=tile, rowsperstrip=64, compression=codec, photometric="rgb",
        metadata=None,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+") as tif:
        page = tif.pages[0]
        offset, count = page.dataoffsets[1], page.databytecounts[1]
        if not junk:
            tag = page.tags["TileByteCounts" if tile else "StripByteCounts"]
            tag.overwrite([count // 2 if i == 1 else n for i, n in enumerate(tag.value)])
    with path.open("r+b") as handle:
        handle.seek(offset + count // 2)
        handle.write(junk * (count - count // 2))
    slide = open_slide(str(path))
    with pytest.raises(SlideError, match="damaged"):
        slide.read(0, Box(0, 0, 701, 128))
    slide.close()


def test_overview__damaged_block_is_white_and_reported(tmp_path, caplog) -> None:
    """One bad tile must not cost the slide: the block around it is white, and a warning says so."""
    pixels = np.full((3000, 5000, 3), 90, np.uint8)
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(str(path), compression="jpeg", tile=True, tile_width=256, tile_height=256)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    data[offset : offset + count] = bytes(count)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        picture = open_slide(str(path)).overview(8)
    assert "1 of 6 blocks are damaged" in caplog.text
    assert (picture[:256, :256] == 255).all()
    np.testing.assert_allclose(picture[260:].astype(int), 90, atol=2)


def test_overview__all_blocks_damaged_is_an_error(save, patch) -> None:
    path = patch(save("a.tif", compression="jpeg", pyramid=False), "TileOffsets", slice(None), 16)
    with pytest.raises(SlideError, match="damaged"):
        open_slide(path).overview(4)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_read__truncated_field_of_view_is_an_error(save, name) -> None:
    path = save(name, tiled=False)
    with open(path, "r+b") as handle:  # noqa: PTH123
        handle.truncate(handle.seek(0, 2) // 2)
    with pytest.raises(SlideError, match=rf"{name}"):
        open_slide(path).read(0, Box(0, 0, 701, 523))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_open__picture_that_claims_more_than_its_bytes_can_hold(save, name) -> None:
    path = save(name, np.zeros((30, 40, 3), np.uint8))
    with open(path, "r+b") as handle:  # noqa: PTH123
        data = handle.read()
        # Width and height follow each other in IHDR; height and width in SOF0.
        order = (40, 30) if name.endswith("png") else (30, 40)
        width = 4 if name.endswith("png") else 2
        old = b"".join(side.to_bytes(width, "big") for side in order)
        place = data.index(old)
        handle.seek(place)
        handle.write(b"".join(side.to_bytes(width, "big") for side in (54_000, 39_000)))
        if name.endswith("png"):
            import zlib

            handle.seek(12)
            crc = zlib.crc32(handle.read(17))
            handle.write(crc.to_bytes(4, "big"))
    with pytest.raises(SlideError, match="claims"):
        open_slide(path)


def test_read__damaged_file_writes_nothing_to_stderr(save, patch) -> None:
    path = patch(save("a.tif", compression="jpeg"), "TileOffsets", slice(None), 16)
    code = f"""
    from cytofm_cli.errors import SlideError
    from cytofm_cli.slides.open import open_slide
    from cytofm_cli.units import Box
    for reader in ("vips", "openslide", "tiffslide"):
        try:
            open_slide({path!r}, reader=reader).read(0, Box(0, 0, 64, 64))
            print(reader, "read it")
        except SlideError as error:
            print(reader, len(error.one_line().splitlines()), len(error.one_line()) < 400)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:3] == [
        f"{r} 1 True" for r in ("vips", "openslide", "tiffslide")
    ]
    assert done.stderr == ""


def test_read__large_plain_picture_is_unpacked_to_disc_not_memory(save, tmp_path) -> None:
    """With libvips' limit lowered, a PNG goes to a nameless file that dies with the slide."""
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    path = save("big.png", pixels)
    folder = tmp_path / "tmp"
    folder.mkdir()
    code = f"""
    import os
    from cytofm_cli.slides.open import open_slide
    from cytofm_cli.units import Box
    def files():
        links = [f"/proc/self/fd/{{each}}" for each in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if os.path.lexists(link)]
        return sum(target.startswith({str(folder)!r}) for target in targets)
    slide = open_slide({path!r})
    slide.overview(4)
    before = files()
    slide.read(0, Box(1900, 1400, 50, 50))
    during = files()
    slide.close()
    print(before, during, files(), len(os.listdir({str(folder)!r})))
    """
    environment = {"VIPS_DISC_THRESHOLD": "1m", "TMPDIR": str(folder), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert done.stdout.split() == ["0", "1", "0", "0"]
