"""Views reach over the edges of their tile, and dropped nuclei are gone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cytofm_cli.errors import UsageError
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.crops import margin_of
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views, pad_nuclei
from cytofm_cli.views.ncp import PRESETS
from cytofm_cli.views.plan import draw_plan
from cytofm_cli.views.recipes import ncp_of, recipe_of
from cytofm_cli.views.scene import build_scene, kept_spans, outside_mask

SIDE, MARGIN = 128, 32
SMALL = ViewsConfig(global_px=64, local_px=32, colours="none")


def batch(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    whole = SIDE + 2 * MARGIN
    tiles = torch.from_numpy(rng.integers(0, 256, (n, 3, whole, whole), np.uint8))
    points = [rng.uniform(0, whole - 1, (rng.integers(1, 12), 2)) for _ in range(n)]
    points = [np.concatenate([[[MARGIN, MARGIN]], some]) for some in points]
    return tiles, *pad_nuclei(points)


def run(tiles, xy, valid, config=SMALL, seed=0, **more):
    keys = sample_keys(seed, np.arange(len(tiles)))
    return make_views(
        tiles, xy, valid, recipe=recipe_of(config), ncp=ncp_of(config), mpp=0.25, keys_B=keys,
        margin_px=MARGIN, **more,
    )  # fmt: skip


def test_margin__is_a_quarter_of_the_tile():
    assert (margin_of(512), margin_of(256), margin_of(250)) == (128, 64, 62)


@pytest.mark.parametrize("xy", [(0, 0), (511, 0), (511, 511), (200, 3)])
def test_views__of_a_nucleus_at_the_edge_are_centred(xy):
    recipe, ncp = recipe_of(ViewsConfig()), PRESETS["paper"]
    keys = sample_keys(1, np.arange(400))
    at = np.full((400, 1, 2), 128.0) + xy
    plan = draw_plan(at, np.ones((400, 1), bool), recipe, ncp, keys, 512, 512, 128)
    size = plan.boxes_BV4[..., 2:]
    middle = plan.boxes_BV4[..., :2] + (size - 1) / 2
    off = np.abs(middle - at) / size
    small = (size <= 256).all(-1)
    assert off[small].max() <= 0.5 / size.min() + 1e-9  # to the pixel
    assert off.max() <= 0.25 + 0.5 / size.min()
    assert (plan.boxes_BV4[..., :2] >= 0).all()
    assert (plan.boxes_BV4[..., :2] + size <= 768).all()


def test_views__without_a_centre_stay_in_the_tile():
    recipe, ncp = recipe_of(ViewsConfig()), PRESETS["none"]
    keys = sample_keys(1, np.arange(300))
    at = np.full((300, 1, 2), 300.0)
    plan = draw_plan(at, np.ones((300, 1), bool), recipe, ncp, keys, 512, 512, 128)
    low, high = plan.boxes_BV4[..., :2], plan.boxes_BV4[..., :2] + plan.boxes_BV4[..., 2:]
    assert low.min() == 128 and high.max() == 640


def test_nuclei__of_the_margin_survive_or_not_but_are_no_centres():
    recipe, ncp = recipe_of(ViewsConfig()), PRESETS["safe"]
    keys = sample_keys(1, np.arange(500))
    at = np.broadcast_to([[300.0, 300.0], [60.0, 300.0]], (500, 2, 2))
    plan = draw_plan(at, np.ones((500, 2), bool), recipe, ncp, keys, 512, 512, 128)
    assert plan.kept_BVM[..., 0].all()  # the tile's only one
    assert plan.kept_BVM[..., 1].mean() == pytest.approx(0.5, abs=0.03)
    assert (plan.centre_BV2 == 300).all()
    only = draw_plan(at[:, 1:], np.ones((500, 1), bool), recipe, ncp, keys, 512, 512, 128)
    assert not only.has_nuclei_B.any() and only.clean_BV.all()
    assert np.isnan(only.centre_BV2).all()


def test_nuclei__of_the_margin_change_nothing_for_those_of_the_tile():
    recipe, ncp = recipe_of(ViewsConfig()), PRESETS["safe"]
    keys = sample_keys(1, np.arange(50))
    at = np.random.default_rng(0).uniform(130, 630, (50, 9, 2))
    outer = np.concatenate([at, np.full((50, 3, 2), 40.0)], 1)
    one = draw_plan(at, np.ones((50, 9), bool), recipe, ncp, keys, 512, 512, 128)
    two = draw_plan(outer, np.ones((50, 12), bool), recipe, ncp, keys, 512, 512, 128)
    np.testing.assert_array_equal(one.boxes_BV4, two.boxes_BV4)
    np.testing.assert_array_equal(one.kept_BVM, two.kept_BVM[..., :9])


@pytest.mark.parametrize("preset", ["safe", "paper"])
@pytest.mark.parametrize("sliced", [True, False])
def test_sample__does_not_depend_on_its_batch(preset, sliced):
    tiles, xy, valid = batch(5)
    config = dataclasses.replace(SMALL, preset=preset)
    whole = run(tiles, xy, valid, config, sliced=sliced)
    keys = sample_keys(0, np.arange(5))
    for row in (0, 3):
        one = make_views(
            tiles[row : row + 1], xy[row : row + 1], valid[row : row + 1],
            recipe=recipe_of(config), ncp=ncp_of(config), mpp=0.25, keys_B=keys[row : row + 1],
            margin_px=MARGIN, sliced=sliced,
        )  # fmt: skip
        assert all(torch.equal(a[row], b[0]) for a, b in zip(whole.views, one.views, strict=True))


@pytest.mark.parametrize("preset", ["safe", "paper", "none"])
def test_sliced_and_batched__agree_but_for_rounding(preset):
    tiles, xy, valid = batch(3)
    config = dataclasses.replace(SMALL, preset=preset)
    label = torch.randint(0, 13, (3, SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), dtype=torch.int32)
    one = run(tiles, xy, valid, config, label_BHW=label, sliced=True)
    two = run(tiles, xy, valid, config, label_BHW=label, sliced=False)
    for a, b in zip(one.views, two.views, strict=True):
        assert (a - b).abs().max() < 3 / 255 / 0.22


def test_clean_view__shows_its_box_across_the_edge_of_the_tile():
    _, xy, valid = batch(2)
    y, x = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    tiles = torch.stack([x, y, (x + y) // 2]).to(torch.uint8).repeat(2, 1, 1, 1)
    config = dataclasses.replace(SMALL, fill="none", local_px=None, n_local=0)
    made = run(tiles, xy, valid, config)
    recipe = recipe_of(config)
    assert (made.plan.boxes_BV4[..., :2] < MARGIN).any()
    for b in range(2):
        x, y, w, h = made.plan.boxes_BV4[b, 0]
        crop = tiles[b : b + 1, :, y : y + h, x : x + w].float()
        small = torch.nn.functional.interpolate(crop, (64, 64), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(v)[:, None, None] for v in (recipe.mean, recipe.std))
        shown = (made.views[0][b] * std + mean) * 255
        turns = [torch.rot90(shown, k, (1, 2)) for k in range(4)]
        turns += [turn.flip(2) for turn in turns]
        best = min(float((turn - small[0].clamp(0, 255)).abs().max()) for turn in turns)
        assert best < 2.5


def test_dropped_nucleus__is_wholly_gone_also_in_the_disk_of_a_kept_one():
    """Two nuclei 20 px apart, a radius of 50 px: the second lies in the first one's disk."""
    yy, xx = np.mgrid[:128, :128]
    label = np.zeros((1, 128, 128), np.int32)
    for number, x in ((1, 54), (2, 74), (3, 94)):
        label[0][(xx - x) ** 2 + (yy - 64) ** 2 <= 64] = number
    xy = np.array([[[54.0, 64.0], [74.0, 64.0], [94.0, 64.0]]])
    tiles = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    ncp = PRESETS["paper"]
    # As `make_views` does: centroids behind the last kept one are left out.
    scene = build_scene(tiles, torch.from_numpy(xy[:, :1]), ncp, 0.25, torch.from_numpy(label))
    keys = sample_keys(0, [0])
    kept = torch.tensor([[True]])
    outside = outside_mask(scene, kept_spans(scene, ncp, keys), kept)
    outside = outside.view(128, 128).numpy()
    assert outside[label[0] == 2].all() and outside[label[0] == 3].all()
    assert not outside[label[0] == 1].any()
    ring = (xx - 54) ** 2 + (yy - 64) ** 2 <= 50**2
    np.testing.assert_array_equal(outside, ~ring | (label[0] > 1))


