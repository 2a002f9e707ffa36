"""The walk over TIFF directories, checked against tifffile, and the refusal of lies."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import SlideError
from cytofm_cli.slides import tiff


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("tile", [(64, 48), None])
def test_read_directories__equals_tifffile(tmp_path, picture, byteorder, bigtiff, tile) -> None:
    path = str(tmp_path / "a.tif")
    with tifffile.TiffWriter(path, byteorder=byteorder, bigtiff=bigtiff) as out:
        options = {"photometric": "rgb", "metadata": None, "compression": "deflate", "tile": tile}
        out.write(
            picture, subifds=1, description="hello", resolution=(40_000, 40_000),
            resolutionunit="CENTIMETER", **options,
        )  # fmt: skip
        out.write(picture[::2, ::2], **options)
        out.write(picture[:50, :60], **options)
    found = tiff.read_directories(path)
    assert [(d.page, d.sub) for d in found] == [(0, None), (0, 0), (1, None)]
    with tifffile.TiffFile(path) as tif:
        pages = [tif.pages[0], tif.pages[0].pages[0], tif.pages[1]]
        for directory, page in zip(found, pages, strict=True):
            assert directory.size_px == (page.imagewidth, page.imagelength)
            assert directory.tile_px == ((page.tilewidth, page.tilelength) if tile else None)
            assert directory.offsets.tolist() == list(page.dataoffsets)
            assert directory.byte_counts.tolist() == list(page.databytecounts)
            assert directory.grid.w * directory.grid.h == len(page.dataoffsets)
    assert found[0].text(tiff.IMAGE_DESCRIPTION) == "hello"
    assert found[0].codec == "deflate"
    assert found[0].resolution_um() == pytest.approx((0.25, 0.25))
    tiff.verify(path, found, Path(path).stat().st_size)


def test_resolution__inch_centimetre_and_none(tmp_path, picture, patch) -> None:
    path = str(tmp_path / "a.tif")
    tifffile.imwrite(path, picture, resolution=(40_000, 20_000), resolutionunit="CENTIMETER")
    assert tiff.read_directories(path)[0].resolution_um() == pytest.approx((0.25, 0.5))
    inch = tiff.read_directories(patch(path, "ResolutionUnit", 0, 2))[0].resolution_um()
    assert inch == pytest.approx((0.635, 1.27))
    unit_of_none = tiff.read_directories(patch(path, "ResolutionUnit", 0, 1))[0]
    assert unit_of_none.resolution_um() == (None, None)


def test_read_directories__loop_is_refused(tmp_path) -> None:
    path = tmp_path / "loop.tif"
    entry = (
        (256).to_bytes(2, "little")
        + (4).to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + bytes(4)
    )
    path.write_bytes(
        b"II*\0" + (8).to_bytes(4, "little") + b"\1\0" + entry + (8).to_bytes(4, "little")
    )
    with pytest.raises(SlideError, match="loop"):
        tiff.read_directories(str(path))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_read_directories__any_damage_is_a_slide_error(save, tmp_path, data) -> None:
    whole = bytearray(Path(save("a.tif", compression="lzw")).read_bytes())
    cut = data.draw(st.integers(0, len(whole)))
    for _ in range(data.draw(st.integers(0, 5))):
        place = data.draw(st.one_of(st.integers(0, 15), st.integers(0, len(whole) - 1)))
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[:cut])
    try:
        found = tiff.read_directories(str(path))
        tiff.verify(str(path), found, cut)
    except SlideError as error:
        assert "cut.tif" in error.message
        return
    assert found


def test_verify__sizes_that_the_tiles_cannot_fill(save, patch) -> None:
    path = save("a.tif", compression="jpeg")
    for tag, claim in (("ImageWidth", 54_000), ("ImageLength", 39_000)):
        lie = patch(path, tag, 0, claim)
        with pytest.raises(SlideError, match=r"claims .* but lists 30 of"):
            tiff.verify(lie, tiff.read_directories(lie), Path(lie).stat().st_size)


def test_verify__one_tile_in_a_large_table(tmp_path) -> None:
    """A full table whose tiles are all left out but one, and one whose tiles are all the same."""
    path = str(tmp_path / "one.tif")
    blank = np.full((2048, 2048, 3), 255, np.uint8)
    tifffile.imwrite(
        path, blank, tile=(64, 64), photometric="rgb", compression="deflate", metadata=None
    )
    good = tiff.read_directories(path)
    tiff.verify(path, good, Path(path).stat().st_size)
    counts, offsets = good[0].byte_counts, good[0].offsets
    one = np.where(np.arange(counts.size) == 7, counts, 0)
    for tags in (
        {tiff.TILE_BYTE_COUNTS: one},
        {tiff.TILE_OFFSETS: np.full_like(offsets, offsets[0]), tiff.TILE_BYTE_COUNTS: counts},
    ):
        lie = tiff.Directory(page=0, sub=None, tags={**good[0].tags, **tags})
        with pytest.raises(SlideError, match="claims 2048 x 2048 px but holds 1 of 1024 tiles"):
            tiff.verify(path, [lie], Path(path).stat().st_size)
    every_other = {tiff.TILE_BYTE_COUNTS: np.where(np.arange(counts.size) % 2, counts, 0)}
    half = tiff.Directory(page=0, sub=None, tags={**good[0].tags, **every_other})
    tiff.verify(path, [half], Path(path).stat().st_size)  # sparse, but a slide


def test_directory__numbers_that_are_none_are_no_size_and_no_warning() -> None:
    values = np.array([np.nan, 4.0])
    lie = tiff.Directory(page=0, sub=None, tags={tiff.IMAGE_WIDTH: values})
    assert lie.number(tiff.IMAGE_WIDTH, 7) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lie.array(tiff.IMAGE_WIDTH)[1] == 4


def test_verify__truncated_copy(save, tmp_path) -> None:
    path = save("a.tif", compression="jpeg")
    found = tiff.read_directories(path)
    end = int((found[0].offsets + found[0].byte_counts).max())
    tiff.verify(path, found[:1], end)
    with pytest.raises(SlideError, match="is truncated: 1 of 30 tiles"):
        tiff.verify(path, found[:1], end - 1)


def test_verify__one_huge_tile_of_few_bytes(tmp_path) -> None:
    path = str(tmp_path / "huge.tif")
    blank = np.full((256, 256, 3), 255, np.uint8)
    for codec in ("jpeg", "deflate"):
        options = {"compression": codec, "photometric": "rgb", "metadata": None}
        tifffile.imwrite(path, blank, tile=(256, 256), **options)
        good = tiff.read_directories(path)
        size = Path(path).stat().st_size
        tiff.verify(path, good, size)  # the blankest tile there is
        claim = {
            tag: np.array([side])
            for side, *tags in (
                (54_000, tiff.IMAGE_WIDTH, tiff.TILE_WIDTH),
                (39_000, tiff.IMAGE_LENGTH, tiff.TILE_LENGTH),
            )
            for tag in tags
        }
        lie = tiff.Directory(page=0, sub=None, tags={**good[0].tags, **claim})
        with pytest.raises(SlideError, match=r"claims tiles of 6318000000 bytes each"):
            tiff.verify(path, [lie], size)
