"""View sets: what a sample gets depends on the sample alone; presets and recipes."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cytofm_cli.errors import UsageError
from cytofm_cli.views import pixels
from cytofm_cli.views.augment import IDENTITY, IMAGENET_MEAN, IMAGENET_STD
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views, pad_nuclei
from cytofm_cli.views.ncp import PRESETS
from cytofm_cli.views.recipes import Recipe, ViewSpec, ncp_of, recipe_of
from cytofm_cli.views.render import perturbation_of
from cytofm_cli.views.scene import build_scene, kept_spans, outside_mask
from cytofm_cli.views.sheet import contact_sheet, to_rgb

CRIC = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cric"
SMALL = ViewsConfig(global_px=48, local_px=32, n_local=3, radius_um=4.0)


def batch(n=5, height=120, width=136, seed=0, most=12):
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)
    rng = np.random.default_rng(seed)
    nuclei = [rng.uniform(0, 1, (rng.integers(1, most), 2)) * [width, height] for _ in range(n)]
    return tiles, *pad_nuclei(nuclei)


def run(tiles, xy, valid, config=SMALL, *, mpp=0.25, seed=0, number=None, **more):
    number = np.arange(len(tiles)) if number is None else number
    return make_views(
        tiles, xy, valid, recipe=recipe_of(config), ncp=ncp_of(config), mpp=mpp,
        keys_B=sample_keys(seed, number), **more,
    )  # fmt: skip


PRESET_NAMES = ["paper", "safe", "none"]


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("sliced", [True, False])
def test_sample__does_not_depend_on_its_batch(preset, sliced):
    config = dataclasses.replace(SMALL, preset=preset)
    tiles, xy, valid = batch(6)
    whole = run(tiles, xy, valid, config, sliced=sliced)
    order = np.array([4, 1, 5])
    some = run(tiles[order], xy[order], valid[order], config, number=order, sliced=sliced)
    alone = run(tiles[4:5], xy[4:5], valid[4:5], config, number=[4], sliced=sliced)
    for view, part, one in zip(whole.views, some.views, alone.views, strict=True):
        if sliced:  # one view after the other: bit for bit
            assert torch.equal(view[order], part) and torch.equal(view[4:5], one)
        else:  # batched products may round otherwise in another batch, by one grey level
            assert (view[order] - part).abs().max() < 0.05
    assert np.array_equal(whole.plan.boxes_BV4[order], some.plan.boxes_BV4)


@pytest.mark.parametrize("colours", ["cytology", "natural"])
def test_rerun__is_bit_identical_and_seed_matters(colours):
    config = dataclasses.replace(SMALL, colours=colours)
    tiles, xy, valid = batch()
    one, two = run(tiles, xy, valid, config), run(tiles, xy, valid, config)
    other = run(tiles, xy, valid, config, seed=1)
    for a, b, c in zip(one.views, two.views, other.views, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_padding__of_nuclei_changes_nothing():
    tiles, xy, valid = batch()
    wide = np.pad(xy, ((0, 0), (0, 7), (0, 0)), constant_values=np.nan)
    one, two = run(tiles, xy, valid), run(tiles, wide, np.pad(valid, ((0, 0), (0, 7))))
    assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))


@pytest.mark.parametrize("preset", PRESET_NAMES)
@pytest.mark.parametrize("more", [{}, {"fill": "window"}, {"keep": "single"}, {"keep": "piece"}])
def test_sliced_and_batched__agree_but_for_rounding(preset, more):
    config = dataclasses.replace(SMALL, preset=preset, colours="none", **more)
    tiles, xy, valid = batch(7)
    one, two = (run(tiles, xy, valid, config, sliced=sliced) for sliced in (True, False))
    recipe = recipe_of(config)
    for a, b in zip(one.views, two.views, strict=True):
        for g in range(7):
            difference = np.abs(to_rgb(a[g], recipe).astype(int) - to_rgb(b[g], recipe))
            assert difference.max() <= 2


def test_channels_last_tiles__give_the_same_views():
    tiles, xy, valid = batch(2)
    last = tiles.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    one, two = run(tiles, xy, valid), run(last, xy, valid)
    assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))


@pytest.mark.parametrize("preset", ["paper", "safe"])
def test_centres__are_kept_nuclei_of_their_view(preset):
    tiles, xy, valid = batch(20)
    plan = run(tiles, xy, valid, dataclasses.replace(SMALL, preset=preset)).plan
    for b, v in np.ndindex(plan.clean_BV.shape):
        match = (xy[b] == plan.centre_BV2[b, v]).all(1)
        assert (match & plan.kept_BVM[b, v]).any()
    x, y, w, h = np.moveaxis(plan.boxes_BV4, -1, 0)
    cx, cy = np.moveaxis(plan.centre_BV2, -1, 0)
    assert ((cx >= x - 0.5) & (cx < x + w)).all() and ((cy >= y - 0.5) & (cy < y + h)).all()


def test_paper__one_perturbation_for_all_views():
    tiles, xy, valid = batch()
    config = dataclasses.replace(SMALL, preset="paper")
    plan, ncp = run(tiles, xy, valid, config).plan, ncp_of(config)
    assert (plan.kept_BVM == plan.kept_BVM[:, :1]).all() and not plan.clean_BV.any()
    scene = build_scene(tiles, torch.from_numpy(xy), ncp, 0.25)
    first = perturbation_of(scene, plan, ncp, 0)[0]
    assert all(torch.equal(first, perturbation_of(scene, plan, ncp, v)[0]) for v in (1, 4))


def test_safe__subset_and_noise_are_redrawn():
    tiles, xy, valid = batch(30)
    config = dataclasses.replace(SMALL, clean_probability=0.0)
    plan, ncp = run(tiles, xy, valid, config).plan, ncp_of(config)
    assert (plan.kept_BVM != plan.kept_BVM[:, :1]).any((0, 2))[1:].all()
    scene = build_scene(tiles, torch.from_numpy(xy), ncp, 0.25)
    one, two = (perturbation_of(scene, plan, ncp, v) for v in (0, 1))
    both = (one[1] & two[1]).view(one[0].shape)
    assert (one[0] == two[0])[both].float().mean() < 0.01


def test_redraw_noise__same_subset_other_noise():
    tiles, xy, valid = batch()
    config = dataclasses.replace(SMALL, preset="paper", redraw="noise")
    plan, ncp = run(tiles, xy, valid, config).plan, ncp_of(config)
    assert (plan.kept_BVM == plan.kept_BVM[:, :1]).all()
    scene = build_scene(tiles, torch.from_numpy(xy), ncp, 0.25)
    one, two = (perturbation_of(scene, plan, ncp, v) for v in (0, 1))
    assert torch.equal(one[1], two[1])
    assert (one[0] == two[0])[one[1].view(one[0].shape)].float().mean() < 0.01


def test_single__only_the_centre_survives_in_each_view():
    tiles, xy, valid = batch(10)
    plan = run(tiles, xy, valid, dataclasses.replace(SMALL, preset="paper", keep="single")).plan
    assert (plan.kept_BVM.sum(2) == 1).all()
    assert np.allclose(xy[np.arange(10)[:, None], plan.kept_BVM.argmax(2)], plan.centre_BV2)
    assert (plan.kept_BVM != plan.kept_BVM[:, :1]).any()


def test_view__shows_the_tile_where_kept_and_noise_elsewhere():
    # A view of the tile's own size and box is the perturbed tile itself.
    tiles, xy, valid = batch(1, 96, 96)
    spec = ViewSpec(size_px=96, scale=(1.0, 1.0), aspect=(1.0, 1.0), augment=IDENTITY)
    recipe = Recipe(name="plain", views=(spec,), n_global=1)
    ncp = dataclasses.replace(PRESETS["paper"], radius_um=4.0)
    keys = sample_keys(0, [0])
    made = make_views(tiles, xy, valid, recipe=recipe, ncp=ncp, mpp=0.25, keys_B=keys)
    scene = build_scene(tiles, torch.from_numpy(xy), ncp, 0.25)
    words, outside = perturbation_of(scene, made.plan, ncp, 0)
    expected = pixels.unpack(words)[0]
    assert np.array_equal(to_rgb(made.views[0][0], recipe), expected.permute(1, 2, 0).numpy())
    kept = (~outside).view(96, 96)
    assert 0.05 < kept.float().mean() < 0.95
    assert torch.equal(expected[:, kept], tiles[0][:, kept])


def test_clean_probability__is_respected_and_clean_views_are_clean():
    tiles, xy, valid = batch(120, 40, 40)
    config = dataclasses.replace(SMALL, colours="none", clean_probability=0.3)
    made = run(tiles, xy, valid, config)
    assert made.plan.clean_BV.mean() == pytest.approx(0.3, abs=0.08)
    plain = run(tiles, xy, valid, dataclasses.replace(config, fill="none"))
    for v, (a, b) in enumerate(zip(made.views, plain.views, strict=True)):
        clean = torch.from_numpy(made.plan.clean_BV[:, v])
        assert torch.equal(a[clean], b[clean])
        assert not torch.equal(a[~clean], b[~clean])


def test_no_nuclei__ordinary_multi_crop_unperturbed_and_counted():
    tiles, xy, valid = batch(6)
    valid[2] = valid[5] = False
    config = dataclasses.replace(SMALL, preset="paper", colours="none")
    made = run(tiles, xy, valid, config)
    assert made.n_without_nuclei == 2
    assert made.plan.has_nuclei_B.tolist() == [True, True, False, True, True, False]
    assert made.plan.clean_BV[[2, 5]].all() and np.isnan(made.plan.centre_BV2[[2, 5]]).all()
    plain = run(tiles, xy, valid, dataclasses.replace(config, preset="none"))
    for a, b in zip(made.views, plain.views, strict=True):
        assert torch.equal(a[[2, 5]], b[[2, 5]])


def test_no_nuclei__drop_leaves_the_rest_as_it_was():
    tiles, xy, valid = batch(6)
    valid[2] = valid[5] = False
    keep = run(tiles, xy, valid)
    drop = run(tiles, xy, valid, dataclasses.replace(SMALL, without_nuclei="drop"))
    assert drop.row_B.tolist() == [0, 1, 3, 4] and drop.n_without_nuclei == 2
    for a, b in zip(keep.views, drop.views, strict=True):
        assert torch.equal(a[[0, 1, 3, 4]], b)


def test_no_nuclei_column_at_all__is_allowed():
    tiles, _, _ = batch(2)
    made = run(tiles, *pad_nuclei([np.zeros((0, 2))] * 2))
    assert made.n_without_nuclei == 2 and made.plan.clean_BV.all()


@pytest.mark.parametrize("sliced", [True, False])
def test_nuclei__on_the_border_one_and_thousands(sliced):
    tiles, _, _ = batch(4, 90, 100)
    rng = np.random.default_rng(0)
    nuclei = [
        np.array([[0, 0], [99, 89], [-0.5, 40], [99.49, 3]], float),
        np.array([[50.0, 45.0]]),
        rng.uniform(0, 90, (3000, 2)),
        np.array([[-30.0, 20], [400, 400]]),  # centroids of other tiles take no part
    ]
    made = run(tiles, *pad_nuclei(nuclei), sliced=sliced)
    assert made.plan.has_nuclei_B.tolist() == [True, True, True, False]
    assert all(view.isfinite().all() for view in made.views)
    assert made.plan.kept_BVM[0, :, :4].any(1).all()
    assert (made.plan.kept_BVM[1].sum(1) == 1).all()


def test_everything_kept__is_the_tile():
    tiles, xy, valid = batch(2, 60, 60)
    config = dataclasses.replace(SMALL, preset="paper", keep="all", radius_um=100.0, colours="none")
    made = run(tiles, xy, valid, config)
    plain = run(tiles, xy, valid, dataclasses.replace(config, fill="none"))
    assert all(torch.equal(a, b) for a, b in zip(made.views, plain.views, strict=True))


def test_radius__covers_fewer_pixels_at_a_coarser_resolution():
    tiles, xy, valid = batch(3, 200, 200, most=3)
    ncp = dataclasses.replace(PRESETS["paper"], keep="all", radius_um=5.0)
    covered = {}
    for mpp in (0.25, 0.5):
        scene = build_scene(tiles, torch.from_numpy(xy), ncp, mpp)
        spans = kept_spans(scene, ncp, sample_keys(0, [0, 1, 2]))
        outside = outside_mask(scene, spans, torch.from_numpy(valid))
        covered[mpp] = int((~outside).sum())
    assert covered[0.25] / covered[0.5] == pytest.approx(4, rel=0.5)


@pytest.mark.parametrize("sliced", [True, False])
@pytest.mark.parametrize("preset", ["safe", "none"])
def test_distill__last_view_is_the_first_ones_crop_unchanged(sliced, preset):
    tiles, xy, valid = batch()
    config = ViewsConfig(recipe="distill", global_px=48, preset=preset, radius_um=4.0)
    plain = dataclasses.replace(config, colours="none", colour_strength=0.0)
    found = run(tiles, xy, valid, config, sliced=sliced)
    assert [view.shape[-1] for view in found.views] == [48] * 3
    plan = found.plan
    for drawn in (plan.boxes_BV4, plan.kept_BVM, plan.clean_BV):
        assert np.array_equal(drawn[:, 0], drawn[:, 2])
    assert not np.array_equal(plan.boxes_BV4[:, 0], plan.boxes_BV4[:, 1])
    again = run(tiles, xy, valid, plain, sliced=sliced).views
    assert torch.equal(found.views[2], again[2])  # no colour was drawn for it
    if preset == "none":  # the first view, up to a turn of the square
        quarter = [again[2][0].rot90(k, (1, 2)) for k in range(4)]
        turns = [*quarter, *(turned.flip(1) for turned in quarter)]
        assert min((turn - again[0][0]).abs().max() for turn in turns) == 0


@pytest.mark.parametrize("sliced", [True, False])
def test_distill__teacher_px_shows_the_whole_tile_untouched(sliced):
    tiles, xy, valid = batch(height=96, width=96)
    config = ViewsConfig(recipe="distill", global_px=48, teacher_px=96, radius_um=4.0)
    found = run(tiles, xy, valid, config, sliced=sliced)
    assert not found.plan.clean_BV[:, :2].all()  # the student's are perturbed
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(found.views[2], (tiles / 255 - mean) / std, atol=1e-4, rtol=0)


def test_views__have_the_sizes_of_the_recipe():
    tiles, xy, valid = batch(2)
    made = run(tiles, xy, valid, ViewsConfig(recipe="dinov2", patch_px=14))
    shapes = [tuple(view.shape) for view in made.views]
    assert shapes == [(2, 3, 224, 224)] * 2 + [(2, 3, 98, 98)] * 8
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in made.views)


def test_input__nonsense_is_refused():
    tiles, xy, valid = batch(2)
    for bad in (tiles.float(), tiles[:, :2], tiles[0], tiles.to(torch.int16)):
        with pytest.raises(UsageError, match="uint8"):
            run(bad, xy, valid, number=[0, 1])
    with pytest.raises(UsageError, match="nuclei"):
        run(tiles, xy[:1], valid, number=[0, 1])
    with pytest.raises(UsageError, match="mpp"):
        run(tiles, xy, valid, mpp=72.0)
    with pytest.raises(UsageError, match="keys"):
        run(tiles, xy, valid, number=[0])


def test_sheet__shows_tile_outline_and_views():
    tiles, xy, valid = batch(2, 160, 160)
    config = dataclasses.replace(SMALL, clean_probability=0.0)
    recipe, ncp, keys = recipe_of(config), ncp_of(config), sample_keys(0, [0, 1])
    sheet = contact_sheet(tiles, xy, valid, recipe=recipe, ncp=ncp, mpp=0.25, keys_B=keys)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3
    made = make_views(tiles, xy, valid, recipe=recipe, ncp=ncp, mpp=0.25, keys_B=keys)
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (48, 48, 3))[:, :, 0]
    view = to_rgb(made.views[0][1], recipe)
    assert (windows[..., 20, 20:24, :] == view[20, 20:24]).all((2, 3)).any()
    colours = {tuple(colour) for colour in sheet.reshape(-1, 3)[::1].tolist()}
    assert {(0, 170, 60), (255, 190, 0), (40, 110, 255)} <= colours


@pytest.mark.needs_shared("data/cric")
def test_real_field__views_keep_the_marked_nuclei():
    with (CRIC / "points.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row["image"] == "field_001.jpg"]
    image = np.array(Image.open(CRIC / "images" / "field_001.jpg").convert("RGB"))[:512, :512]
    points = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    points = points[(points < 512).all(1)]
    tile = torch.from_numpy(image).permute(2, 0, 1)[None]
    ncp = PRESETS["paper"]
    xy, valid = pad_nuclei([points])
    config = ViewsConfig(preset="paper", colours="none")
    made = run(tile, xy, valid, config)
    scene = build_scene(tile, torch.from_numpy(xy), ncp, 0.25)
    words, outside = perturbation_of(scene, made.plan, ncp, 0)
    after = pixels.unpack(words)[0]
    for x, y in points[made.plan.kept_BVM[0, 0]].astype(int):
        part = (slice(None), slice(max(0, y - 30), y + 30), slice(max(0, x - 30), x + 30))
        assert torch.equal(after[part], tile[0][part])
    assert outside.any() and made.n_without_nuclei == 0
