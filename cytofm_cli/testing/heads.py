"""What every MIL head must do, whatever it computes inside. A case builds heads.

Legend: B bags, N instances, D features, C classes, K attention maps, E embedding width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from cytofm_cli.config import resolve
from cytofm_cli.mil.base import MilHead, MilModel, Recipe, make_head, preset_settings, seeded
from cytofm_cli.mil.optim import make_optimizer, ordinal_loss
from cytofm_cli.registry import Plugin, Sample, mil_methods
from cytofm_cli.testing.suite import Case, Suite

D: Final = 24
PRESETS: Final = ("cytofm", "official")


@dataclass(frozen=True)
class Heads:
    """Builds a head under the settings of a sample, from equal random weights."""

    method: str
    settings: Mapping[str, Any]

    def build(self, classes: int = 3) -> MilHead:
        """Return a head in evaluation mode."""
        _, own = preset_settings(self.method, "cytofm")
        with seeded(7):
            return make_head(self.method, D, classes, {**own, **self.settings})[0].eval()


def _heads(name: str, _plugin: Plugin, sample: Sample, _folder: Path) -> Heads:
    return Heads(name, sample.settings)


SUITE = Suite(mil_methods, _heads)


def bags(n: int, count: int = 1, seed: int = 0) -> Tensor:
    """Draw bags of n instances, (count, n, D)."""
    return torch.randn(count, n, D, generator=torch.Generator().manual_seed(seed))


def _assert_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert torch.isfinite(tensor).all()


@SUITE.check
def any_bag_size_and_class_count_gives_whole_output(case: Case) -> None:
    """Probabilities and attention sum to 1."""
    for classes in (2, 4):
        head = case.thing.build(classes)
        for n in (1, 2, 7, 65):
            out = head(bags(n, 2), seeds=[1, 2])
            assert out.logits_BC.shape == (2, classes)
            maps = len(out.map_classes)
            assert out.attention_BKN.shape == out.attention_raw_BKN.shape == (2, maps, n)
            assert out.embedding_BKE.shape[0] == 2
            _assert_finite(out.logits_BC, out.attention_BKN)
            _assert_finite(out.attention_raw_BKN, out.embedding_BKE)
            torch.testing.assert_close(out.prob_BC.sum(1), torch.ones(2))
            torch.testing.assert_close(out.attention_BKN.sum(-1), torch.ones(2, maps))
            assert (out.attention_BKN >= 0).all()
            if out.score_BCN is not None:
                assert out.score_BCN.shape == (2, classes, n)
                _assert_finite(out.score_BCN)
                assert out.score_kind != "none"
            assert all(c is None or 0 <= c < classes for c in out.map_classes)


@SUITE.check
def a_bag_of_one_gives_its_instance_all_attention(case: Case) -> None:
    """There is nothing else."""
    out = case.thing.build()(bags(1))
    torch.testing.assert_close(out.attention_BKN, torch.ones_like(out.attention_BKN))


@SUITE.check
def padding_changes_nothing(case: Case) -> None:
    """Also such that would win any maximum, in front, between and behind."""
    head, n, seeds = case.thing.build(), 11, [5]
    alone = head(bags(n), seeds=seeds)
    x = torch.full((1, 20, D), 1e3)
    mask = torch.zeros(1, 20, dtype=torch.bool)
    places = torch.tensor([1, 2, 3, 5, 6, 7, 8, 12, 13, 14, 17])
    x[:, places], mask[:, places] = bags(n), True
    padded = head(x, mask, seeds)
    close = functools.partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)
    close(padded.logits_BC, alone.logits_BC)
    close(padded.embedding_BKE, alone.embedding_BKE)
    close(padded.attention_BKN[..., places], alone.attention_BKN)
    assert (padded.attention_BKN[..., ~mask[0]] == 0).all()
    if alone.score_BCN is not None:
        close(padded.score_BCN[..., places], alone.score_BCN)


@SUITE.check
def the_order_of_instances_matters_only_where_declared(case: Case) -> None:
    """`order_matters` says so."""
    head, x = case.thing.build(), bags(30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    before, after = head(x, seeds=[1]), head(x[:, order], seeds=[1])
    same = torch.allclose(before.logits_BC, after.logits_BC, atol=1e-5)
    assert same is not head.order_matters
    if same:
        expected = before.attention_BKN[..., order]
        torch.testing.assert_close(after.attention_BKN, expected, atol=1e-5, rtol=1e-4)


@SUITE.check
def a_batch_gives_what_each_bag_gives_alone(case: Case) -> None:
    """Bags do not see one another."""
    head, x = case.thing.build(), bags(9, 3)
    together = head(x, seeds=[1, 2, 3]).logits_BC
    for i in range(3):
        alone = head(x[i : i + 1], seeds=[i + 1]).logits_BC
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@SUITE.check
def evaluation_is_repeatable(case: Case) -> None:
    """A slide always gets the same answer."""
    head, x = case.thing.build(), bags(17)
    assert torch.equal(head(x, seeds=[3]).logits_BC, head(x, seeds=[3]).logits_BC)


@SUITE.check
def every_weight_of_a_training_step_gets_a_finite_gradient(case: Case) -> None:
    """But of the parts that the trait `idle` names."""
    for n in (1, 3, 40):
        for bag_loss in (functional.cross_entropy, ordinal_loss):
            head = case.thing.build().train()
            with seeded(1):
                head.loss(head(bags(n)), torch.tensor([1]), bag_loss).backward()
            for name, parameter in head.named_parameters():
                if parameter.grad is not None:
                    assert torch.isfinite(parameter.grad).all(), name
            if n == 40 and bag_loss is functional.cross_entropy:
                still = {k.rpartition(".")[0] for k, p in head.named_parameters() if p.grad is None}
                assert still == set(case.sample.traits.get("idle", ()))


@SUITE.check
def presets_are_valid_and_can_be_trained_a_step(case: Case) -> None:
    """Both that of cytofm and the authors'."""
    if not case.first:
        return
    for preset in PRESETS:
        recipe_settings, head_settings = preset_settings(case.name, preset)
        recipe = resolve(Recipe, "recipe", recipe_settings)
        head_settings = {**head_settings, **case.sample.traits.get("preset", {})}
        with seeded(0):
            model = MilModel(make_head(case.name, D, 2, head_settings)[0], D).train()
            optimizer = make_optimizer(model, dataclasses.replace(recipe, lr=1e-3))
            before = [p.detach().clone() for p in model.parameters()]
            for _ in range(6):
                optimizer.zero_grad()
                out = model(bags(20))
                loss = model.head.loss(out, torch.tensor([1]), functional.cross_entropy)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert sum(changed) >= 0.7 * len(changed)


