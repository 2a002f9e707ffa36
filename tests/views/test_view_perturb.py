"""The perturbation: what is kept stays, what is not is permuted exactly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import UsageError
from cytofm_cli.units import Box
from cytofm_cli.views import perturb, pixels, scene
from cytofm_cli.views.draws import fold, sample_keys, uniform
from cytofm_cli.views.ncp import PRESETS, NcpConfig

PAPER = PRESETS["paper"]


def random_tiles(n=2, height=60, width=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def triplets(image_3HW, where_HW):
    colours = image_3HW.permute(1, 2, 0)[where_HW].numpy().astype(np.int64)
    return np.sort(colours @ np.array([65536, 256, 1]))


def run(tiles, xy, config, mpp=1.0, label=None, keys=None, kept=None):
    """Perturb whole tiles; return them and the mask of what is inside."""
    keys = sample_keys(0, np.arange(len(tiles))) if keys is None else keys
    xy = torch.tensor(np.asarray(xy, float))
    kept = torch.ones(xy.shape[:2], dtype=torch.bool) if kept is None else kept
    tiles_scene = scene.build_scene(tiles, xy, config, mpp, label)
    outside = scene.outside_mask(tiles_scene, scene.kept_spans(tiles_scene, config, keys), kept)
    words = perturb.perturb(tiles_scene, outside, keys, config)
    return pixels.unpack(words), (~outside).view(len(tiles), *tiles.shape[2:])


XY = [[(20, 20), (50, 40)], [(0, 0), (69, 30)]]
SMALL = dataclasses.replace(PAPER, radius_um=9.3)


def test_pack__round_trips_any_strides():
    tiles = random_tiles()
    last = tiles.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(pixels.unpack(pixels.pack(tiles)), tiles)
    assert torch.equal(pixels.pack(last), pixels.pack(tiles))
    assert (pixels.pack(tiles) < 0).all()


@pytest.mark.parametrize("feather", [0.0, 4.0])
def test_pixel_shuffle__permutes_outside_and_leaves_inside(feather):
    config = dataclasses.replace(SMALL, feather_um=feather)
    tiles = random_tiles()
    after, inside = run(tiles, XY, config)
    for b in range(2):
        assert torch.equal(after[b][:, inside[b]], tiles[b][:, inside[b]])
        outside = ~inside[b]
        assert np.array_equal(triplets(after[b], outside), triplets(tiles[b], outside))
        moved = (after[b] != tiles[b]).any(0)[outside].float().mean()
        assert moved > 0.98


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**63),
    st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 45)), max_size=5),
)
def test_pixel_shuffle__is_a_permutation_for_any_shape(height, width, seed, points):
    tiles = random_tiles(1, height, width, seed=seed % 1000)
    xy = np.array(points).reshape(1, -1, 2)
    after, inside = run(tiles, xy, SMALL, keys=sample_keys(seed, [0]))
    assert torch.equal(after[0][:, inside[0]], tiles[0][:, inside[0]])
    assert np.array_equal(triplets(after[0], ~inside[0]), triplets(tiles[0], ~inside[0]))


def test_pixel_shuffle__keys_give_unrelated_noise():
    tile = torch.arange(64 * 64).view(1, 1, 64, 64)
    tile = torch.cat([tile & 255, tile >> 8, tile * 0], 1).to(torch.uint8)  # all pixels differ
    xy = np.zeros((1, 0, 2))
    one, _ = run(tile, xy, SMALL, keys=sample_keys(1, [0]))
    two, _ = run(tile, xy, SMALL, keys=sample_keys(1, [1]))
    source = [
        image[0, 0].long().flatten() + 256 * image[0, 1].long().flatten() for image in (one, two)
    ]
    assert (source[0] == source[1]).float().mean() < 0.01
    position = torch.arange(4096)
    for order in (*source, source[0][source[1].argsort()]):
        assert np.array_equal(np.sort(order), position)
        assert abs(np.corrcoef(order, position)[0, 1]) < 0.06  # four sigma
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06


def test_box__deals_distinct_outside_pixels_and_keeps_inside():
    tile = torch.arange(60 * 70).view(1, 1, 60, 70)
    tile = torch.cat([tile & 255, tile >> 8, tile * 0], 1).to(torch.uint8)
    keys, box = sample_keys(5, [0]), Box(10, 5, 33, 41)
    tiles_scene = scene.build_scene(tile, torch.tensor([XY[0]], dtype=torch.float64), SMALL, 1.0)
    kept = torch.ones(1, 2, dtype=torch.bool)
    outside = scene.outside_mask(tiles_scene, scene.kept_spans(tiles_scene, SMALL, keys), kept)
    crop = pixels.unpack(perturb.perturb_box(tiles_scene, outside, keys, SMALL, box)[None])[0]
    window = (slice(5, 46), slice(10, 43))
    inside = (~outside).view(60, 70)
    assert torch.equal(crop[:, inside[window]], tile[0][:, *window][:, inside[window]])
    noise = triplets(crop, ~inside[window])
    assert len(np.unique(noise)) == len(noise)  # each source pixel at most once
    assert np.isin(noise, triplets(tile[0], ~inside)).all()  # and never one that is kept


def test_box__equals_dealing_within_the_box_only():
    tile, keys, box = random_tiles(1), sample_keys(5, [0]), Box(10, 5, 33, 41)
    tiles_scene = scene.build_scene(tile, torch.tensor([XY[0]], dtype=torch.float64), SMALL, 1.0)
    outside = scene.outside_mask(
        tiles_scene, scene.kept_spans(tiles_scene, SMALL, keys), torch.ones(1, 2, dtype=torch.bool)
    )
    within = torch.zeros(1, 60, 70, dtype=torch.bool)
    within[:, 5:46, 10:43] = True
    whole = perturb.perturb(tiles_scene, outside, keys, SMALL, within.flatten(1))
    crop = perturb.perturb_box(tiles_scene, outside, keys, SMALL, box)
    assert torch.equal(whole[0, 5:46, 10:43], crop)


def test_radius__is_physical():
    tiles, xy = random_tiles(1, 120, 120), [[(60, 60)]]
    for mpp in (0.25, 0.5, 1.0):
        _, inside = run(tiles, xy, dataclasses.replace(PAPER, radius_um=12.5), mpp=mpp)
        assert inside.sum().item() == pytest.approx(np.pi * (12.5 / mpp) ** 2, rel=0.02)


def test_feather__keep_probability_falls_across_the_edge():
    config = dataclasses.replace(PAPER, radius_um=30, feather_um=8)
    n = 40
    tiles = torch.zeros(n, 3, 81, 81, dtype=torch.uint8)
    _, inside = run(tiles, [[(40, 40)]] * n, config)
    rows, columns = np.mgrid[:81, :81]
    distance = np.hypot(rows - 40, columns - 40)
    share = inside.float().mean(0).numpy()
    assert (share[distance < 26] == 1).all() and (share[distance > 34] == 0).all()
    for radius in (28, 30, 32):
        ring = np.abs(distance - radius) < 0.5
        assert share[ring].mean() == pytest.approx((34 - radius) / 8, abs=0.06)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 30),
    st.floats(0, 1),
    st.sampled_from(["subset", "all", "single", "piece"]),
)
def test_keep_nuclei__at_least_one_and_only_real_ones(seed, n_nuclei, fraction, keep):
    config = NcpConfig(keep=keep, keep_fraction=fraction)
    valid = uniform(sample_keys(seed, [7]), n_nuclei)[0] < 0.7
    kept = scene.keep_nuclei(sample_keys(seed, [0, 1]), np.stack([valid, valid]), config)
    assert not (kept & ~valid).any()
    if valid.any():
        assert (kept.sum(1) >= 1).all()
        if keep in ("single", "piece"):
            assert (kept.sum(1) == 1).all()
        if keep == "all":
            assert (kept == valid).all()
    else:
        assert not kept.any()


def test_keep_nuclei__fraction_is_respected_and_padding_changes_nothing():
    keys, config = sample_keys(0, np.arange(2000)), NcpConfig(keep_fraction=0.3)
    kept = scene.keep_nuclei(keys, np.ones((2000, 20), bool), config)
    assert kept.mean() == pytest.approx(0.3, abs=0.02)
    padded = np.pad(np.ones((2000, 20), bool), ((0, 0), (0, 9)))
    assert np.array_equal(scene.keep_nuclei(keys, padded, config)[:, :20], kept)


def test_region__disk_is_united_with_the_kept_masks():
    label = torch.zeros(1, 60, 70, dtype=torch.int32)
    label[0, 5:40, 18:23] = 1
    label[0, 50:55, 40:60] = 2
    kept = torch.tensor([[True, False]])
    _, disk = run(random_tiles(1), XY[:1], SMALL, kept=kept)
    _, both = run(random_tiles(1), XY[:1], SMALL, label=label, kept=kept)
    assert torch.equal(both, disk | (label == 1))


def test_region__boundary_is_a_distance_from_the_mask():
    label = torch.zeros(1, 60, 70, dtype=torch.int32)
    label[0, 20:31, 30:41] = 1
    config = dataclasses.replace(PAPER, region="boundary", radius_um=6.2)
    _, inside = run(random_tiles(1), [[(35, 25)]], config, label=label)
    rows, columns = np.mgrid[:60, :70]
    dx = np.maximum(np.maximum(30 - columns, columns - 40), 0)
    dy = np.maximum(np.maximum(20 - rows, rows - 30), 0)
    assert np.array_equal(inside[0].numpy(), np.hypot(dx, dy) <= 6.2)


def test_region__boundary_without_masks_is_refused():
    with pytest.raises(UsageError, match="outlines"):
        run(random_tiles(1), XY[:1], dataclasses.replace(PAPER, region="boundary"))


def test_fill_window__permutes_within_each_window():
    config = dataclasses.replace(SMALL, fill="window", block_px=16)
    tiles = random_tiles(2, 56, 70)  # neither side a multiple of the window
    after, inside = run(tiles, XY, config)
    assert torch.equal(after * inside[:, None], tiles * inside[:, None])
    for y in range(0, 56, 16):
        for x in range(0, 70, 16):
            part = (slice(y, y + 16), slice(x, x + 16))
            outside = ~inside[1][part]
            expected = triplets(tiles[1][:, *part], outside)
            assert np.array_equal(triplets(after[1][:, *part], outside), expected)
    assert (after != tiles).any(1)[~inside].float().mean() > 0.9


def test_fill_blocks__moves_whole_blocks_that_lie_outside():
    config = dataclasses.replace(SMALL, fill="blocks", block_px=8)
    tiles = random_tiles(1, 64, 72)
    after, inside = run(tiles, XY[:1], config)
    blocks = {}
    for name, image in (("before", tiles[0]), ("after", after[0])):
        cut = image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(72, -1)
        blocks[name] = cut
    free = ~inside[0].unfold(0, 8, 8).unfold(1, 8, 8).reshape(72, -1).any(1)
    assert torch.equal(blocks["after"][~free], blocks["before"][~free])
    before, later = (sorted(map(tuple, blocks[k][free].tolist())) for k in ("before", "after"))
    assert before == later
    assert (blocks["after"][free] != blocks["before"][free]).any(1).float().mean() > 0.8


def test_fill_mean__is_the_mean_of_what_is_outside():
    tiles = random_tiles()
    after, inside = run(tiles, XY, dataclasses.replace(SMALL, fill="mean"))
    for b in range(2):
        expected = tiles[b][:, ~inside[b]].double().mean(1).round()
        assert (after[b][:, ~inside[b]].double() == expected[:, None]).all()
        assert torch.equal(after[b][:, inside[b]], tiles[b][:, inside[b]])


def test_fill_blur__removes_detail_and_keeps_inside():
    tiles = random_tiles()
    after, inside = run(tiles, XY, dataclasses.replace(SMALL, fill="blur"))
    for b in range(2):
        assert torch.equal(after[b][:, inside[b]], tiles[b][:, inside[b]])
        assert after[b][:, ~inside[b]].float().std() < 0.3 * tiles[b].float().std()


def test_presets__are_the_readings_that_the_table_states():
    paper, safe = PRESETS["paper"], PRESETS["safe"]
    for preset in (paper, safe):
        assert (preset.keep, preset.region, preset.fill) == ("subset", "disk", "pixels")
        assert preset.radius_um == 12.5 and preset.without_nuclei == "plain"
    assert (paper.redraw, paper.feather_um, paper.centre_jitter) == ("image", 0, 0)
    assert paper.clean_probability == 0
    assert safe.redraw == "view" and min(safe.feather_um, safe.centre_jitter) > 0
    assert 0 < safe.clean_probability < 1


def test_draws__are_uniform_and_independent_of_each_other():
    u = uniform(fold(sample_keys(0, np.arange(3000))[:, None], np.arange(4)), 8)
    assert u.min() >= 0 and u.max() < 1
    assert np.allclose(u.mean((0,)), 0.5, atol=0.03)
    flat = u.reshape(3000, -1)
    correlation = np.corrcoef(flat.T) - np.eye(32)
    assert np.abs(correlation).max() < 0.09
    histogram = np.histogram(u, 20, (0, 1))[0]
    assert ((histogram - u.size / 20) ** 2 / (u.size / 20)).sum() < 45  # chi², 19 d.o.f., p 0.001
