"""Recipes have the published numbers, and settings are checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cytofm_cli.config import resolve
from cytofm_cli.errors import UsageError
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.recipes import ncp_of, recipe_of


@pytest.mark.parametrize(
    ("name", "scales", "n_local"),
    [
        ("dino", [(0.4, 1.0), (0.05, 0.4)], 8),
        ("ibot", [(0.25, 1.0), (0.05, 0.25)], 10),
        ("dinov2", [(0.32, 1.0), (0.05, 0.32)], 8),
        ("simclr", [(0.08, 1.0)], 0),
        ("moco", [(0.08, 1.0)], 0),
        ("byol", [(0.08, 1.0)], 0),
    ],
)
def test_recipe__has_the_published_numbers(name, scales, n_local):
    recipe = recipe_of(ViewsConfig(recipe=name, colours="natural"))
    assert [spec.size_px for spec in recipe.views] == [224] * 2 + [96] * n_local
    assert [spec.scale for spec in recipe.views] == [scales[0]] * 2 + [scales[-1]] * n_local
    assert recipe.n_global == 2
    first, second = (spec.augment for spec in recipe.views[:2])
    if name == "simclr":
        assert first == second and first.jitter == (0.8, 0.8, 0.8, 0.2) and first.blur_p == 0.5
    else:
        assert first.jitter == (0.4, 0.4, 0.2, 0.1)
        assert (first.blur_p, second.blur_p) == (1.0, 0.1)
        assert (first.solarise_p, second.solarise_p) == (0.0, 0.2)
    assert all(spec.augment.grey_p == 0.2 for spec in recipe.views)


def test_distill__teacher_px_needs_a_teacher():
    with pytest.raises(UsageError, match="'simclr' has no view for a frozen teacher"):
        recipe_of(ViewsConfig(recipe="simclr", teacher_px=64))


def test_recipe__cytology_has_no_grey_solarise_or_hue():
    for spec in recipe_of(ViewsConfig()).views:
        how = spec.augment
        assert how.grey_p == how.solarise_p == how.jitter[3] == 0 and how.stain_p > 0
        assert how.flip == (0.5, 0.5) and how.transpose == 0.5


def test_recipe__colour_strength_shrinks_every_change_and_leaves_turns():
    full, weak = (recipe_of(ViewsConfig(colour_strength=s)).views[0].augment for s in (1.0, 0.25))
    assert weak.jitter == pytest.approx((0.1, 0.1, 0.05, 0.0)) and full.jitter[0] == 0.4
    assert weak.stain == pytest.approx((0.0375, 0.005)) and weak.blur_p == full.blur_p * 0.25
    assert (weak.flip, weak.transpose, weak.stain_p) == (full.flip, full.transpose, full.stain_p)
    natural = ViewsConfig(colours="natural", colour_strength=0.5)
    assert recipe_of(natural).views[1].augment.solarise_p == 0.1
    assert recipe_of(natural).views[0].augment.grey_p == 0.1


def test_recipe__stains_can_change_more_than_colours():
    how = recipe_of(ViewsConfig(colour_strength=0.1, stain_strength=1.0)).views[0].augment
    assert how.stain == (0.15, 0.02)
    assert how.jitter == pytest.approx((0.04, 0.04, 0.02, 0.0)) and how.blur_p == 0.1
    with pytest.raises(
        UsageError, match=r"stain_strength = 1: 'natural' colours leave stains alone"
    ):
        recipe_of(ViewsConfig(colours="natural", stain_strength=1.0))


def test_recipe__stains_or_channels_change():
    stains, channels = (
        recipe_of(ViewsConfig(stain_of=of, stain_strength=0.5)).views
        for of in ("stains", "channels")
    )
    for one, other in zip(stains, channels, strict=True):  # nothing else differs
        same = replace(other.augment, stain=(0.075, 0.01), stain_p=0.8, stain_of="stains")
        assert replace(other, augment=same) == one
        assert other.augment.stain == (0.075, 0.01875) and other.augment.stain_p == 1
    with pytest.raises(UsageError, match=r"stain_of = channels: 'none' colours leave stains"):
        recipe_of(ViewsConfig(colours="none", stain_of="channels"))


def test_recipe__aspect_is_of_all_views_and_checked():
    views = recipe_of(ViewsConfig(aspect=(0.9, 1.1))).views
    assert {view.aspect for view in views} == {(0.9, 1.1)}
    for bad in ((1.1, 0.9), (0.0, 1.0), (1.0,)):
        with pytest.raises(UsageError, match="aspect"):
            recipe_of(ViewsConfig(aspect=bad))


def test_recipe__patch_14_takes_98_px():
    sizes = {spec.size_px for spec in recipe_of(ViewsConfig(recipe="dinov2", patch_px=14)).views}
    assert sizes == {224, 98}


@pytest.mark.parametrize(
    "change",
    [
        {"global_px": 225},
        {"local_px": 97},
        {"recipe": "nope"},
        {"preset": "nope"},
        {"keep": "nope"},
        {"clean_probability": 1.5},
        {"recipe": "moco", "n_local": 4},
    ],
)
def test_config__nonsense_is_refused(change):
    with pytest.raises(UsageError):
        recipe_of(ViewsConfig(**change))


def test_config__overrides_the_preset_and_resolves_from_text():
    config = resolve(ViewsConfig, "views", {"preset": "paper", "radius_um": "8", "keep": "all"})
    ncp = ncp_of(config)
    assert (ncp.radius_um, ncp.keep, ncp.redraw) == (8.0, "all", "image")