@SUITE.check
def it_learns_which_instances_a_bag_holds(case: Case) -> None:
    """A third of the instances of each bag tell its class."""
    if not case.first:
        return
    with seeded(3):
        head = case.thing.build(2).train()
        model = MilModel(head, D)
        optimizer = make_optimizer(model, Recipe(lr=1e-3, weight_decay=0.0))
        x, y = _telling_bags(24, 12, classes=head.needs_classes)
        for _ in range(40):  # until it knows the training bags by a margin
            total = 0.0
            for i in torch.randperm(24).tolist():
                optimizer.zero_grad()
                loss: Tensor = head.loss(
                    model(x[i : i + 1]), y[i : i + 1], functional.cross_entropy
                )
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) / 24
            if total < 0.1:
                break
        fresh, y_fresh = _telling_bags(40, 12, classes=head.needs_classes)
    with torch.no_grad():
        predicted = model.eval()(fresh, seeds=list(range(40))).prob_BC.argmax(1)
    assert (predicted == y_fresh).float().mean() >= 0.9


def _telling_bags(count: int, n: int, *, classes: bool) -> tuple[Tensor, Tensor]:
    """Draw bags of embeddings, or of probabilities of classes of cells."""
    x = torch.randn(count, n, D)
    x[::2, :4, 0] -= 5.0
    x[1::2, :4, 0] += 5.0
    return x.softmax(-1) if classes else x, torch.arange(count) % 2
