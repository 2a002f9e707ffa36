"""Squares of a slide: their grid, and that their pixels are the reader's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.errors import UsageError
from cytofm_cli.slides.base import Level, SlideInfo
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box, Size
from cytofm_cli.viewer.zoom import Region, Thumbnail, Zooms, read_region


class Striped:
    """A slide whose pixels say where they are: red is x, green y (modulo 251), blue the level."""

    def __init__(self, size: Size, downsamples: tuple[float, ...]) -> None:
        levels = tuple(
            Level(size_px=Size(round(size.w / d), round(size.h / d)), downsample=d)
            for d in downsamples
        )
        self.info = SlideInfo(path="striped", reader="test", format="test", levels=levels)
        self.largest = 0

    def read(self, level: int, box: Box) -> np.ndarray:
        self.largest = max(self.largest, box.w, box.h)
        y, x = np.mgrid[box.y : box.y + box.h, box.x : box.x + box.w]
        return np.stack([x % 251, y % 251, np.full_like(x, level)], -1).astype(np.uint8)


THUMBNAIL = Thumbnail(np.full((25, 50, 3), 77, np.uint8), Size(3200, 1600))  # 1/64


@pytest.mark.parametrize(
    ("size", "deepest"), [((512, 512), 0), ((513, 10), 1), ((1024, 7), 1), ((100_000, 90_000), 8)]
)
def test_zooms__the_whole_slide_fits_into_one_square(size: tuple[int, int], deepest: int) -> None:
    assert Zooms(Size(*size)).deepest == deepest


def test_zooms__squares_beyond_the_slide_are_none() -> None:
    zooms = Zooms(Size(1100, 600))  # deepest 2
    assert zooms.region(0, 0, 0) == Region(0, 0, 2048)
    assert zooms.region(2, 2, 1) == Region(1024, 512, 512)
    for zoom, column, row in [(2, 3, 0), (2, 0, 2), (3, 0, 0), (-1, 0, 0), (2, -1, 0), (0, 0, 1)]:
        with pytest.raises(UsageError, match="no square"):
            zooms.region(zoom, column, row)


def test_read_region__at_a_level_of_the_slide_is_that_level_unchanged() -> None:
    slide = Striped(Size(3200, 1600), (1, 4, 16))
    shown = read_region(slide, THUMBNAIL, Region(1024, 512, 512))
    assert np.array_equal(shown, slide.read(0, Box(1024, 512, 512, 512)))
    shown = read_region(slide, THUMBNAIL, Region(0, 0, 2048))
    assert shown[:400, :, 2].max() == 1  # a quarter, and past the edge white
    assert np.array_equal(shown[:400], slide.read(1, Box(0, 0, 512, 400)))
    assert (shown[400:] == 255).all()


def test_read_region__between_levels_reads_the_next_finer_one() -> None:
    slide = Striped(Size(3200, 1600), (1, 4, 16))
    shown = read_region(slide, THUMBNAIL, Region(0, 0, 1024))
    assert shown[..., 2].max() == 0
    # Column 100 of the halved picture lies between columns 200 and 201 of level 0.
    assert abs(float(shown[10, 100, 0]) - 200.5) <= 1


def test_read_region__past_the_edge_has_the_colour_of_the_glass() -> None:
    slide = Striped(Size(3200, 1600), (1, 4, 16))
    shown = read_region(slide, THUMBNAIL, Region(3072, 1536, 512), fill=9)
    assert np.array_equal(shown[:64, :128], slide.read(0, Box(3072, 1536, 128, 64)))
    assert (shown[64:] == 9).all()
    assert (shown[:, 128:] == 9).all()


def test_read_region__of_a_slide_that_is_gone_is_the_thumbnail() -> None:
    shown = read_region(None, THUMBNAIL, Region(0, 0, 512))
    assert shown.shape == (512, 512, 3)
    assert (shown == 77).all()


@pytest.mark.slow
def test_read_region__of_a_large_slide_without_pyramid_never_reads_it_as_a_whole() -> None:
    slide = Striped(Size(40_000, 40_000), (1,))
    thumbnail = Thumbnail(np.full((625, 625, 3), 77, np.uint8), Size(40_000, 40_000))  # 1/64
    assert (read_region(slide, thumbnail, Region(0, 0, 512 * 64))[0, 0] == 77).all()
    assert (read_region(slide, thumbnail, Region(0, 0, 512 * 16))[0, 0] == 77).all()
    assert slide.largest == 0
    read_region(slide, thumbnail, Region(0, 0, 512 * 8))
    assert slide.largest == 4096


@pytest.mark.slow
def test_read_region__of_a_real_pyramid_equals_the_reader(finished: Path) -> None:
    path = sorted((finished / "slides").iterdir())[0]
    with open_slide(str(path)) as slide:
        thumbnail = Thumbnail(np.zeros((10, 10, 3), np.uint8), slide.info.size_px0)
        shown = read_region(slide, thumbnail, Region(512, 1024, 512))
        assert np.array_equal(shown, slide.read(0, Box(512, 1024, 512, 512)))
