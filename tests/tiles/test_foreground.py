"""Foreground on pictures whose truth is known, and on real fields where they are there."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.tiles import foreground
from cytofm_cli.tiles.foreground import (
    OVERVIEW_MPP,
    find_foreground,
    overview_mpp,
    tile_fraction,
)
from cytofm_cli.units import Size

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MPP = 4.0


def glass(side=400, rgb=(238, 236, 240), gradient=0.0, noise=0.0, seed=0):
    slope = np.linspace(0, gradient, side)
    picture = np.multiply.outer(1 - slope, np.ones(side))[..., None] * np.array(rgb)
    picture += np.random.default_rng(seed).normal(0, noise, picture.shape)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def disc(side, cx, cy, radius):
    y, x = np.mgrid[:side, :side]
    return np.hypot(x - cx, y - cy) <= radius


def put(picture, where_HW, transmission):
    picture[where_HW] = (picture[where_HW] * np.array(transmission)).astype(np.uint8)


STAINS = {
    "pap-cyan": (0.75, 0.92, 0.95),
    "pap-orange": (0.97, 0.85, 0.7),
    "giemsa": (0.85, 0.75, 0.9),
    "haematoxylin-eosin": (0.95, 0.78, 0.88),
    "grey": (0.85, 0.85, 0.85),
}


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("rgb", [(250, 250, 250), (225, 215, 190), (190, 200, 215)])
def test_find_foreground__keeps_scattered_single_cells_and_nothing_else(stain, rgb):
    picture = glass(rgb=rgb, gradient=0.2, noise=1.0)
    cells = np.zeros((400, 400), bool)
    for k in range(9):
        cells |= disc(400, 40 + 40 * k, 60 + 35 * k, 6)  # 50 µm: a squamous cell
    put(picture, cells, STAINS[stain])
    found = find_foreground(picture, MPP)
    assert found.illumination == "bright-field"
    assert found.unsure is None
    assert found.mask_HW[cells].mean() > 0.95
    assert found.mask_HW[~cells].mean() < 0.001
    assert np.abs(np.array(found.background_rgb) - rgb).max() < 0.25 * 250


def test_find_foreground__keeps_single_nuclei_of_eight_micrometres():
    picture = glass(noise=1.0)
    truth = np.zeros((400, 400), bool)
    for k in range(12):
        truth[20 + 30 * k : 22 + 30 * k, 200:202] = True
    put(picture, truth, (0.5, 0.5, 0.7))
    found = find_foreground(picture, MPP)
    assert found.mask_HW[truth].all()
    assert not found.mask_HW[~truth].any()


def test_find_foreground__cells_at_the_border_and_in_the_corner_are_kept():
    picture = glass()
    cells = disc(400, 0, 200, 6) | disc(400, 399, 399, 6) | disc(400, 150, 0, 6)
    put(picture, cells, STAINS["pap-cyan"])
    assert (find_foreground(picture, MPP).mask_HW == cells).all()


@pytest.mark.parametrize("noise", [0, 1, 4])
@pytest.mark.parametrize("gradient", [0, 0.3])
def test_find_foreground__blank_glass_is_empty_and_certain(noise, gradient):
    found = find_foreground(glass(noise=noise, gradient=gradient), MPP)
    assert not found.mask_HW.any()
    assert found.unsure is None


def test_find_foreground__tinted_field_is_no_foreground():
    picture = glass()
    picture[100:200, 100:250] = (200, 225, 235)
    assert not find_foreground(picture, MPP).mask_HW.any()


def test_find_foreground__cells_in_a_dark_corner_are_not_taken_for_ink():
    picture = glass(gradient=0.6, noise=0.5)
    cells = np.zeros((400, 400), bool)
    for k in range(9):
        cells |= disc(400, 30 + 40 * k, 340, 6)
    put(picture, cells, STAINS["pap-cyan"])
    assert find_foreground(picture, MPP).mask_HW[cells].mean() > 0.95


@pytest.mark.parametrize("width", [3, 6, 20, 60])
def test_find_foreground__drops_pen_strokes_of_any_width(width):
    picture = glass(noise=1.0)
    y, x = np.mgrid[:400, :400]
    stroke = (np.abs((x - 60) * 0.6 - (y - 90) * 0.8) <= width / 2) & (x > 60) & (x < 330)
    put(picture, stroke, (0.15, 0.25, 0.6))
    cell = disc(400, 330, 60, 6)
    put(picture, cell, STAINS["pap-cyan"])
    mask = find_foreground(picture, MPP).mask_HW
    assert mask[cell].all()
    assert mask[stroke].mean() < 0.05


@pytest.mark.parametrize("lamp", [1.0, 0.5, 0.4])
def test_find_foreground__a_dim_lamp_makes_no_ink_of_cells_and_no_cells_of_ink(lamp):
    picture = glass(rgb=tuple(lamp * level for level in (238, 236, 240)), noise=0.5)
    ink, cell = disc(400, 120, 120, 40), disc(400, 300, 300, 6)
    put(picture, ink, (0.4, 0.4, 0.4))
    put(picture, cell, STAINS["giemsa"])
    mask = find_foreground(picture, MPP).mask_HW
    assert mask[cell].all()
    assert mask[ink].mean() < 0.05


@pytest.mark.parametrize("mpp", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("gap_um", "filled"), [(40, True), (72, False)])
def test_tissue_gaps__up_to_fifty_micrometres_are_filled_where_stained(mpp, gap_um, filled):
    side, gap = 200, int(gap_um / mpp)
    mask = np.zeros((side, side), bool)
    mask[:, 100 - gap // 2 - 30 : 100 - gap // 2] = True
    mask[:, 100 - gap // 2 + gap : 100 - gap // 2 + gap + 30] = True
    picture = glass(side)
    put(picture, np.broadcast_to(np.arange(side)[:, None] < 100, (side, side)), (0.6, 0.6, 0.6))
    scene = foreground._scene(glass(side))
    gaps = foreground._tissue_gaps(picture, mask, scene, mpp)
    assert not gaps[mask].any() and not gaps[100:].any()  # below, the gap is clear glass
    assert gaps[20:80, 100 - gap // 2 : 100 - gap // 2 + gap].all() == filled
    assert gaps.any() == filled


def test_find_foreground__drops_bubble_rims_and_the_coverslip_edge():
    picture = glass(noise=1.0)
    y, x = np.mgrid[:400, :400]
    rim = np.abs(np.hypot(x - 200, y - 200) - 90) < 1.5
    edge = np.abs(x - 20 - 0.03 * y) < 1.5
    put(picture, rim | edge, (0.6, 0.6, 0.6))
    assert find_foreground(picture, MPP).mask_HW.mean() < 0.001


def test_find_foreground__dark_field_is_the_same_the_other_way_round():
    rng = np.random.default_rng(1)
    picture = rng.normal(6, 1.0, (300, 300, 3))
    cells = disc(300, 60, 60, 3) | disc(300, 200, 150, 3) | disc(300, 0, 250, 3)
    picture[cells, 2] = 160
    found = find_foreground(np.clip(picture, 0, 255).astype(np.uint8), MPP)
    assert found.illumination == "dark-field"
    assert found.unsure is None
    assert found.mask_HW[cells].all()
    assert found.mask_HW[~cells].mean() < 0.001


def test_find_foreground__a_field_full_of_cells_keeps_them():
    rng = np.random.default_rng(3)
    picture, cells = glass(side=320), np.zeros((320, 320), bool)
    nuclei = cells.copy()
    for x, y in rng.uniform(0, 320, (420, 2)):
        cells |= disc(320, x, y, 12)
        nuclei |= disc(320, x, y, 2.5)
    put(picture, cells, (0.8, 0.7, 0.85))
    put(picture, nuclei, (0.4, 0.4, 0.6))
    assert cells.mean() > 0.8
    found = find_foreground(picture, 2.0)
    assert found.mask_HW[nuclei].mean() > 0.99


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (1, 300), (300, 1), (3, 7), (64, 9)])
@pytest.mark.parametrize("level", [0, 90, 128, 255])
def test_find_foreground__constant_pictures_of_any_size_are_empty(shape, level):
    found = find_foreground(np.full((*shape, 3), level, np.uint8), 0.25)
    assert found.mask_HW.shape == shape
    assert not found.mask_HW.any()


def test_find_foreground__one_large_cell_with_little_background_is_found():
    picture = glass(side=48)
    cell = disc(48, 24, 24, 18)
    put(picture, cell, STAINS["pap-orange"])
    assert (find_foreground(picture, 1.0).mask_HW == cell).mean() > 0.97


def test_find_foreground__says_that_it_is_unsure_of_what_is_no_slide():
    rng = np.random.default_rng(0)
    static = rng.integers(0, 256, (300, 300, 3)).astype(np.uint8)
    assert "noise" in (find_foreground(static, MPP).unsure or "")
    grey = glass(rgb=(60, 60, 60), noise=1)
    assert find_foreground(grey, MPP).unsure is not None
    faint = glass()
    for k in range(30):
        put(faint, disc(400, 20 + 12 * k, 13 * k, 5), (0.96, 0.96, 0.96))
    found = find_foreground(faint, MPP)
    assert not found.mask_HW.any()
    assert "faint" in (found.unsure or "")


@pytest.mark.parametrize("strip_px", [1, 37, 128, 10_000])
def test_find_foreground__does_not_depend_on_the_strips(strip_px):
    rng = np.random.default_rng(5)
    picture = glass(side=260, noise=3.0)
    for x, y, r in rng.uniform((0, 0, 2), (260, 260, 12), (40, 3)):
        put(picture, disc(260, x, y, r), (0.7, 0.8, 0.9))
    whole = find_foreground(picture, MPP)
    parts = find_foreground(picture, MPP, strip_px=strip_px)
    assert whole.mask_HW.any()
    assert (whole.mask_HW == parts.mask_HW).all()


def test_find_foreground__a_finer_picture_gives_the_same_cells():
    coarse, fine = glass(side=300), glass(side=1200)
    put(coarse, disc(300, 150, 100, 8), STAINS["giemsa"])
    put(fine, disc(1200, 601.5, 401.5, 33), STAINS["giemsa"])
    up = find_foreground(coarse, 4.0).mask_HW.repeat(4, 0).repeat(4, 1)
    assert (find_foreground(fine, 1.0).mask_HW == up).mean() > 0.999


def test_overview_mpp__is_finer_for_small_slides_and_never_finer_than_the_slide():
    assert overview_mpp(Size(100_000, 80_000), 0.25) == OVERVIEW_MPP
    assert overview_mpp(Size(1280, 1024), 0.25) == pytest.approx(1.0)
    assert overview_mpp(Size(100, 100), 0.25) == 0.25
    assert overview_mpp(Size(9000, 9000), 5.0) == 5.0


def test_tile_fraction__counts_partial_pixels_by_their_area():
    mask = np.zeros((4, 4), bool)
    mask[1, 1] = mask[1, 2] = mask[3, 3] = True
    corners = np.array([[0, 0], [15, 10], [30, 30], [25, 25], [90, 90]], np.int32)
    share = tile_fraction(mask, 10, corners, 20)
    # 1 px of 4; 0.5 + 1 px of 4 (its columns 1.5-3.5); the corner pixel alone; a quarter of the
    # 15 x 15 px² that lie on the slide is 100 of 225; beyond the slide there is nothing.
    assert share.dtype == np.float32
    assert share == pytest.approx([1 / 4, 1.5 / 4, 1.0, 100 / 225, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    downsample=st.floats(1, 40),
    tile=st.floats(1, 300),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
)
def test_tile_fraction__agrees_with_summing_pixel_by_pixel(seed, downsample, tile, height, width):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < 0.4
    corners = (rng.random((6, 2)) * (width * downsample, height * downsample)).astype(np.int32)
    share = tile_fraction(mask, downsample, corners, tile)
    for (x, y), value in zip(corners.tolist(), share.tolist(), strict=True):

        def overlap(start, n):
            edges = np.arange(n + 1) * downsample
            low, high = np.maximum(edges[:-1], start), np.minimum(edges[1:], start + tile)
            return np.maximum(high - low, 0)

        area_HW = np.multiply.outer(overlap(y, height), overlap(x, width))
        wanted = (area_HW * mask).sum() / area_HW.sum() if area_HW.sum() else 0
        assert value == pytest.approx(wanted, abs=1e-5)


def _cric():
    with (SHARED / "cric" / "points.csv").open(newline="") as handle:
        points = [(r["image"], float(r["x"]), float(r["y"])) for r in csv.DictReader(handle)]
    return sorted({image for image, _, _ in points}), points


@pytest.mark.needs_shared("data/cric/points.csv")
@pytest.mark.slow
def test_find_foreground__keeps_marked_nuclei_of_real_pap_fields():
    import pyvips

    images, points = _cric()
    kept = total = 0
    for image in images[::5]:
        path = SHARED / "cric" / "images" / image
        field = pyvips.Image.thumbnail(str(path), 320).numpy()
        mask = find_foreground(field, 1.0).mask_HW
        for x, y in ((x, y) for name, x, y in points if name == image):
            kept += bool(mask[min(int(y / 4), len(mask) - 1), int(x / 4)])
            total += 1
    assert total > 300
    assert kept / total >= 0.99


@pytest.mark.needs_shared("data/chula_rbc12/Dataset")
def test_find_foreground__keeps_red_cells_of_thin_smears():
    import pyvips

    folder = SHARED / "chula_rbc12" / "Dataset"
    for path in sorted(folder.glob("*.jpg"))[::12]:
        field = pyvips.Image.new_from_file(str(path)).numpy()
        found = find_foreground(field, 0.2)
        assert found.illumination == "bright-field"
        assert 0.15 < found.mask_HW.mean() < 0.7, path.name
        light = field.mean(2)
        assert light[found.mask_HW].mean() < 0.95 * light[~found.mask_HW].mean()
