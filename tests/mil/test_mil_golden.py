"""Every head against numbers of its official implementation, in float64 (golden/README.md)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from cytofm_cli.mil import clam, train, vpu
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.base import MilHead, MilModel, Recipe, make_head, preset_settings
from cytofm_cli.mil.convert import load_official, pieces
from cytofm_cli.mil.optim import learning_rate

FOLDER = Path(__file__).parent / "golden"
BAGS = (1, 7, 100)
TRAIN_BAGS = (20, 33, 16, 57, 40, 24)


TOLERANCE = 1e-11  # of values, and of gradients relative to their norm
TINY = 1e-13  # of a gradient that is 0 but for round-off, as of a bias before a softmax


class Case(NamedTuple):
    """A head as the official code built it.

    Attributes:
        moved: tolerance of how far training moves a parameter, relative to its norm. Adam divides
            by the size of the gradient, so where that is 0 but for round-off (the bias of the keys
            in LESS) the round-off shows.
    """

    method: str
    classes: int
    width: int
    moved: float
    settings: Mapping[str, Any]


PLAIN = {"dropout": 0.0}
ABMIL = {**PLAIN, "hidden": 500, "attention": 128}
CLAM = {**PLAIN, "hidden": 512, "attention": 256, "k": 8, "overlap": True}
TRANSMIL = {**PLAIN, "width": 64, "heads": 8}
DTFD = {"hidden": 32, "attention": 16, "pseudo_bags": 4, "keep_empty": True}
LESS_PARTS = {"size": "mini", "blocks": 2, "large_depth": 2}
LESS = {**PLAIN, **LESS_PARTS, "small_columns": 48, "adapter": False}
CASES = {
    "abmil_plain": Case("abmil", 2, 800, 1e-10, {**ABMIL, "gated": False}),
    "abmil_gated": Case("abmil", 2, 800, 1e-10, ABMIL),
    "clam_sb_2": Case("clam_sb", 2, 24, 1e-8, CLAM),
    "clam_sb_3": Case("clam_sb", 3, 24, 1e-8, CLAM),
    "clam_mb_2": Case("clam_mb", 2, 24, 1e-8, CLAM),
    "clam_mb_3": Case("clam_mb", 3, 24, 1e-8, CLAM),
    "dsmil_2": Case("dsmil", 2, 24, 1e-10, {}),
    "dsmil_3": Case("dsmil", 3, 24, 1e-10, {}),
    "transmil_2": Case("transmil", 2, 24, 1e-9, TRANSMIL),
    "transmil_3": Case("transmil", 3, 24, 1e-9, TRANSMIL),
    "dtfd_2": Case("dtfd", 2, 24, 1e-10, DTFD),
    "dtfd_3": Case("dtfd", 3, 24, 1e-10, DTFD),
    "less_2": Case("less", 2, 144, 1e-6, LESS),
    "less_3": Case("less", 3, 144, 1e-6, LESS),
}


def of(method: str) -> list[str]:
    return [name for name, case in CASES.items() if case.method.startswith(method)]


@cache
def fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_fill", FOLDER / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def golden() -> tuple[dict[str, Tensor], dict[str, dict[str, list[int]]]]:
    with safe_open(FOLDER / "mil.safetensors", framework="pt") as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return values, json.loads(file.metadata()["about"])["shapes"]


def value(key: str) -> Tensor:
    return golden()[0][key]


def weights(name: str) -> dict[str, Tensor]:
    return fill().weights(name, golden()[1][name])


def head_of(name: str, **settings: object) -> MilHead:
    case = CASES[name]
    head, _ = make_head(case.method, case.width, case.classes, {**case.settings, **settings})
    load_official(head.double(), case.method, weights(name))
    return head.eval()


def bag(name: str, n: int) -> Tensor:
    return fill().bag(name, n, CASES[name].width)[None]


def close(found: Tensor, expected: Tensor) -> None:
    found = found.detach().reshape(expected.shape)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def close_digest(
    name: str, head: MilHead, ours: Mapping[str, Tensor], expected: Tensor, tolerance: float
) -> None:
    """Compare a tensor a parameter by norm and by products with random directions."""
    official = weights(name)
    taken = {p.official: p.of(ours[p.ours]) for p in pieces(CASES[name].method, head, official)}
    found = fill().digest(name, {key: taken[key] for key in official})
    error, limit = (found - expected).abs().amax(1), tolerance * expected[:, 0] + TINY
    wrong = [f"{k}: {e:.1e}" for k, e, most in zip(official, error, limit, strict=True) if e > most]
    assert not wrong, wrong


def check_loss(name: str, head: MilHead, loss: Tensor, run: str) -> None:
    """Compare a loss and its gradients."""
    close(loss, value(f"{name}.loss.{run}").sum())
    loss.backward()
    # No gradient at all, as of a classifier that the bag does not ask, counts as zero.
    zero = {k: torch.zeros_like(p) for k, p in head.named_parameters()}
    grads = {k: p.grad for k, p in head.named_parameters() if p.grad is not None}
    close_digest(name, head, zero | grads, value(f"{name}.grad.{run}"), TOLERANCE)
    head.zero_grad()


def check_training(
    name: str,
    head: MilHead,
    monkeypatch: pytest.MonkeyPatch,
    run: str = "",
    bags: int = 12,
    **recipe: object,
) -> None:
    """Let the trainer take the official steps: the same bags, in the same order."""
    case, start = CASES[name], {k: p.detach().clone() for k, p in head.named_parameters()}
    sizes = [TRAIN_BAGS[i % 6] for i in range(bags)]
    y = np.array([case.classes - 1 if i % 6 == 5 else i % 6 % 2 for i in range(bags)])
    features = [fill().bag(f"{name} train {i % 6}", n, case.width) for i, n in enumerate(sizes)]
    seen = [Bag(str(i), x.numpy()) for i, x in enumerate(features)]
    monkeypatch.setattr(train, "bag_tensor", lambda bag, _: torch.from_numpy(bag.features_ND))
    official, _ = preset_settings(case.method, "official")
    ordered = {"shuffle": False, "shuffle_instances": False, "balance": "none"}
    trainer = train._Trainer(
        MilModel(head, case.width).double(),
        Recipe(**{**official, **ordered, **recipe}),
        train.Labelled(seen, y),
        None,
        case.classes,
        "cpu",
    )
    loss = torch.tensor(trainer._epoch(), dtype=torch.float64)
    close(loss, value(f"{name}.train{run}.losses").mean())
    moved = {k: p.detach() - start[k] for k, p in head.named_parameters()}
    close_digest(name, head, moved, value(f"{name}.moved{run}"), case.moved)


# ABMIL


@pytest.mark.parametrize("name", of("abmil"))
def test_abmil__equals_the_official_outputs_and_gradients(name: str) -> None:
    head = head_of(name)
    for n in BAGS:
        out, key = head(bag(name, n)), f"{name}.out.n{n}"
        close(out.prob_BC[0, 1:], value(f"{key}.prob"))
        close(out.attention_BKN, value(f"{key}.attention"))
        close(out.attention_raw_BKN, value(f"{key}.raw"))
        close(out.embedding_BKE, value(f"{key}.bag"))
        for y in (0, 1):
            loss = head.loss(head(bag(name, n)), torch.tensor([y]), F.cross_entropy)
            check_loss(name, head, loss, f"n{n}.y{y}")


# CLAM


@pytest.mark.parametrize("name", of("clam"))
def test_clam__equals_the_official_outputs(name: str) -> None:
    head = head_of(name)
    for n in BAGS:
        out, key = head(bag(name, n)), f"{name}.out.n{n}"
        close(out.logits_BC, value(f"{key}.logits"))
        close(out.prob_BC, value(f"{key}.prob"))
        close(out.attention_raw_BKN, value(f"{key}.raw"))
        close(out.attention_BKN, value(f"{key}.raw").softmax(1))
        close(out.embedding_BKE, value(f"{key}.bag"))


CLAM_RUNS = [(loss, mode) for loss in ("ce", "svm") for mode in ("plain", "subtyping")]


@pytest.mark.parametrize(("loss", "mode"), CLAM_RUNS)
@pytest.mark.parametrize("name", of("clam"))
def test_clam__equals_the_official_losses_and_gradients(name: str, loss: str, mode: str) -> None:
    head = head_of(name, instance_loss=loss, subtyping=mode == "subtyping")
    for n in (8, 16, 100):  # with 8 and 16 the ends of the ranking are the same and all instances
        for y in range(CASES[name].classes):
            case, out = f"{loss}.{mode}.n{n}.y{y}", head(bag(name, n))
            instance, logits, targets = head.instance_loss(out, 0, y)
            close(instance, value(f"{name}.instance.{case}"))
            chosen = torch.stack([logits.argmax(1), targets])
            assert chosen.tolist() == value(f"{name}.chosen.{case}").tolist()
            total = head.loss(out, torch.tensor([y]), F.cross_entropy)
            check_loss(name, head, total, case)


def test_smooth_svm__equals_the_official_loss_where_one_class_is_far_ahead_too() -> None:
    logits = fill().numbers("svm logits", 12, 2, scale=9.0).requires_grad_()
    far = (logits[:, 0] - logits[:, 1]).abs() >= clam.SMOOTH_GAP
    assert 0 < int(far.sum()) < 12
    loss = clam.smooth_svm(logits, (fill().numbers("svm targets", 12) > 0).long())
    torch.testing.assert_close(loss, value("svm.loss"), atol=1e-12, rtol=0.0)
    gradient = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(gradient, value("svm.grad"), atol=1e-12, rtol=0.0)


# DSMIL


@pytest.mark.parametrize("name", of("dsmil"))
def test_dsmil__equals_the_official_outputs_and_gradients(name: str) -> None:
    head = head_of(name)
    for n in BAGS:
        out, key = head(bag(name, n)), f"{name}.out.n{n}"
        close(out.score_BCN[0, 1:].T, value(f"{key}.instances"))
        close(out.logits_BC[:, 1:], value(f"{key}.logits"))
        close(out.attention_BKN[0].T, value(f"{key}.attention"))
        close(out.embedding_BKE, value(f"{key}.bag"))
        for y in range(CASES[name].classes):
            loss = head.loss(head(bag(name, n)), torch.tensor([y]), F.cross_entropy)
            check_loss(name, head, loss, f"n{n}.y{y}")


# TransMIL


@pytest.mark.parametrize("name", of("transmil"))
def test_transmil__equals_the_official_outputs_and_gradients(name: str) -> None:
    head = head_of(name)
    rows: dict[str, Tensor] = {}
    for layer in ("layer1", "layer2"):
        getattr(head, layer).register_forward_hook(
            lambda _m, _i, out, layer=layer: rows.update({layer: out[1]})
        )
    for n in BAGS:
        out, key = head(bag(name, n)), f"{name}.out.n{n}"
        close(out.logits_BC, value(f"{key}.logits"))
        close(out.prob_BC, value(f"{key}.prob"))
        close(out.embedding_BKE, value(f"{key}.bag"))
        for layer, row_T in rows.items():
            close(row_T, value(f"{key}.{layer}"))
        folded = value(f"{key}.layer2")[1 : n + 1].clone()
        repeated = value(f"{key}.layer2")[n + 1 :]  # the square is filled up by the first ones
        folded[: len(repeated)] += repeated
        close(out.attention_raw_BKN, folded)
        for y in range(CASES[name].classes):
            loss = head.loss(head(bag(name, n)), torch.tensor([y]), F.cross_entropy)
            check_loss(name, head, loss, f"n{n}.y{y}")


@pytest.mark.parametrize("name", of("transmil"))
def test_transmil__equals_the_misaligned_version_that_the_authors_pinned(name: str) -> None:
    head = head_of(name, compat="0.0.9")
    for n in BAGS:
        expected = value(f"{name}.out.n{n}.logits009")
        assert (expected - value(f"{name}.out.n{n}.logits")).abs().max() > 1e-3
        close(head(bag(name, n)).logits_BC, expected)


# DTFD

DTFD_MODES = [("AFS", 1), ("MaxS", 1), ("MaxS", 2), ("MaxMinS", 1), ("MaxMinS", 2)]


def given_partitions(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    waiting: Iterator[str] = iter(names)
    monkeypatch.setattr(torch, "randperm", lambda n, **_: fill().permutation(next(waiting), n))


@pytest.mark.parametrize(("distill", "per_end"), DTFD_MODES)
@pytest.mark.parametrize("name", of("dtfd"))
def test_dtfd__equals_the_official_tiers_and_gradients(
    name: str, distill: str, per_end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, run = head_of(name, distill=distill, per_end=per_end), f"{distill}{per_end}"
    for n in BAGS:
        h_NH = head.project(bag(name, n))[0]
        parts, outside_GN = head.split(fill().permutation(f"{name} {n}", n))
        bags_GH, attention_GN, raw_1N = head.attention.pool_parts(h_NH, outside_GN)
        tiers, order = head.tiers(h_NH, bags_GH, attention_GN, parts), torch.cat(list(parts))
        key = f"{name}.out.n{n}"
        close(raw_1N, value(f"{key}.raw"))
        close(tiers.tier1_GC, value(f"{key}.tier1"))
        close(tiers.attention_N[order], value(f"{key}.attention"))
        close(tiers.cam_CN[:, order], value(f"{key}.cam"))
        key = f"{name}.out.{run}.n{n}"
        close(tiers.tier2_C, value(f"{key}.tier2"))
        close(tiers.tier2_attention_S, value(f"{key}.weight2"))
        close(tiers.distilled_SH, value(f"{key}.distilled"))
        for y in range(CASES[name].classes):
            given_partitions(monkeypatch, [f"{name} {n}"])
            out, one = head.train()(bag(name, n)), torch.tensor([y])
            loss = head.loss(out, one, F.cross_entropy)
            check_loss(name, head, loss, f"{run}.n{n}.y{y}")


@pytest.mark.parametrize(("distill", "per_end"), DTFD_MODES)
@pytest.mark.parametrize("name", of("dtfd"))
def test_dtfd__averages_partitions_in_evaluation_as_the_official_code(
    name: str, distill: str, per_end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of(name, distill=distill, per_end=per_end, draws=3)
    for n in BAGS:
        given_partitions(monkeypatch, [f"{name} draw {i} {n}" for i in range(3)])
        close(head(bag(name, n)).prob_BC, value(f"{name}.eval.{distill}{per_end}.n{n}"))


# LESS


@pytest.mark.parametrize("name", of("less"))
def test_less__equals_the_official_outputs_and_gradients(name: str) -> None:
    head = head_of(name)
    for n in BAGS:
        out, key = head(bag(name, n)), f"{name}.out.n{n}"
        close(out.logits_BC, value(f"{key}.logits"))
        for branch, kind in enumerate(("small", "large")):
            close(out.aux[f"{kind}_BC"], value(f"{key}.logits{branch}"))
            close(out.attention_raw_BKN[0, branch], value(f"{key}.attention{branch}"))
        both = torch.cat([value(f"{key}.bag{branch}") for branch in (0, 1)], 1)
        close(out.embedding_BKE, both)
        for y in range(CASES[name].classes):
            loss = head.loss(head(bag(name, n)), torch.tensor([y]), F.cross_entropy)
            check_loss(name, head, loss, f"n{n}.y{y}")


def test_less__learning_rates_are_those_of_the_official_scheduler() -> None:
    recipe = Recipe(**preset_settings("less", "official")[0])
    found = [learning_rate(recipe, epoch) for epoch in range(recipe.epochs)]
    assert found == pytest.approx(value("less.rates").tolist(), rel=1e-12, abs=1e-24)


def test_vpu_loss__equals_the_official_losses_and_gradients() -> None:
    state = {key: w.requires_grad_() for key, w in weights("vpu").items()}
    p, x = (fill().bag(f"vpu {side}", 20, 24) for side in ("labelled", "unlabelled"))
    lam = 0.375

    def log_phi(x: Tensor) -> Tensor:
        return F.linear(x, state["fc.weight"], state["fc.bias"]).log_softmax(1)[:, 1]

    exact = {"atol": 1e-12, "rtol": 0.0}
    mixed = log_phi(vpu.mix(x, p[fill().permutation("vpu", 20)], lam))
    variational = vpu.variational_loss(log_phi(p), log_phi(x))
    torch.testing.assert_close(variational, value("vpu.variational"), **exact)
    torch.testing.assert_close(variational, value("vpu.validation"), **exact)
    regulariser = vpu.mixup_regulariser(mixed, log_phi(x), lam)
    torch.testing.assert_close(regulariser, value("vpu.mixup"), **exact)
    loss = vpu.vpu_loss(log_phi(p), log_phi(x), mixed, lam)
    torch.testing.assert_close(loss, value("vpu.total"), **exact)
    loss.backward()
    for key, weight in state.items():
        torch.testing.assert_close(weight.grad, value(f"vpu.grad.{key}"), **exact)


# Training: the trainer with the official preset, against steps of the official optimisers


@pytest.mark.parametrize("name", [*of("abmil"), *of("dsmil")])
def test_training__moves_the_weights_as_the_official_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training(name, head_of(name), monkeypatch)


@pytest.mark.parametrize(("loss", "mode"), CLAM_RUNS)
@pytest.mark.parametrize("name", of("clam"))
def test_training__of_clam_leaves_classifiers_alone_that_no_bag_asks(
    name: str, loss: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of(name, instance_loss=loss, subtyping=mode == "subtyping")
    check_training(name, head, monkeypatch, f".{loss}.{mode}")


@pytest.mark.parametrize("name", of("transmil"))
def test_training__of_transmil_makes_ten_updates_of_two_bags_with_lookahead(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_training(name, head_of(name), monkeypatch, bags=20)


@pytest.mark.parametrize(("distill", "per_end"), DTFD_MODES)
@pytest.mark.parametrize("name", of("dtfd"))
def test_training__of_dtfd_clips_the_gradients_of_both_tiers(
    name: str, distill: str, per_end: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of(name, distill=distill, per_end=per_end)
    given_partitions(monkeypatch, [f"{name} epoch {e} {i}" for e in (0, 1) for i in range(6)])
    check_training(name, head, monkeypatch, f".{distill}{per_end}", clip_norm=0.3)


@pytest.mark.parametrize("name", of("less"))
def test_training__of_less_decays_no_vectors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_training(name, head_of(name), monkeypatch, bags=6)