def test_dropped_nucleus__is_gone_from_half_a_disk_too():
    label = torch.zeros((1, 60, 60), dtype=torch.int32)
    label[0, 28:32, 10:20], label[0, 28:32, 40:50] = 1, 2
    ncp = dataclasses.replace(PRESETS["paper"], keep="piece", radius_um=6.0)
    xy = torch.tensor([[[30.0, 30.0], [45.0, 30.0]]], dtype=torch.float64)
    tiles = torch.zeros((1, 3, 60, 60), dtype=torch.uint8)
    scene = build_scene(tiles, xy, ncp, 0.25, label)
    keys = sample_keys(0, [0])
    kept = torch.tensor([[True, False]])
    outside = outside_mask(scene, kept_spans(scene, ncp, keys), kept)
    outside = outside.view(60, 60)
    assert outside[label[0] == 2].all()
    bare = dataclasses.replace(scene, label_BN=None)
    half = outside_mask(bare, kept_spans(bare, ncp, keys), kept).view(60, 60)
    assert torch.equal(outside, half | (label[0] == 2))  # the kept one is not made whole


def test_boundary__of_nuclei_behind_the_last_kept_one_counts_for_nothing():
    label = torch.zeros((1, 40, 40), dtype=torch.int32)
    label[0, 5:10, 5:10], label[0, 30:35, 30:35] = 1, 2
    ncp = dataclasses.replace(PRESETS["paper"], region="boundary", radius_um=1.0)
    xy = torch.tensor([[[7.0, 7.0]]], dtype=torch.float64)
    tiles = torch.zeros((1, 3, 40, 40), dtype=torch.uint8)
    scene = build_scene(tiles, xy, ncp, 0.25, label)
    keys = sample_keys(0, [0])
    outside = outside_mask(scene, kept_spans(scene, ncp, keys), torch.tensor([[True]]))
    inside = ~outside.view(40, 40)
    assert inside[5:10, 5:10].all() and not inside[20:, 20:].any()


def test_margin__that_leaves_nothing_is_refused():
    tiles, xy, valid = batch(1)
    with pytest.raises(UsageError, match="leaves nothing"):
        make_views(
            tiles, xy, valid, recipe=recipe_of(SMALL), ncp=PRESETS["safe"], mpp=0.25,
            keys_B=sample_keys(0, [0]), margin_px=96,
        )  # fmt: skip
