"""The focus score: definitions, invariances, and the order of real blurred tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.tiles import focus
from cytofm_cli.tiles.foreground import find_foreground, tile_fraction
from cytofm_cli.tiles.grid import lay_grid
from cytofm_cli.units import Size

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def everywhere(side):
    return np.ones((side, side), bool)


def score_of(picture, tile=64):
    xy = lay_grid(Size(picture.shape[1], picture.shape[0]), tile, tile)
    mask = np.ones(picture.shape[:2], bool)
    return focus.tile_focus(picture, 1.0, 1.0, mask, xy, tile)


def test_tile_focus__is_one_for_white_noise_and_zero_for_a_ramp():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 1)).astype(np.uint8).repeat(3, 2)
    assert score_of(noise)[0] == pytest.approx(1.0, abs=0.05)
    ramp = np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    assert score_of(ramp)[0] == 0.0


def test_tile_focus__of_an_ideal_step_is_worked_by_hand():
    # In the cell with the edge between columns 3 and 4: 8 of 7 x 8 near differences and 16 of
    # 6 x 8 far ones are h: S(1)/S(2) = (8/7) / (16/6), scaled (4 r - 1) / 3.
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 90
    assert score_of(step, 8)[0] == pytest.approx((4 * (8 / 7) / (16 / 6) - 1) / 3, abs=1e-6)


def test_tile_focus__does_not_know_contrast_light_or_colour():
    rng = np.random.default_rng(1)
    detail = rng.integers(0, 20, (64, 64)).astype(np.uint8)
    grey = detail[..., None].repeat(3, 2)
    reference = score_of(grey)
    assert score_of(grey * 5) == pytest.approx(reference, abs=1e-6)
    assert score_of(grey + 100) == pytest.approx(reference, abs=1e-6)
    assert score_of(255 - grey) == pytest.approx(reference, abs=1e-6)
    blue = np.stack([0 * detail, 0 * detail, 3 * detail], 2)
    assert score_of(blue) == pytest.approx(reference, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 40, 3), (40, 7, 3), (64, 64, 3)])
def test_focus__blank_and_tiny_pictures_score_zero(shape):
    blank = np.full(shape, 240, np.uint8)
    assert score_of(blank).tolist() == [0.0] * len(score_of(blank))


def test_tile_focus__only_foreground_counts():
    rng = np.random.default_rng(2)
    picture = np.full((64, 128, 3), 200, np.uint8)
    picture[:, :64] = np.arange(64)[None, :, None]  # smooth, foreground
    picture[:, 64:] = rng.integers(0, 255, (64, 64, 3))  # sharp, not foreground
    mask = np.zeros((16, 32), bool)
    mask[:, :16] = True
    xy = np.array([[0, 0], [64, 0]], np.int32)
    assert focus.tile_focus(picture, 1.0, 1.0, mask, xy, 64).tolist() == [0.0, 0.0]
    assert focus.tile_focus(picture, 1.0, 1.0, ~mask, xy, 64)[1] > 0.9


def test_measure__bands_in_any_order_equal_the_whole_picture():
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 255, (1300, 150, 3)).astype(np.uint8)
    mask = rng.random((325, 37)) < 0.5
    size = (150, 1300)
    tops = [1024, 0, 512]
    bands = [(top, picture[top : top + focus.BAND_PX]) for top in tops]
    parts = focus.measure(bands, size, (4.0, 4.0), 1.0, mask)
    whole = focus.measure([(0, picture)], size, (4.0, 4.0), 1.0, mask)
    assert (parts.near_HW == whole.near_HW).all()
    assert (parts.far_HW == whole.far_HW).all()
    assert parts.cell_px0 == (32.0, 32.0)
    assert whole.far_HW.any()


def test_needs_band__finds_the_bands_with_foreground():
    mask = np.zeros((100, 10), bool)
    mask[60] = True
    tops = range(0, 4000, focus.BAND_PX)
    needed = [top for top in tops if focus.needs_band(top, (400, 4000), mask)]
    assert needed == [2048]  # row 60 of 100 is row 2400 of 4000


def test_tile_focus__a_finer_picture_is_reduced_first():
    rng = np.random.default_rng(4)
    coarse = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    fine = coarse.repeat(4, 0).repeat(4, 1)
    xy = np.array([[0, 0]], np.int32)
    slow = focus.tile_focus(fine, 1.0, 0.25, everywhere(64), xy, 256)
    assert slow[0] == pytest.approx(
        focus.tile_focus(coarse, 4.0, 1.0, everywhere(64), xy, 256)[0], abs=1e-6
    )


@pytest.mark.needs_shared("data/cric/images")
@pytest.mark.slow
def test_tile_focus__ranks_blurred_real_tiles_in_order():
    import pyvips

    folder = SHARED / "cric" / "images"
    ranked = []
    for path in sorted(folder.glob("*.jpg"))[::6]:
        field = pyvips.Image.new_from_file(str(path)).copy_memory()
        xy = lay_grid(Size(field.width, field.height), 256, 256)
        found = None
        scores = []
        for sigma in (0, 1, 2, 4):
            blurred = field.gaussblur(sigma, precision="float").cast("uchar") if sigma else field
            picture = blurred.shrink(4, 4).cast("uchar")
            coded = pyvips.Image.new_from_buffer(picture.jpegsave_buffer(Q=85), "").numpy()
            found = find_foreground(coded, 1.0) if found is None else found
            scores.append(focus.tile_focus(coded, 4.0, 1.0, found.mask_HW, xy, 256))
        held = tile_fraction(found.mask_HW, 4.0, xy, 256) >= 0.05
        ranked.append((np.diff(np.stack(scores), axis=0) < 0).all(0)[held])
    order = np.concatenate(ranked)
    assert len(order) > 150
    assert order.mean() >= 0.99
