"""Crop boxes and resizing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytofm_cli.units import Box
from cytofm_cli.views import crops, pixels
from cytofm_cli.views.draws import sample_keys

ASPECT = (3 / 4, 4 / 3)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 600),
    st.integers(1, 600),
    st.integers(0, 2**40),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_boxes__lie_inside_the_tile(height, width, seed, low, jitter):
    keys = sample_keys(seed, np.arange(40))
    size = crops.draw_sizes(keys, (low, 1.0), ASPECT, height, width)
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (40, 2)) * [width - 1, height - 1]
    centre[::4] = np.nan
    boxes = crops.place_boxes(keys, centre, size, height, width, jitter)
    x, y, w, h = boxes.T
    assert (w >= 1).all() and (h >= 1).all() and (x >= 0).all() and (y >= 0).all()
    assert (x + w <= width).all() and (y + h <= height).all()


def test_sizes__area_and_aspect_fill_their_ranges():
    keys = sample_keys(1, np.arange(5000))
    w, h = crops.draw_sizes(keys, (0.05, 0.4), ASPECT, 512, 512).T
    area, aspect = w * h / 512**2, w / h
    assert 0.0495 <= area.min() < 0.055 and 0.395 < area.max() <= 0.405
    assert area.mean() == pytest.approx(0.225, abs=0.005)
    assert 0.74 <= aspect.min() < 0.76 and 1.31 < aspect.max() <= 1.345
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.01)
    assert np.log(aspect).std() == pytest.approx(np.log(16 / 9) / 12**0.5, rel=0.03)


def test_sizes__whole_tile_is_reached_and_never_passed():
    w, h = crops.draw_sizes(sample_keys(1, np.arange(3000)), (0.4, 1.0), ASPECT, 400, 512).T
    assert w.max() <= 512 and h.max() <= 400
    assert (w * h / (400 * 512)).max() > 0.97


def test_boxes__are_centred_where_there_is_room():
    keys = sample_keys(0, np.arange(500))
    size = np.tile([101, 51], (500, 1))
    centre = np.random.default_rng(0).integers(60, 400, (500, 2)).astype(float)
    boxes = crops.place_boxes(keys, centre, size, 512, 512)
    middle = boxes[:, :2] + (size - 1) / 2
    assert np.array_equal(middle, centre)


def test_boxes__at_a_corner_are_shifted_not_shrunk():
    boxes = crops.place_boxes(
        sample_keys(0, [0, 1]),
        np.array([[0.0, 0.0], [99.0, 79.0]]),
        np.tile([40, 30], (2, 1)),
        80,
        100,
    )
    assert boxes.tolist() == [[0, 0, 40, 30], [60, 50, 40, 30]]


def test_boxes__jitter_is_bounded_and_used():
    keys, size = sample_keys(0, np.arange(2000)), np.tile([100, 60], (2000, 1))
    boxes = crops.place_boxes(keys, np.full((2000, 2), 250.0), size, 512, 512, 0.1)
    off = boxes[:, :2] + (size - 1) / 2 - 250
    assert 9 < np.abs(off[:, 0]).max() <= 10.5 and 5 < np.abs(off[:, 1]).max() <= 6.5
    assert np.abs(off.mean(0)).max() < 0.6


def test_boxes__without_a_centre_are_uniform():
    keys, size = sample_keys(0, np.arange(4000)), np.tile([100, 60], (4000, 1))
    x, y = crops.place_boxes(keys, np.full((4000, 2), np.nan), size, 200, 300)[:, :2].T
    assert x.min() == 0 and x.max() == 200 and y.min() == 0 and y.max() == 140
    assert x.mean() == pytest.approx(100, abs=4) and y.mean() == pytest.approx(70, abs=3)


def test_centres__are_kept_nuclei_all_equally_likely():
    keys = sample_keys(3, np.arange(3000))
    xy = np.broadcast_to(np.arange(12.0).reshape(6, 2), (3000, 6, 2))
    kept = np.broadcast_to(np.array([True, False, True, False, False, True]), (3000, 6))
    centre = crops.draw_centres(keys, xy, kept)
    chosen, counts = np.unique(centre[:, 0] / 2, return_counts=True)
    assert chosen.tolist() == [0, 2, 5]
    assert np.allclose(counts, 1000, atol=110)  # four sigma


def test_centres__none_kept_is_nan():
    keys = sample_keys(0, [0, 1])
    assert np.isnan(crops.draw_centres(keys, np.zeros((2, 3, 2)), np.zeros((2, 3), bool))).all()
    assert np.isnan(crops.draw_centres(keys, np.zeros((2, 0, 2)), np.zeros((2, 0), bool))).all()


def smooth_tiles(n):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 14, 16, generator=generator) * 160 + 48
    tiles = torch.nn.functional.interpolate(coarse, (110, 130), mode="bicubic")
    return tiles.round().clamp(0, 255).to(torch.uint8)


BOXES = [Box(0, 0, 130, 110), Box(17, 5, 90, 101), Box(40, 30, 20, 16), Box(100, 80, 30, 30)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [32, 49, 96])
def test_resize_crop__equals_pillow(box, size):
    tile = smooth_tiles(1)
    rgb = pixels.rgb_on_host(pixels.pack(tile)[0])
    small = crops.resize_crop(rgb[box.y : box.y + box.h, box.x : box.x + box.w], size)
    image = Image.fromarray(tile[0].permute(1, 2, 0).numpy())
    image = image.crop((box.x, box.y, box.x + box.w, box.y + box.h))
    expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    got = small.astype(int)
    assert np.abs(got - expected).max() <= 2 and np.abs(got - expected).mean() < 0.15


@pytest.mark.parametrize("size", [32, 49, 96])
@pytest.mark.parametrize("box", BOXES)
def test_resize_crop__is_within_a_grey_level_of_resampling_without_rounding(box, size):
    tile = smooth_tiles(1)
    crop = tile[0, :, box.y : box.y + box.h, box.x : box.x + box.w]
    small = crops.resize_crop(np.ascontiguousarray(crop.movedim(0, -1)), size)
    for colour in range(3):
        plane = Image.fromarray(crop[colour].float().numpy())  # in floating point
        exact = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255)
        difference = np.abs(small[..., colour] - exact)
        assert difference.max() <= 1.5 and difference.mean() < 0.4


@pytest.mark.parametrize("size", [32, 49, 96])
def test_resize_boxes__equals_one_crop_after_the_other(size):
    tiles = smooth_tiles(4)
    words = pixels.pack(tiles)
    together = pixels.unpack(crops.resize_boxes(words, BOXES, size)).int()
    for g, box in enumerate(BOXES):
        cut = pixels.rgb_on_host(words[g, box.y : box.y + box.h, box.x : box.x + box.w])
        alone = crops.resize_crop(cut, size)
        difference = (torch.from_numpy(alone).movedim(-1, 0).int() - together[g]).abs()
        # Weights of 16 bits against float32: a level in between may become two in the end.
        assert difference.max() <= 2 and difference.float().mean() < 0.05
        assert (difference == 2).float().mean() < 1e-3


def test_resize_weights__rows_sum_to_one_and_stay_in_range():
    weight = crops.resize_weights([(3, 40), (0, 64), (60, 4)], 64, 16)
    assert torch.allclose(weight.sum(2), torch.ones(3, 16), atol=1e-6)
    assert (
        not weight[0, :, :3].any() and not weight[0, :, 43:].any() and not weight[2, :, :60].any()
    )


def test_resize_weights__same_size_is_identity():
    assert torch.allclose(crops.resize_weights([(0, 20)], 20, 20)[0], torch.eye(20), atol=1e-7)
