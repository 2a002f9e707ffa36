"""One tile: which pixels are read, what lies beyond the edge, how it is reduced."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cytofm_cli.slides.base import Level, SlideInfo
from cytofm_cli.tiles.read import ReadPlan, ordered_map, plan_reading, read_tile, resample
from cytofm_cli.units import Box, Size


class Picture:
    """A slide of one picture, its levels every second, fourth, … pixel of it."""

    def __init__(self, pixels_HWC: np.ndarray, downsamples: tuple[int, ...] = (1,)) -> None:
        self.levels = [pixels_HWC[::by, ::by] for by in downsamples]
        sizes = [Size(level.shape[1], level.shape[0]) for level in self.levels]
        levels = tuple(
            Level(size_px=size, downsample=float(by))
            for size, by in zip(sizes, downsamples, strict=True)
        )
        self.info = SlideInfo(path="a.svs", reader="toy", format="toy", levels=levels)
        self.asked: list[tuple[int, Box]] = []

    def read(self, level: int, box: Box) -> np.ndarray:
        size = self.info.levels[level].size_px
        assert box.x >= 0 and box.y >= 0 and box.w >= 1 and box.h >= 1
        assert box.x + box.w <= size.w and box.y + box.h <= size.h
        self.asked.append((level, box))
        return self.levels[level][box.y : box.y + box.h, box.x : box.x + box.w]


def numbered(width: int = 10, height: int = 6) -> np.ndarray:
    """Return (height, width, 3) uint8: pixel (x, y) is (x, y, 7)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def plan(
    tile_px: int = 4, *, level: int = 0, downsample: float = 1.0, scale: float = 1.0
) -> ReadPlan:
    mpp = 0.25 * downsample * scale
    return ReadPlan(
        level=level, downsample=downsample, scale=scale, tile_px=tile_px, mpp=mpp, slide_mpp=0.25
    )


# --- the plan ------------------------------------------------------------------------------------


def test_plan__lengths_in_level_0_pixels() -> None:
    of = Picture(numbered(64, 64), (1, 4)).info
    # 1.5 µm/px of 0.25: the level of 1.0 is read, 1.5 of its pixels to one of the tile.
    chosen = plan_reading(of, slide_mpp=0.25, target_mpp=1.5, tile_px=10, tolerance=0.05)
    assert (chosen.level, chosen.downsample, chosen.scale) == (1, 4.0, 1.5)
    assert (chosen.tile_px, chosen.mpp, chosen.slide_mpp) == (10, 1.5, 0.25)
    assert chosen.tile_px0 == 60.0
    assert chosen.px0(3.0) == 18.0


def test_plan__of_levels_in_any_order_the_coarsest_that_is_fine_enough() -> None:
    of = Picture(numbered(64, 64), (4, 1, 2)).info
    chosen = plan_reading(of, slide_mpp=0.25, target_mpp=0.6, tile_px=10, tolerance=0.0)
    assert (chosen.level, chosen.downsample) == (2, 2.0)
    assert chosen.scale == pytest.approx(1.2)


@pytest.mark.parametrize(
    ("target", "level", "scale", "mpp"),
    [
        (0.4, 1, 1.0, 0.5),  # 0.5 is 25 % coarser: the edge of the tolerance
        (0.3999, 0, 1.5996, 0.3999),  # beyond it
        (2 / 3, 1, 1.0, 0.5),  # 25 % finer: read as it is
        (0.67, 1, 1.34, 0.67),  # finer still: reduced
    ],
)
def test_plan__tolerance_counts_on_both_sides(
    target: float, level: int, scale: float, mpp: float
) -> None:
    of = Picture(numbered(64, 64), (1, 2)).info
    chosen = plan_reading(of, slide_mpp=0.25, target_mpp=target, tile_px=8, tolerance=0.25)
    assert (chosen.level, chosen.scale, chosen.mpp) == (
        level, pytest.approx(scale), pytest.approx(mpp),
    )  # fmt: skip


# --- inside, and beyond the edge -----------------------------------------------------------------


def test_read_tile__inside_is_the_slide_to_the_bit() -> None:
    slide = Picture(numbered())
    np.testing.assert_array_equal(read_tile(slide, plan(), 3, 1), numbered()[1:5, 3:7])
    np.testing.assert_array_equal(read_tile(slide, plan(), 6, 2), numbered()[2:, 6:])
    assert slide.asked == [(0, Box(3, 1, 4, 4)), (0, Box(6, 2, 4, 4))]


@pytest.mark.parametrize("fill", [255, 0])
@pytest.mark.parametrize(
    ("x", "y", "inside"),
    [
        (8, 1, (slice(0, 4), slice(0, 2))),  # right
        (1, 3, (slice(0, 3), slice(0, 4))),  # below
        (9, 5, (slice(0, 1), slice(0, 1))),  # the last pixel alone
        (-1, 1, (slice(0, 4), slice(1, 4))),  # left
        (1, -3, (slice(3, 4), slice(0, 4))),  # above
    ],
)
def test_read_tile__beyond_the_edge_is_filled(
    fill: int, x: int, y: int, inside: tuple[slice, slice]
) -> None:
    tile = read_tile(Picture(numbered()), plan(), x, y, fill=fill)
    y_HW, x_HW = np.mgrid[y : y + 4, x : x + 4]
    wanted = np.stack([x_HW, y_HW, np.full_like(x_HW, 7)], axis=-1)
    known = np.zeros((4, 4), bool)
    known[inside] = True
    np.testing.assert_array_equal(tile, np.where(known[..., None], wanted, fill))
    assert tile.dtype == np.uint8


