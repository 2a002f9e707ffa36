"""Two tiles see one nucleus: how close, whose radius, which of the two stays."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.errors import OutOfMemoryError, UsageError
from cytofm_cli.nuclei.base import NucleusTable, make_table
from cytofm_cli.nuclei.stitch import (
    detect_tile,
    detect_tile_in_parts,
    detect_tiles,
    merge_tiles,
    with_halo,
    without_cut,
)
from cytofm_cli.units import Box, Size

MPP = 0.5


def nuclei(*rows: tuple[float, float, float], probability: float = 1.0) -> NucleusTable:
    """Return a table of discs: (x, y, radius) in pixels of 0.5 µm; radius 0 has no area."""
    xy = np.array([row[:2] for row in rows], float).reshape(-1, 2)
    radius = np.array([row[2] for row in rows], float)
    area = np.where(radius > 0, np.pi * (radius * MPP) ** 2, np.nan)
    return make_table(xy, area, probability=np.full(len(rows), probability))


def merged(*parts: NucleusTable) -> list[tuple[float, float]]:
    table = merge_tiles(list(parts), mpp=MPP, classes=("nucleus",))
    return [(float(x), float(y)) for x, y in table.xy_px0]


# --- the radius ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "gap", "left"),
    [
        (10, 10, 4.9, 1),  # half a radius is 5 px
        (10, 10, 5.1, 2),
        (10, 6, 2.9, 1),  # of the smaller one
        (10, 6, 3.1, 2),
        (6, 10, 3.1, 2),
        (4, 20, 1.9, 1),  # the pair is found whatever else there is
        (0, 0, 0.45, 1),  # a bare point: half a pixel
        (0, 0, 0.55, 2),
        (0, 10, 0.55, 2),
        (0.5, 0.5, 0.45, 1),  # and so has what is smaller than a pixel
    ],
)
def test_merge__two_are_one_within_half_the_smaller_radius(
    first: float, second: float, gap: float, left: int
) -> None:
    assert len(merged(nuclei((100, 50, first)), nuclei((100 + gap, 50, second)))) == left
    assert len(merged(nuclei((100, 50, first)), nuclei((100, 50 - gap, second)))) == left
    diagonal = gap / 2**0.5
    far = nuclei((100 + diagonal, 50 + diagonal, second), (900, 900, 30))
    assert len(merged(nuclei((100, 50, first)), far)) == left + 1


def test_merge__at_half_the_radius_there_are_two() -> None:
    assert len(merged(nuclei((100, 50, 0)), nuclei((100.5, 50, 0)))) == 2


def test_merge__the_radius_is_in_pixels_of_the_level() -> None:
    pair = [make_table(np.array([[x, 0.0]]), np.array([np.pi * 100.0])) for x in (50.0, 56.0)]
    # 10 µm: half of it is 5 px of 1 µm, 10 px of 0.5 µm.
    assert len(merge_tiles(pair, mpp=1.0, classes=())) == 2
    assert len(merge_tiles(pair, mpp=0.5, classes=())) == 1


def test_merge__of_one_tile_none_is_dropped() -> None:
    assert merged(nuclei((100, 50, 10), (101, 50, 10))) == [(100, 50), (101, 50)]
    both = merged(nuclei((100, 50, 10), (101, 50, 10)), nuclei((500, 50, 10)))
    assert both == [(100, 50), (101, 50), (500, 50)]


# --- which one stays -----------------------------------------------------------------------------


def test_merge__the_surer_one_stays_then_the_larger_then_the_upper_left() -> None:
    sure, unsure = nuclei((101, 50, 10), probability=0.9), nuclei((100, 50, 12), probability=0.8)
    assert merged(sure, unsure) == merged(unsure, sure) == [(101, 50)]
    large, small = nuclei((101, 50, 12)), nuclei((100, 50, 10))
    assert merged(large, small) == merged(small, large) == [(101, 50)]
    upper, lower = nuclei((101, 50, 10)), nuclei((100, 51, 10))
    assert merged(upper, lower) == merged(lower, upper) == [(101, 50)]
    left, right = nuclei((100, 50, 10)), nuclei((101, 50, 10))
    assert merged(left, right) == merged(right, left) == [(100, 50)]


def test_merge__what_is_dropped_drops_no_other() -> None:
    # 0 and 4 are one, 4 and 8 are one, 0 and 8 are two: the best takes the middle one with it.
    best, middle, last = (
        nuclei((x, 50, 10), probability=p) for x, p in ((0, 0.9), (4, 0.8), (8, 0.7))
    )
    for parts in ((best, middle, last), (last, middle, best), (middle, last, best)):
        assert merged(*parts) == [(0, 50), (8, 50)]
    # The middle one the best: both others go.
    best, middle = nuclei((0, 50, 10), probability=0.8), nuclei((4, 50, 10), probability=0.9)
    assert merged(best, middle, last) == [(4, 50)]


def test_merge__three_tiles_at_a_corner_leave_one() -> None:
    parts = [nuclei((100 + d, 50, 10), probability=0.5 + d / 10) for d in (0, 1, 2)]
    assert merged(*parts) == merged(*parts[::-1]) == [(102, 50)]


def test_merge__rows_by_y_then_x_and_classes_of_nothing() -> None:
    assert merged(nuclei((9, 2, 1), (5, 7, 1)), nuclei((100, 2, 1))) == [(9, 2), (100, 2), (5, 7)]
    nothing = merge_tiles([nuclei(), nuclei()], mpp=MPP, classes=("a", "b"))
    assert (len(nothing), nothing.classes) == (0, ("a", "b"))


# --- boxes ---------------------------------------------------------------------------------------


class At:
    """A detector that finds nuclei at given places of the level, whatever the picture."""

    classes = ("nucleus",)

    def __init__(self, *places: tuple[float, float], halo_um: float = 8.0) -> None:
        self.places = places
        self.halo_um = halo_um
        self.outer: list[Box] = []

    def read(self, box: Box) -> np.ndarray:
        self.outer.append(box)
        return np.zeros((box.h, box.w, 3), np.uint8)

    def detect(self, image_HWC: np.ndarray, mpp: float) -> NucleusTable:
        box = self.outer[-1]
        assert image_HWC.shape[:2] == (box.h, box.w)
        return nuclei(*((x - box.x, y - box.y, 0) for x, y in self.places))


LEVEL = Size(200, 120)


def found_in(box: Box, *places: tuple[float, float]) -> list[tuple[float, float]]:
    detector = At(*places)
    table = detect_tile(detector, detector.read, box, size_px=LEVEL, mpp=MPP)
    return [(float(x), float(y)) for x, y in table.xy_px0]


def test_detect_tile__a_box_owns_its_left_and_upper_border_only() -> None:
    box = Box(40, 24, 80, 48)  # to 120 and 72
    corners = [(40.0, 24.0), (119.875, 24.0), (40.0, 71.875), (119.875, 71.875)]
    outside = [(39.875, 30.0), (120.0, 30.0), (50.0, 23.875), (50.0, 72.0)]
    assert found_in(box, *corners, *outside) == corners


def test_detect_tile__the_far_border_of_the_level_belongs_to_the_last_box() -> None:
    assert found_in(Box(100, 60, 100, 60), (200.0, 90.0), (150.0, 120.0)) == [(200, 90), (150, 120)]
    assert found_in(Box(100, 60, 99, 59), (199.0, 90.0), (150.0, 119.0)) == []


def test_detect_tile__reads_the_halo_in_pixels_of_the_level() -> None:
    detector = At(halo_um=8.0)  # 16 px of 0.5 µm
    detect_tile(detector, detector.read, Box(40, 40, 40, 40), size_px=LEVEL, mpp=MPP)
    assert detector.outer == [Box(24, 24, 72, 72)]


@pytest.mark.parametrize(
    ("box", "halo_px", "outer"),
    [
        (Box(80, 64, 16, 16), 8, Box(72, 56, 32, 32)),  # multiples of 8 already
        (Box(80, 64, 16, 16), 9, Box(64, 48, 48, 48)),  # one more pixel: a whole step each way
        (Box(80, 64, 16, 24), 7, Box(72, 56, 32, 40)),
        (Box(4, 2, 16, 16), 8, Box(0, 0, 32, 32)),  # the corner of the level
        (Box(170, 100, 30, 20), 8, Box(160, 88, 40, 32)),  # the far corner
        (Box(80, 64, 16, 16), 0, Box(80, 64, 16, 16)),
    ],
)
def test_with_halo__by_hand(box: Box, halo_px: int, outer: Box) -> None:
    assert with_halo(box, halo_px, LEVEL) == outer


@pytest.mark.parametrize(
    ("box", "said"),
    [
        (Box(0, 0, 0, 5), "is not a part"),
        (Box(0, 0, 5, 0), "is not a part"),
        (Box(-1, 0, 5, 5), "is not a part"),
        (Box(0, -1, 5, 5), "is not a part"),
        (Box(196, 0, 5, 5), "inside 200 x 120"),
        (Box(0, 116, 5, 5), "inside 200 x 120"),
    ],
)
def test_detect_tile__boxes_that_are_none(box: Box, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        found_in(box)


@pytest.mark.parametrize("box", [Box(0, 0, 1, 1), Box(199, 119, 1, 1), Box(0, 0, 200, 120)])
def test_detect_tile__boxes_at_the_limits(box: Box) -> None:
    assert found_in(box, (box.x + 0.5, box.y + 0.5)) == [(box.x + 0.5, box.y + 0.5)]


def test_detect_tiles__the_same_box_twice_is_read_once() -> None:
    detector, box = At((10.0, 10.0), (30.0, 10.0)), Box(0, 0, 20, 20)
    table = detect_tiles(
        detector, detector.read, [box, box], size_px=LEVEL, mpp=MPP, downsample=4.0
    )
    assert len(detector.outer) == 1
    assert table.xy_px0.tolist() == [[40.0, 40.0]]


class Narrow(At):
    """Holds no more than so many pixels."""

    def __init__(self, max_px: int, *places: tuple[float, float]) -> None:
        super().__init__(*places, halo_um=0.0)
        self.max_px = max_px

    def detect(self, image_HWC: np.ndarray, mpp: float) -> NucleusTable:
        if image_HWC.shape[0] * image_HWC.shape[1] > self.max_px:
            raise OutOfMemoryError("too little memory")
        return super().detect(image_HWC, mpp)


@pytest.mark.parametrize("w", [128, 136])
def test_too_little_memory__quarters_are_the_box_without_gap_or_overlap(w: int) -> None:
    half = w // 2
    places = [(half - 0.5, 63.5), (half + 0.5, 63.5), (half - 0.5, 64.5), (w - 0.5, 127.5)]
    detector, size = Narrow(72 * 64, *places), Size(400, 400)
    table, quartered = detect_tile_in_parts(
        detector, detector.read, Box(0, 0, w, 128), size_px=size, mpp=MPP
    )
    assert quartered == 1
    assert detector.outer[1:] == [
        with_halo(Box(x, y, half, 64), 0, size) for y in (0, 64) for x in (0, half)
    ]
    assert table.xy_px0.tolist() == [list(place) for place in places]


@pytest.mark.parametrize("box", [Box(0, 0, 127, 300), Box(0, 0, 300, 127)])
def test_too_little_memory__less_than_128_px_is_not_quartered(box: Box) -> None:
    detector = Narrow(100)
    with pytest.raises(OutOfMemoryError):
        detect_tile_in_parts(detector, detector.read, box, size_px=Size(400, 400), mpp=MPP)
    assert len(detector.outer) == 1


# --- outlines that were half made up -------------------------------------------------------------


def test_without_cut__three_quarters_of_the_outline_must_be_known() -> None:
    def square(x: float, y: float) -> np.ndarray:
        return np.array([(x - 4, y - 4), (x + 4, y - 4), (x + 4, y + 4), (x - 4, y + 4)])

    known = np.zeros((40, 60), bool)
    known[:, :30] = True
    corner = Box(100, 200, 60, 40)
    centres = np.array([(110.0, 210.0), (130.0, 210.0), (150.0, 210.0), (155.0, 230.0)])
    rings = [square(x, y) for x, y in centres]
    rings[3] = np.array([(110, 230), (112, 230), (114, 230), (150, 230)])  # three of four known
    table = make_table(centres, np.full(4, 16.0), polygons=rings)
    assert without_cut(table, known, corner).xy_px0.tolist() == [[110, 210], [155, 230]]
    assert without_cut(table, np.ones_like(known), corner) is table
    points = make_table(centres, np.full(4, 16.0))
    assert without_cut(points, known, corner) is points
    # Points of an outline beyond the box count as its nearest pixel.
    first = np.zeros_like(known)
    first[0, 0] = True
    over = make_table(centres[:1], np.full(1, 16.0), polygons=[square(96, 196)])
    assert len(without_cut(over, first, corner)) == 1
    beyond = make_table(centres[:1], np.full(1, 16.0), polygons=[square(160, 240)])
    assert len(without_cut(beyond, known, corner)) == 0
