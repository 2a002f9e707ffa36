"""The `official` preset trains as the published loops do, step by step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cytofm_cli.mil import train
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.base import Recipe, make_head, preset_settings, seeded
from cytofm_cli.mil.optim import learning_rate, make_optimizer


def test_lookahead_radam__decay_is_decoupled() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    recipe = Recipe(optimizer="lookahead_radam", lr=0.1, weight_decay=0.5)
    optimizer = make_optimizer(layer, recipe)
    layer.weight.grad = torch.full((1, 1), 3.0)
    optimizer.step()
    # The first steps of RAdam are those of momentum: 1 - 0.1 * 0.5 * 1 - 0.1 * 3.
    assert layer.weight.item() == pytest.approx(0.65)


def test_learning_rate__official_less_holds_three_passes_then_falls() -> None:
    recipe = Recipe(**preset_settings("less", "official")[0])
    rates = [learning_rate(recipe, epoch) / recipe.lr for epoch in range(5)]
    assert rates == pytest.approx([1, 1, 1, 0.99975328, 0.99901336], abs=1e-8)


def test_dtfd__tiers_equal_pseudo_bags_one_by_one() -> None:
    with seeded(0):
        head = make_head("dtfd", 5, 3, {"distill": "MaxMinS", "hidden": 6, "pseudo_bags": 3})[0]
    head = head.double()
    h_NH, permutation_N = torch.randn(11, 6).double(), torch.randperm(11)
    parts, outside_GN = head.split(permutation_N)
    bags_GH, attention_GN, raw_1N = head.attention.pool_parts(h_NH, outside_GN)
    found = head.tiers(h_NH, bags_GH, attention_GN, parts)
    torch.testing.assert_close(raw_1N, head.attention(h_NH[None])[0])
    ends = []
    for g, part in enumerate(torch.tensor_split(permutation_N, 3)):
        weight = raw_1N[0, part].softmax(-1)
        torch.testing.assert_close(found.attention_N[part], weight)
        torch.testing.assert_close(found.tier1_GC[g], head.classifier(weight @ h_NH[part]))
        cam = (weight[:, None] * h_NH[part] @ head.classifier.weight.T).softmax(-1)
        torch.testing.assert_close(found.cam_CN[:, part], cam.T)
        order = part[cam[:, -1].argsort(descending=True)]
        ends += [order[0], order[-1]]
    assert found.indices_S.tolist() == [int(i) for i in ends]


def test_dtfd__written_out_gradient_equals_autograd() -> None:
    head = make_head("dtfd", 5, 2, {"hidden": 6, "pseudo_bags": 3})[0].double().train()
    h_NH, target = torch.randn(11, 6).double().requires_grad_(), torch.randn(3, 6).double()
    parts, outside_GN = head.split(torch.randperm(11))
    raw_N = head.attention(h_NH[None])[0, 0]
    loops = torch.stack([raw_N[part].softmax(-1) @ h_NH[part] for part in parts])
    leaves = [h_NH, *head.attention.parameters()]
    wanted = torch.autograd.grad((loops * target).sum(), leaves)
    bags_GH, *_ = head.attention.pool_parts(h_NH, outside_GN)
    found = torch.autograd.grad((bags_GH * target).sum(), leaves)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)


def test_dtfd__empty_pseudo_bags_are_zero_vectors_and_keep_gradients_finite() -> None:
    head = make_head("dtfd", 5, 2, {"keep_empty": True, "pseudo_bags": 4})[0].double().train()
    out = head(torch.randn(1, 2, 5).double())
    tier1_GC = out.aux["tier1_BGC"][0]
    torch.testing.assert_close(tier1_GC[2:], head.classifier.bias.expand(2, -1))
    head.loss(out, torch.tensor([1]), F.cross_entropy).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_dtfd__gradient_norm_of_tier_two_is_bounded_as_a_whole() -> None:
    head = make_head("dtfd", 5, 2)[0]
    parts = [sum(p.numel() for p in part) for part in head.clip_parts()]
    assert sum(parts) == sum(p.numel() for p in head.parameters())
    tier2 = (head.attention2, head.classifier2)
    assert parts[-1] == sum(p.numel() for module in tier2 for p in module.parameters())
    assert len(parts) == 4


def test_clam__classifier_of_an_unasked_class_stays_as_it_is() -> None:
    head = make_head("clam_sb", 6, 2, {"k": 2})[0].train()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    optimizer = make_optimizer(head, Recipe(optimizer="adam", lr=0.1, weight_decay=0.1))
    for _ in range(3):
        head.loss(head(torch.randn(1, 12, 6)), torch.tensor([1]), F.cross_entropy).backward()
        optimizer.step()
        optimizer.zero_grad()
    same = {n for n, value in head.state_dict().items() if torch.equal(value, before[n])}
    assert same == {"instance.0.weight", "instance.0.bias"}


def test_clam__models_of_before_are_read() -> None:
    head = make_head("clam_mb", 6, 3)[0]
    state = dict(head.state_dict())
    for kind in ("weight", "bias"):
        state[f"instance.{kind}"] = torch.cat([state.pop(f"instance.{c}.{kind}") for c in range(3)])
    fresh = make_head("clam_mb", 6, 3)[0]
    fresh.load_state_dict(state)
    torch.testing.assert_close(dict(fresh.state_dict()), dict(head.state_dict()))


@pytest.mark.parametrize(("ties", "best"), [("first", 1), ("last", 3)])
def test_selection__which_of_equal_epochs_is_kept(
    ties: str, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 1.0, 5.0])
    monkeypatch.setattr(train._Trainer, "_validate", lambda _: {"validation_loss": next(losses)})
    x = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    bags = train.Labelled([Bag("a", x), Bag("b", x + 1)], np.array([0, 1]))
    recipe = Recipe(epochs=5, patience=0, ties=ties)
    assert train.fit("mean", {}, recipe, bags, bags, 2, seeds=[0]).best_epoch == best


@pytest.mark.parametrize(
    ("method", "first", "ties", "patience", "min_epochs"),
    [("dtfd", 161, "first", 0, 5), ("dsmil", 0, "first", 11, 5), ("clam_sb", 0, "last", 20, 52)],
)
def test_official_selection__counts_as_the_published_loops_do(
    method: str, first: int, ties: str, patience: int, min_epochs: int
) -> None:
    recipe = Recipe(**preset_settings(method, "official")[0])
    assert round(recipe.select_from * recipe.epochs) == first
    assert (recipe.ties, recipe.patience, recipe.min_epochs) == (ties, patience, min_epochs)
