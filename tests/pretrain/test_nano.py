"""Pretraining on tiles of single cells: sr-vit-nano and views of 64 and 32 px."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain import plan as plans
from cytofm_cli.pretrain.backbone import VitTrunk, make_backbones
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of
from cytofm_cli.pretrain.data import Batches
from cytofm_cli.pretrain.run import pretrain
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views, pad_nuclei
from cytofm_cli.views.ncp import PRESETS
from cytofm_cli.views.recipes import recipe_of

SMALL_HEAD = {"prototypes": "64", "hidden": "32", "bottleneck": "16"}


def nano(**settings: object) -> PretrainConfig:
    return PretrainConfig(**({"encoder": "sr-vit-nano", "batch": 4, "device": "cpu"} | settings))


def test_nano__has_65_tokens_of_128_and_under_two_million_parameters() -> None:
    backbones, about = make_backbones(nano(), drop_path=0.0, patch_px=8, img_px=64)
    trunk = backbones(role="student")
    assert isinstance(trunk, VitTrunk)
    # a block: qkv, projection, MLP, two norms; and three tables of 50 buckets by 32 channels
    block = 4 * 128 * 128 + 4 * 128 + 2 * 512 * 128 + 512 + 128 + 4 * 128 + 3 * 50 * 32
    ends = 8 * 8 * 3 * 128 + 128 + 128 + 65 * 128 + 2 * 128
    assert about.n_parameters == 6 * block + ends == 1_251_840
    tokens = trunk(torch.zeros(2, 3, 64, 64))
    assert tokens.patch_BND is not None
    assert (tokens.cls_BD.shape, tokens.patch_BND.shape) == ((2, 128), (2, 64, 128))
    local = trunk(torch.zeros(2, 3, 32, 32)).patch_BND
    assert local is not None and local.shape == (2, 16, 128)


def test_views__are_the_encoders_where_the_user_leaves_them_open() -> None:
    left_open = views_of("dino", PretrainViews(), "sr-vit-nano")
    assert (left_open.patch_px, left_open.global_px, left_open.local_px) == (8, 64, 32)
    given = views_of("dino", PretrainViews(global_px=48, local_px=16), "sr-vit-nano")
    assert (given.patch_px, given.global_px, given.local_px) == (8, 48, 16)
    usual = views_of("byol", PretrainViews(), "sr-vit-tiny")
    assert (usual.recipe, usual.patch_px, usual.global_px, usual.local_px) == (
        "byol", 16, 224, None,
    )  # fmt: skip


def test_views__an_encoder_cannot_settle_what_has_a_default(monkeypatch) -> None:
    from cytofm_cli.encoders import catalogue

    plugin, entry = catalogue.entries()["sr-vit-nano"]
    wrong = replace(entry, views={"preset": "paper"})
    monkeypatch.setattr(catalogue, "entries", lambda: {"sr-vit-nano": (plugin, wrong)})
    with pytest.raises(UsageError, match=r"encoder 'sr-vit-nano' cannot settle \[views\] preset"):
        views_of("dino", PretrainViews(), "sr-vit-nano")


@pytest.mark.slow
@pytest.mark.parametrize(("h", "irpe"), [(0, False), (0, True), (16, False), (16, True)])
@pytest.mark.parametrize("method", ["dino", "dinov2", "simclr"])
def test_pretrain__nano_goes_through_every_arm(
    make_store, tmp_path: Path, method: str, h: int, irpe: bool
) -> None:
    store = make_store("a", 8)
    known = set(pretrain_methods.load(method).config.__dataclass_fields__)
    report = pretrain(
        nano(method=method, steps=2, h=h, irpe=irpe),
        views_of(method, PretrainViews(radius_um=5.0), "sr-vit-nano"),
        [store],
        tmp_path / "run",
        settings={name: value for name, value in SMALL_HEAD.items() if name in known},
    )
    encoder = load_encoder(str(report.encoder), device="cpu")
    assert (encoder.spec.dim, encoder.spec.input_px) == (128, 64)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    assert np.isfinite(encoder.encode(encoder.prepare(pixels))).all()


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("preset", ["paper", "safe"])
def test_ncp__on_a_tile_of_one_cell_shuffles_what_lies_around_its_nucleus(
    side: int, preset: str
) -> None:
    views = views_of("dino", PretrainViews(colours="none", global_scale=(1.0, 1.0)), "sr-vit-nano")
    recipe = recipe_of(views)
    ncp = replace(PRESETS[preset], radius_um=4.0, clean_probability=0.0, centre_jitter=0.0)
    x = torch.arange(side)
    away = (x[:, None] - side / 2 + 0.5) ** 2 + (x - side / 2 + 0.5) ** 2
    # dark in the nucleus, a stripe of black at one edge that the shuffle must scatter
    image = torch.where(away < 12**2, 90, 230).to(torch.uint8)
    image[:, :6] = 0
    tiles = image.expand(3, 3, side, side).contiguous()
    middle = np.array([[side / 2 - 0.5, side / 2 - 0.5]])
    made = make_views(
        tiles,
        *pad_nuclei([middle] * 3),
        recipe=recipe,
        ncp=ncp,
        mpp=0.25,  # 4 µm are 16 px: the nucleus and a little more
        keys_B=sample_keys(0, np.arange(3)),
    )
    assert [view.shape[-1] for view in made.views] == [64, 64, *[32] * 8]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.mean, recipe.std))
    grey = (made.views[0] * std + mean) * 255
    centre = grey[:, :, 30:34, 30:34]
    assert (centre - 90).abs().max() < 2
    # no edge is a stripe any more, and black has come to where there was none
    edges = torch.stack([grey[..., :3].flatten(1), grey[..., -3:].flatten(1)])
    assert (edges.mean(-1) > 60).all()
    assert (grey[..., 8:16, 24:40].flatten(1).amin(-1) < 150).all()


def test_plan__says_where_the_radius_leaves_nothing_to_perturb(make_store) -> None:
    store = make_store("a", 8, mpp=0.25)  # 64 px are 16 µm: 11.3 µm to a corner
    views = views_of("dino", PretrainViews(), "sr-vit-nano")
    plan = plans.make_plan(nano(steps=2), views, [store], SMALL_HEAD)
    assert [n for n in plan.notes if "nothing is perturbed" in n and "--radius-um 4" in n]
    for open_ in (replace(views, radius_um=11.0), replace(views, preset="none")):
        notes = plans.make_plan(nano(steps=2), open_, [store], SMALL_HEAD).notes
        assert not [n for n in notes if "perturbed" in n]


def test_batches__of_the_same_cells_are_the_same_with_any_threads(make_store) -> None:
    views = views_of("dino", PretrainViews(radius_um=5.0), "sr-vit-nano")
    plan = plans.make_plan(nano(steps=2), views, [make_store("a", 8)], SMALL_HEAD)
    drawn = []
    for threads in (1, 3):
        with Batches(
            plan.index, plan.index.schedule(0, "slides"),
            recipe=plan.recipe, ncp=plan.ncp, batch=4, stop=1, threads=threads,
        ) as batches:  # fmt: skip
            drawn.append(next(batches).views)
    assert all(torch.equal(one, two) for one, two in zip(*drawn, strict=True))
