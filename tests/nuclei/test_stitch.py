"""Detection over tiles equals detection over the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.errors import OutOfMemoryError, UsageError
from cytofm_cli.nuclei import stitch
from cytofm_cli.nuclei.base import NucleusTable, as_rgb, make_table
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.nuclei.stitch import (
    detect_tile,
    detect_tile_in_parts,
    detect_tiles,
    joined,
    with_halo,
)
from cytofm_cli.units import Box, Size

SIZE = Size(300, 220)


@dataclass(frozen=True)
class DarkSpots:
    """An exact detector: connected dark pixels, their centroid and area."""

    classes: tuple[str, ...] = ("nucleus",)
    halo_um: float = 6.0

    def detect(self, image_HWC: np.ndarray, mpp: float) -> NucleusTable:
        label_HW, count = ndimage.label(as_rgb(image_HWC)[..., 0] < 128)
        index = np.arange(1, count + 1)
        yx = np.array(ndimage.center_of_mass(label_HW > 0, label_HW, index)).reshape(-1, 2)
        area = ndimage.sum_labels(label_HW > 0, label_HW, index) * mpp**2
        return make_table(yx[:, ::-1] + 0.5, np.atleast_1d(area)).sorted()


def spots(seed: int) -> np.ndarray:
    """Draw disks of radius 4 to 7 px that keep a gap, some across the border."""
    rng = np.random.default_rng(seed)
    image = np.full((SIZE.h, SIZE.w, 3), 230, np.uint8)
    yy, xx = np.mgrid[: SIZE.h, : SIZE.w]
    for cy in range(0, SIZE.h + 1, 22):
        for cx in range(0, SIZE.w + 1, 22):
            x, y = cx + rng.uniform(-2, 2), cy + rng.uniform(-2, 2)
            image[(xx - x) ** 2 + (yy - y) ** 2 < rng.uniform(4, 7) ** 2] = (90, 60, 120)
    return image


def boxes_of(tile_px: int) -> list[Box]:
    return [
        Box(x, y, min(tile_px, SIZE.w - x), min(tile_px, SIZE.h - y))
        for y in range(0, SIZE.h, tile_px)
        for x in range(0, SIZE.w, tile_px)
    ]


def reader(image: np.ndarray):
    def read(box: Box) -> np.ndarray:
        assert box.x >= 0 and box.y >= 0
        assert box.x + box.w <= SIZE.w and box.y + box.h <= SIZE.h
        return image[box.y : box.y + box.h, box.x : box.x + box.w]

    return read


@settings(max_examples=12, deadline=None)
@given(tile_px=st.integers(20, 320), seed=st.integers(0, 50), shuffle=st.randoms())
def test_detect_tiles__equals_the_whole_for_any_tile_size_and_order(tile_px, seed, shuffle):
    image = spots(seed)
    boxes = boxes_of(tile_px)
    shuffle.shuffle(boxes)
    whole = DarkSpots().detect(image, 0.25)
    tiled = detect_tiles(DarkSpots(), reader(image), boxes, size_px=SIZE, mpp=0.25)
    assert len(whole) > 100
    np.testing.assert_allclose(tiled.xy_px0, whole.xy_px0, atol=1e-4)
    np.testing.assert_array_equal(tiled.area_um2, whole.area_um2)


def test_detect_tiles__overlapping_boxes_count_a_nucleus_once():
    image = spots(3)
    boxes = [Box(x, 0, 100, SIZE.h) for x in range(0, 201, 25)]
    tiled = detect_tiles(DarkSpots(), reader(image), boxes, size_px=SIZE, mpp=0.25)
    whole = DarkSpots().detect(image, 0.25)
    np.testing.assert_allclose(tiled.xy_px0, whole.xy_px0, atol=1e-4)


def test_detect_tiles__scales_to_level_0():
    image = spots(1)
    once = detect_tiles(DarkSpots(), reader(image), boxes_of(90), size_px=SIZE, mpp=1.0)
    four = detect_tiles(
        DarkSpots(), reader(image), boxes_of(90), size_px=SIZE, mpp=1.0, downsample=4.0
    )
    np.testing.assert_allclose(four.xy_px0, once.xy_px0 * 4, rtol=1e-6)
    np.testing.assert_array_equal(four.area_um2, once.area_um2)


def test_detect_tiles__no_boxes_give_no_rows():
    table = detect_tiles(DarkSpots(), reader(spots(0)), [], size_px=SIZE, mpp=0.25)
    assert len(table) == 0
    table.validate()


@pytest.mark.parametrize("box", [Box(0, 0, 0, 5), Box(-1, 0, 5, 5), Box(290, 0, 20, 5)])
def test_detect_tiles__refuses_boxes_outside(box):
    with pytest.raises(UsageError):
        detect_tiles(DarkSpots(), reader(spots(0)), [box], size_px=SIZE, mpp=0.25)


def test_with_halo__aligned_and_inside():
    assert with_halo(Box(100, 50, 40, 40), 10, SIZE) == Box(88, 40, 64, 64)
    assert with_halo(Box(0, 0, 300, 220), 10, SIZE) == Box(0, 0, 300, 220)


def test_merge__jitter_across_a_seam_is_one_nucleus():
    class Jitter(DarkSpots):
        """Shifts everything by a fraction of a pixel that depends on the tile."""

        def detect(self, image_HWC: np.ndarray, mpp: float) -> NucleusTable:
            shift = (image_HWC.shape[1] % 3 - 1) * 0.6
            return super().detect(image_HWC, mpp).moved(shift_px=(shift, 0))

    image = np.full((SIZE.h, SIZE.w, 3), 230, np.uint8)
    image[96:105, 96:105] = 0  # centred on the seam at x = 100
    boxes = [Box(0, 0, 100, SIZE.h), Box(100, 0, 200, SIZE.h)]
    table = detect_tiles(Jitter(), reader(image), boxes, size_px=SIZE, mpp=0.25)
    assert len(table) <= 1


@pytest.mark.parametrize("tile_px", [64, 101, 160])
def test_classical__seam_free_on_separate_nuclei(tile_px):
    rng = np.random.default_rng(5)
    image = np.full((SIZE.h, SIZE.w, 3), 225, np.float64)
    yy, xx = np.mgrid[: SIZE.h, : SIZE.w] + 0.5
    centres = [(x, y) for y in range(30, 200, 50) for x in range(30, 280, 50)]
    for x, y in centres:
        radius = rng.uniform(13, 18)
        soft = 1 / (1 + np.exp((np.hypot(xx - x, yy - y) - radius) / 1.5))
        image += soft[..., None] * (np.array([90, 60, 130]) - image)
    image = image.astype(np.uint8)
    detector = ClassicalDetector()
    whole = detector.detect(image, 0.25)
    assert len(whole) == len(centres)
    nearest = np.linalg.norm(whole.xy_px0[:, None] - np.array(centres), axis=2).min(1)
    assert nearest.max() < 1.0
    tiled = detect_tiles(detector, reader(image), boxes_of(tile_px), size_px=SIZE, mpp=0.25)
    assert len(tiled) == len(whole)
    gap = np.linalg.norm(tiled.xy_px0[:, None] - whole.xy_px0, axis=2)
    assert gap.min(1).max() < 0.1  # rows of equal y may swap by rounding
    np.testing.assert_allclose(tiled.area_um2, whole.area_um2[gap.argmin(1)], rtol=1e-2)


@dataclass(frozen=True)
class SmallMemory(DarkSpots):
    """Holds images of so many pixels and no more."""

    max_px: int = 0

    def detect(self, image_HWC: np.ndarray, mpp: float) -> NucleusTable:
        if image_HWC.shape[0] * image_HWC.shape[1] > self.max_px:
            raise OutOfMemoryError("too little memory")
        return super().detect(image_HWC, mpp)


@pytest.mark.parametrize(("max_px", "quartered"), [(SIZE.w * SIZE.h, 0), (40_000, 1), (20_000, 5)])
def test_too_little_memory__quarters_give_the_same_nuclei_and_are_counted(
    max_px, quartered, monkeypatch
):
    monkeypatch.setattr(stitch, "MIN_PART_PX", 16)
    image, box = spots(1), Box(0, 0, SIZE.w, SIZE.h)
    whole = detect_tile(DarkSpots(), reader(image), box, size_px=SIZE, mpp=0.25)
    detector = SmallMemory(max_px=max_px)
    table, count = detect_tile_in_parts(detector, reader(image), box, size_px=SIZE, mpp=0.25)
    assert count == quartered
    np.testing.assert_allclose(table.xy_px0, whole.xy_px0, atol=1e-4)
    np.testing.assert_allclose(table.area_um2, whole.area_um2, atol=1e-4)


def test_too_little_memory__for_the_smallest_part_is_an_error():
    with pytest.raises(OutOfMemoryError):
        detect_tile_in_parts(
            SmallMemory(), reader(spots(1)), Box(0, 0, SIZE.w, SIZE.h), size_px=SIZE, mpp=0.25
        )


def tiles(*rows: str, side: int = 8) -> list[Box]:
    return [
        Box(x * side, y * side, side, side)
        for y, row in enumerate(rows)
        for x, mark in enumerate(row)
        if mark == "#"
    ]


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        (("####", "####"), 16, [(0, 0, 16, 16), (16, 0, 16, 16)]),
        (("##.", "###", ".##"), 24, [(0, 0, 16, 16), (16, 8, 8, 16), (8, 16, 8, 8)]),
        (("##",), 7, [(0, 0, 8, 8), (8, 0, 8, 8)]),
        (("#.#",), 99, [(0, 0, 8, 8), (16, 0, 8, 8)]),
    ],
)
def test_joined__rectangles_cover_the_tiles_and_no_more(rows, most, expected):
    boxes = tiles(*rows)
    found = joined([*boxes[::-1], boxes[0]], most)
    assert found == [Box(*box) for box in expected]
    assert sum(box.w * box.h for box in found) == 64 * len(boxes)


def test_joined__takes_cut_tiles_at_the_ends_and_leaves_none_out():
    boxes = [Box(0, 0, 8, 8), Box(8, 0, 3, 8), Box(0, 8, 8, 5), Box(8, 8, 3, 5)]
    assert joined(boxes, 64) == [Box(0, 0, 11, 13)]
    overlapping = [Box(x, 0, 8, 8) for x in (0, 4, 8)]
    assert joined(overlapping, 64) == [Box(0, 0, 16, 8), Box(4, 0, 8, 8)]
