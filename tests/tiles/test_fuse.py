"""Fused planes: what is taken, where planes are mixed, and that no grid shows in the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles import fuse
from cytofm_cli.tiles.shown import FusedReader
from cytofm_cli.units import Box

from .stacks import COLUMN_PX, sharp, stack_of, write_stack


@pytest.mark.parametrize(
    ("mpp", "expected"),
    # Cells of 0.5 µm: 1.5, 1 and 1 µm are 3, 2 and 2 cells; reach (1 + 2 · 3 + 2 + 2) cells.
    [(0.25, (2, 3, 2, 2, 22)), (0.5, (1, 3, 2, 2, 11)), (1.0, (1, 2, 1, 1, 7))],
)
def test_windows__are_lengths_in_um(mpp, expected) -> None:
    windows = fuse.windows_for(mpp)
    sides = (windows.step, windows.window, windows.agree, windows.blend, windows.halo_px)
    assert sides == expected


def test_fuse__takes_each_part_from_the_plane_where_it_is_sharp() -> None:
    planes, windows = stack_of(200), fuse.windows_for(0.25)
    fused = fuse.fuse(list(planes), 1, windows)
    whole = sharp(200, 3 * COLUMN_PX)
    for left in range(0, 3 * COLUMN_PX, COLUMN_PX):
        inside = slice(left + windows.halo_px, left + COLUMN_PX - windows.halo_px)
        np.testing.assert_array_equal(fused[:, inside], whole[:, inside])
    error = np.abs(fused.astype(float) - whole).mean()
    assert error < 0.2 * min(np.abs(plane.astype(float) - whole).mean() for plane in planes)


def test_fuse__leaves_the_middle_plane_where_there_is_nothing_to_see() -> None:
    rng = np.random.default_rng(1)
    planes = [np.full((90, 70, 3), grey, np.uint8) for grey in (200, 210, 220)]
    np.testing.assert_array_equal(fuse.fuse(planes, 1, fuse.windows_for(0.25)), planes[1])
    noisy = [plane + rng.integers(0, 3, plane.shape).astype(np.uint8) for plane in planes]
    np.testing.assert_array_equal(fuse.fuse(noisy, 2, fuse.windows_for(0.25)), noisy[2])


def test_choose__needs_clearly_more_than_the_middle_has() -> None:
    # A twentieth of 2000, and 0.3 grey levels in each of 3^4 summands.
    windows = fuse.Windows(1, 1, 1, 1)
    middle = np.full((5, 5), 2000, np.int32)
    chosen = [
        int(fuse.choose([middle + more, middle], 1, windows)[2, 2]) for more in (0, 124, 125, 500)
    ]
    assert chosen == [1, 1, 0, 0]


def test_choose__a_pixel_does_not_differ_alone() -> None:
    windows = fuse.Windows(1, 1, 1, 1)
    middle = np.full((9, 9), 1000, np.int32)
    other = middle.copy()
    other[4, 4] = 9000
    assert (fuse.choose([other, middle], 1, windows) == 1).all()
    other[2:7, 2:7] = 9000
    assert fuse.choose([other, middle], 1, windows)[4, 4] == 0


def test_blend__mixes_over_a_window_worked_by_hand() -> None:
    # Half a side of 1 cell: shares of a 3 x 3 window across the edge are 3/9 and 6/9.
    planes = [np.full((4, 6, 3), grey, np.uint8) for grey in (0, 90)]
    chosen = np.zeros((4, 6), np.uint8)
    chosen[:, 3:] = 1
    mixed = fuse.blend(planes, chosen, fuse.Windows(1, 1, 1, 1))
    assert mixed[1, :, 0].tolist() == [0, 0, 30, 60, 90, 90]


@pytest.mark.parametrize(("mpp", "levels"), [(0.25, 2), (0.13, 1), (0.6, 1)])
def test_reader__pixels_do_not_depend_on_the_box(tmp_path, mpp, levels) -> None:
    planes = stack_of(301, width=423)
    path = write_stack(tmp_path / "a.ome.tif", planes, mpp=mpp, levels=levels)
    rng = np.random.default_rng(2)
    with open_slide(path) as slide:
        reader = FusedReader(slide, mpp)
        for level, of in enumerate(slide.info.levels):
            width, height = of.size_px
            whole = reader.read(level, Box(0, 0, width, height))
            assert not np.array_equal(whole, slide.read(level, Box(0, 0, width, height)))
            for _ in range(25):
                x, y = int(rng.integers(width)), int(rng.integers(height))
                w, h = int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1))
                got = reader.read(level, Box(x, y, w, h))
                np.testing.assert_array_equal(got, whole[y : y + h, x : x + w])


def test_reader__blocks_of_a_large_box_are_the_same_pixels(tmp_path, monkeypatch) -> None:
    path = write_stack(tmp_path / "a.ome.tif", stack_of(301, width=423))
    with open_slide(path) as slide:
        whole = FusedReader(slide, 0.25).read(0, Box(0, 0, 423, 301))
        monkeypatch.setattr("cytofm_cli.tiles.shown._BLOCK_PX", 100)
        np.testing.assert_array_equal(FusedReader(slide, 0.25).read(0, Box(0, 0, 423, 301)), whole)


def test_reader__coarse_levels_are_those_of_the_middle_plane(tmp_path) -> None:
    path = write_stack(tmp_path / "a.ome.tif", stack_of(128))
    with open_slide(path) as slide:
        box = Box(0, 0, 384, 128)
        np.testing.assert_array_equal(FusedReader(slide, 2.5).read(0, box), slide.read(0, box))