def test_read_tile__fill_is_white_unless_told() -> None:
    tile = read_tile(Picture(numbered()), plan(), 8, 4)
    assert (tile[2:] == 255).all() and (tile[:, 2:] == 255).all() and (tile[:2, :2] < 10).all()


def test_read_tile__picture_smaller_than_the_tile() -> None:
    tile = read_tile(Picture(numbered(3, 2)), plan(), 0, 0, fill=9)
    np.testing.assert_array_equal(tile[:2, :3], numbered(3, 2))
    assert (tile[2:] == 9).all() and (tile[:, 3:] == 9).all()


def test_read_tile__position_is_of_level_0_and_rounded_to_the_level() -> None:
    slide = Picture(numbered(40, 40), (1, 4))
    coarse = plan(level=1, downsample=4.0)
    # 13 / 4 = 3.25 is column 3 of the level, 7 / 4 = 1.75 row 2: pixels 12 and 8 of level 0.
    tile = read_tile(slide, coarse, 13, 7)
    assert slide.asked == [(1, Box(3, 2, 4, 4))]
    assert tile[0, 0].tolist() == [12, 8, 7]
    assert tile[3, 3].tolist() == [24, 20, 7]


# --- reduced -------------------------------------------------------------------------------------


def test_read_tile__reduced_by_two_keeps_where_things_are() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 200
    pixels[16:, :, 1] = 100
    slide = Picture(pixels)
    tile = read_tile(slide, plan(8, scale=2.0), 8, 8)
    assert slide.asked == [(0, Box(8, 8, 16, 16))]
    assert tile.shape == (8, 8, 3)
    # Lanczos rings beside an edge; two pixels away the quarters have their colours.
    np.testing.assert_allclose(tile[:2, :2], np.zeros((2, 2, 3)), atol=3)
    np.testing.assert_allclose(tile[:2, 6:], np.full((2, 2, 3), 200), atol=3)
    np.testing.assert_allclose(tile[6:, :2], np.full((2, 2, 3), (0, 100, 0)), atol=3)
    np.testing.assert_allclose(tile[6:, 6:], np.full((2, 2, 3), (200, 100, 200)), atol=3)


@pytest.mark.parametrize(("scale", "side"), [(1.3, 13), (1.25, 12), (1.35, 14), (0.04, 1)])
def test_read_tile__side_on_the_level_is_rounded(scale: float, side: int) -> None:
    slide = Picture(numbered(40, 40))
    read_tile(slide, plan(10, scale=scale), 0, 0)
    assert slide.asked == [(0, Box(0, 0, side, side))]


def test_read_tile__fill_is_put_in_before_reducing() -> None:
    tile = read_tile(Picture(np.zeros((16, 16, 3), np.uint8)), plan(8, scale=2.0), 8, 0, fill=240)
    assert (tile[:, :3] < 12).all() and (tile[:, 5:] > 228).all()


def test_resample__fine_stripes_become_their_mean_and_not_one_of_them() -> None:
    stripes = np.zeros((24, 24, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resample(stripes, 8)  # every third column alone would be 200, 0, 200, …
    assert small.shape == (8, 8, 3)
    np.testing.assert_allclose(small[:, 1:-1], np.full((8, 6, 3), 100), atol=20)
    assert small[:, 1:-1].mean() == pytest.approx(100, abs=2)


def test_resample__width_and_height_of_their_own() -> None:
    pixels = numbered(30, 20) * 5
    small = resample(pixels, 10, 4)
    assert small.shape == (4, 10, 3)
    assert small.dtype == np.uint8
    # Pixel 5 of ten is the mean of columns 15 to 17, row 2 of four that of rows 10 to 14.
    assert small[2, 5].tolist() == pytest.approx([16 * 5, 12 * 5, 35], abs=1)
    assert resample(pixels, 30, 20) is pixels
    assert resample(pixels, 20, 20).shape == resample(pixels, 20).shape == (20, 20, 3)


def test_resample__of_a_view_reads_the_view() -> None:
    pixels = numbered(40, 40) * 5
    np.testing.assert_array_equal(
        resample(pixels[4:24, 10:30], 10), resample(pixels[4:24, 10:30].copy(), 10)
    )


# --- in threads, in order ------------------------------------------------------------------------


def test_ordered_map__keeps_the_order_and_no_more_than_the_window() -> None:
    taken: list[int] = []

    def items():
        for number in range(9):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = ordered_map(pool, lambda x: x * x, items(), window=4)
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
        assert [next(results), next(results)] == [1, 4]
        assert taken == [0, 1, 2, 3, 4, 5]
        assert list(results) == [9, 16, 25, 36, 49, 64]


def test_ordered_map__closed_early_does_not_start_what_waits() -> None:
    begin, started = threading.Event(), []

    def work(number: int) -> int:
        started.append(number)
        if number:
            begin.wait()
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, work, range(100), window=5)
        assert next(results) == 0
        results.close()
        begin.set()
    assert started in ([0], [0, 1])
