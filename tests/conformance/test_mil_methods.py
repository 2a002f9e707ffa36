"""What every MIL head must do, whatever it computes inside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cytofm_cli.config import resolve
from cytofm_cli.mil.base import MilHead, MilModel, Recipe, make_head, preset_settings, seeded
from cytofm_cli.mil.optim import make_optimizer, ordinal_loss
from cytofm_cli.registry import mil_methods

METHODS = mil_methods.names()
D = 24
VARIANTS = [
    *((method, {}) for method in METHODS),
    ("abmil", {"gated": False}),
    ("mean", {"hidden": 16}),
    ("max", {"hidden": 16}),
    ("clam_sb", {"instance_loss": "svm", "subtyping": True}),
    ("clam_mb", {"instance_loss": "ce", "subtyping": True}),
    ("dsmil", {"non_linear": False}),
    ("dtfd", {"distill": "MaxS"}),
    ("dtfd", {"distill": "MaxMinS", "per_end": 3}),
    ("transmil", {"padding": "zeros"}),
    ("less", {"small_columns": 8}),
]
IDS = [" ".join([name, *(f"{k}={v}" for k, v in more.items())]) for name, more in VARIANTS]
each_variant = pytest.mark.parametrize(("method", "settings"), VARIANTS, ids=IDS)


def build(method: str, settings: dict, classes: int = 3, preset: str = "cytofm") -> MilHead:
    _, own = preset_settings(method, preset)
    with seeded(7):
        return make_head(method, D, classes, {**own, **settings})[0].eval()


def bags(n: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(count, n, D, generator=torch.Generator().manual_seed(seed))


def assert_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert torch.isfinite(tensor).all()


@each_variant
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("n", [1, 2, 7, 65])
def test_head__any_bag_size_and_class_count_gives_whole_output(
    method: str, settings: dict, n: int, classes: int
) -> None:
    out = build(method, settings, classes)(bags(n, 2), seeds=[1, 2])
    assert out.logits_BC.shape == (2, classes)
    maps = len(out.map_classes)
    assert out.attention_BKN.shape == out.attention_raw_BKN.shape == (2, maps, n)
    assert out.embedding_BKE.shape[0] == 2
    assert_finite(out.logits_BC, out.attention_BKN, out.attention_raw_BKN, out.embedding_BKE)
    torch.testing.assert_close(out.prob_BC.sum(1), torch.ones(2))
    torch.testing.assert_close(out.attention_BKN.sum(-1), torch.ones(2, maps))
    assert (out.attention_BKN >= 0).all()
    if out.score_BCN is not None:
        assert out.score_BCN.shape == (2, classes, n)
        assert_finite(out.score_BCN)
        assert out.score_kind != "none"
    assert all(c is None or 0 <= c < classes for c in out.map_classes)


@each_variant
def test_head__bag_of_one_gives_its_instance_all_attention(method: str, settings: dict) -> None:
    out = build(method, settings)(bags(1))
    torch.testing.assert_close(out.attention_BKN, torch.ones_like(out.attention_BKN))


@each_variant
def test_head__padding_changes_nothing(method: str, settings: dict) -> None:
    head, n, seeds = build(method, settings), 11, [5]
    alone = head(bags(n), seeds=seeds)
    # Padding that would win any maximum, in front, between and behind.
    x = torch.full((1, 20, D), 1e3)
    mask = torch.zeros(1, 20, dtype=torch.bool)
    places = torch.tensor([1, 2, 3, 5, 6, 7, 8, 12, 13, 14, 17])
    x[:, places], mask[:, places] = bags(n), True
    padded = head(x, mask, seeds)
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(padded.logits_BC, alone.logits_BC, **close)
    torch.testing.assert_close(padded.embedding_BKE, alone.embedding_BKE, **close)
    torch.testing.assert_close(padded.attention_BKN[..., places], alone.attention_BKN, **close)
    assert (padded.attention_BKN[..., ~mask[0]] == 0).all()
    if alone.score_BCN is not None:
        torch.testing.assert_close(padded.score_BCN[..., places], alone.score_BCN, **close)


@each_variant
def test_head__order_of_instances_matters_only_where_declared(method: str, settings: dict) -> None:
    head, x = build(method, settings), bags(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    before, after = head(x, seeds=[1]), head(x[:, order], seeds=[1])
    same = torch.allclose(before.logits_BC, after.logits_BC, atol=1e-5)
    assert same is not head.order_matters
    if same:
        torch.testing.assert_close(
            after.attention_BKN, before.attention_BKN[..., order], atol=1e-5, rtol=1e-4
        )


@each_variant
def test_head__batch_gives_what_each_bag_gives_alone(method: str, settings: dict) -> None:
    head, x = build(method, settings), bags(9, 3)
    together = head(x, seeds=[1, 2, 3]).logits_BC
    for i in range(3):
        alone = head(x[i : i + 1], seeds=[i + 1]).logits_BC
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@each_variant
def test_head__evaluation_is_repeatable(method: str, settings: dict) -> None:
    head, x = build(method, settings), bags(17)
    assert torch.equal(head(x, seeds=[3]).logits_BC, head(x, seeds=[3]).logits_BC)


@each_variant
@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("bag_loss", [F.cross_entropy, ordinal_loss])
def test_head__every_weight_of_a_training_step_gets_a_finite_gradient(
    method: str, settings: dict, n: int, bag_loss: object
) -> None:
    head = build(method, {**settings, **({"k": 1} if method.startswith("clam") else {})}).train()
    with seeded(1):
        head.loss(head(bags(n)), torch.tensor([1]), bag_loss).backward()
    for name, parameter in head.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    if n == 40 and bag_loss is F.cross_entropy:
        # CLAM asks only the instance classifier of the bag's own class.
        unasked = {f"instance.{c}" for c in (0, 2)} if method.startswith("clam") else set()
        if settings.get("subtyping"):
            unasked = set()
        still = {n.rpartition(".")[0] for n, p in head.named_parameters() if p.grad is None}
        assert still == unasked


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["cytofm", "official"])
def test_preset__is_valid_and_can_be_trained_a_step(method: str, preset: str) -> None:
    recipe_settings, head_settings = preset_settings(method, preset)
    recipe = resolve(Recipe, "recipe", recipe_settings)
    if method == "less":
        head_settings = {**head_settings, "size": "mini"}  # base has 103 million weights
    with seeded(0):
        model = MilModel(make_head(method, D, 2, head_settings)[0], D).train()
        optimizer = make_optimizer(model, dataclasses.replace(recipe, lr=1e-3))
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(6):
            optimizer.zero_grad()
            out = model(bags(20))
            model.head.loss(out, torch.tensor([1]), F.cross_entropy).backward()
            optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) >= 0.7 * len(changed)


@pytest.mark.parametrize("method", METHODS)
def test_head__learns_from_which_instances_a_bag_holds(method: str) -> None:
    with seeded(3):
        head = build(method, {}, classes=2).train()
        model = MilModel(head, D)
        recipe = Recipe(lr=1e-3, weight_decay=0.0)
        optimizer = make_optimizer(model, recipe)
        x = torch.randn(24, 12, D)
        x[::2, :4, 0] -= 5.0
        x[1::2, :4, 0] += 5.0
        y = torch.arange(24) % 2
        for _ in range(40):  # until it knows the training bags by a margin
            total = 0.0
            for i in torch.randperm(24).tolist():
                optimizer.zero_grad()
                loss = head.loss(model(x[i : i + 1]), y[i : i + 1], F.cross_entropy)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) / 24
            if total < 0.1:
                break
        fresh = torch.randn(40, 12, D)
        fresh[::2, :4, 0] -= 5.0
        fresh[1::2, :4, 0] += 5.0
    with torch.no_grad():
        predicted = model.eval()(fresh, seeds=list(range(40))).prob_BC.argmax(1)
    assert (predicted == torch.arange(40) % 2).float().mean() >= 0.9
