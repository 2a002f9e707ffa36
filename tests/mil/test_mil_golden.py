"""Every head against numbers of its official implementation (shared/golden/mil/README.md)."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cytofm_cli.mil import vpu
from cytofm_cli.mil.base import MilHead, MilOutput, make_head
from cytofm_cli.mil.convert import load_official, pieces

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "mil"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="shared/golden/mil is not beside the checkout"
)
BAGS = (1, 7, 100, 1000)
close = {"atol": 1e-5, "rtol": 0.0}


@cache
def golden(name: str) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in _load(name).items()}


def _load(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def bag(n: int, width: int = 192) -> Tensor:
    return golden("bags")[f"x{width}"][None, :n]


def official(name: str, prefix: str = "w.") -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in golden(name).items() if k.startswith(prefix)}


def head_of(
    method: str, classes: int, weights: dict[str, Tensor], width: int = 192, **settings: object
) -> MilHead:
    head, _ = make_head(method, width, classes, settings)
    load_official(head, method, weights)
    return head.eval()


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.reshape(expected.shape), expected, **close)


def check_gradients(
    head: MilHead, method: str, weights: dict[str, Tensor], norms: dict[str, Tensor]
) -> None:
    # No gradient at all, as of a classifier that the bag does not ask, is zero in the golden file.
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in head.named_parameters()
    }
    by_official = {p.official: p.of(gradients[p.ours]) for p in pieces(method, head, weights)}
    assert set(norms) <= set(by_official)
    for name, norm in norms.items():
        assert float(by_official[name].norm()) == pytest.approx(float(norm), rel=1e-4, abs=1e-7)


def with_prefix(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


# ABMIL


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_abmil__equals_the_official_outputs(kind: str) -> None:
    name, g = f"abmil_{kind}", golden(f"abmil_{kind}")
    head = head_of("abmil", 2, official(name), hidden=500, dropout=0.0, gated=kind == "gated")
    for n in BAGS:
        out = head(bag(n))
        equal(out.logits_BC[0, 1:], g[f"out.n{n}.bag_logit"])
        equal(out.prob_BC[0, 1:], g[f"out.n{n}.bag_prob"])
        equal(out.attention_BKN, g[f"out.n{n}.attention_softmax"])
        equal(out.embedding_BKE, g[f"out.n{n}.bag_embedding"])
        for y in (0, 1):
            loss = head.loss(out, torch.tensor([y]), F.cross_entropy)
            equal(loss, g[f"out.n{n}.loss_y{y}"])


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_abmil__equals_the_official_gradients(kind: str) -> None:
    name = f"abmil_{kind}"
    head = head_of("abmil", 2, official(name), hidden=500, dropout=0.0, gated=kind == "gated")
    head.loss(head(bag(100)), torch.tensor([1]), F.cross_entropy).backward()
    norms = with_prefix(golden(name), "gradnorm.n100.y1.")
    assert norms
    check_gradients(head, "abmil", official(name), norms)


# CLAM

CLAM = {"clam_sb": 2, "clam_mb": 3}


@pytest.mark.parametrize("method", CLAM)
def test_clam__equals_the_official_outputs(method: str) -> None:
    g = golden(method)
    head = head_of(method, CLAM[method], official(method), overlap=True)
    for n in BAGS:
        out = head(bag(n))
        equal(out.attention_raw_BKN, g[f"out.n{n}.attention_raw"])
        equal(out.attention_BKN, g[f"out.n{n}.attention_softmax"])
        equal(out.logits_BC, g[f"out.n{n}.bag_logits"])
        equal(out.prob_BC, g[f"out.n{n}.bag_prob"])
        equal(out.embedding_BKE, g[f"out.n{n}.bag_embedding"])


@pytest.mark.parametrize("n", [8, 16, 100, 1000])
@pytest.mark.parametrize("loss", ["ce", "svm"])
@pytest.mark.parametrize("mode", ["plain", "subtyping"])
@pytest.mark.parametrize("method", CLAM)
def test_clam__equals_the_official_instance_loss(method: str, mode: str, loss: str, n: int) -> None:
    g = golden(method)
    head = head_of(
        method,
        CLAM[method],
        official(method),
        overlap=True,
        instance_loss=loss,
        subtyping=mode == "subtyping",
    )
    out = head(bag(n))
    for y in range(CLAM[method]):
        key = f"out.n{n}.{loss}.{mode}.y{y}"
        instance, logits, targets = head.instance_loss(out, 0, y)
        equal(instance, g[f"{key}.instance_loss"])
        assert logits.argmax(1).tolist() == g[f"{key}.inst_preds"].tolist()
        assert targets.tolist() == g[f"{key}.inst_targets"].tolist()
        equal(head.loss(out, torch.tensor([y]), F.cross_entropy), g[f"{key}.total_loss"])
        equal(F.cross_entropy(out.logits_BC, torch.tensor([y])), g[f"out.n{n}.bag_loss_y{y}"])


@pytest.mark.parametrize("method", CLAM)
def test_clam__equals_the_official_gradients(method: str) -> None:
    found = (re.match(r"gradnorm\.n100\.\w+\.\w+\.y\d", key) for key in golden(method))
    labels = {match[0] for match in found if match}
    assert labels
    for label in sorted(labels):
        _, _, loss, mode, y = label.split(".")
        head = head_of(
            method,
            CLAM[method],
            official(method),
            overlap=True,
            instance_loss=loss,
            subtyping=mode == "subtyping",
        )
        head.loss(head(bag(100)), torch.tensor([int(y[1:])]), F.cross_entropy).backward()
        check_gradients(head, method, official(method), with_prefix(golden(method), f"{label}."))


# DSMIL


@pytest.mark.parametrize("outputs", [1, 2])
def test_dsmil__equals_the_official_outputs(outputs: int) -> None:
    g = with_prefix(golden("dsmil"), f"c{outputs}.")
    head = head_of("dsmil", outputs + 1, with_prefix(g, "w."))
    for n in BAGS:
        out, key = head(bag(n)), f"out.n{n}"
        equal(out.score_BCN[0, 1:].T, g[f"{key}.instance_logits"])
        equal(out.logits_BC[0, 1:], g[f"{key}.bag_logits"])
        equal(out.logits_BC[0, 1:].sigmoid(), g[f"{key}.prob_bag"])
        equal(out.attention_BKN[0].T, g[f"{key}.attention_softmax"])
        equal(out.embedding_BKE, g[f"{key}.bag_embedding"])
        assert out.aux["critical_BP"][0].tolist() == g[f"{key}.critical_index"].tolist()
        streams = (out.logits_BC[0, 1:].sigmoid() + out.aux["best_BP"][0].sigmoid()) / 2
        equal(streams, g[f"{key}.prob_mean_of_streams"])
        for y in range(outputs + 1):
            loss = head.loss(out, torch.tensor([y]), F.cross_entropy)
            equal(loss, g[f"{key}.loss_pos{y - 1}" if y else f"{key}.loss_neg"])


@pytest.mark.parametrize("outputs", [1, 2])
def test_dsmil__equals_the_official_gradients(outputs: int) -> None:
    g = with_prefix(golden("dsmil"), f"c{outputs}.")
    head = head_of("dsmil", outputs + 1, with_prefix(g, "w."))
    head.loss(head(bag(100)), torch.tensor([1]), F.cross_entropy).backward()
    check_gradients(head, "dsmil", with_prefix(g, "w."), with_prefix(g, "gradnorm.n100.pos0."))


# TransMIL and DTFD: 1024 input columns, of which 192-wide bags use the first 192


def sliced(name: str, weight: str, width: int) -> dict[str, Tensor]:
    weights = official(name)
    return {**weights, weight: weights[weight][:, :width]}


@pytest.mark.parametrize("n", BAGS)
@pytest.mark.parametrize("width", [192, 1024])
@pytest.mark.parametrize("version", ["ny009", "ny014"])
def test_transmil__equals_the_official_outputs(version: str, width: int, n: int) -> None:
    g, key = golden("transmil"), f"out.d{width}.{version}.n{n}"
    compat = "0.0.9" if version == "ny009" else "none"
    weights = sliced("transmil", "_fc1.0.weight", width)
    head = head_of("transmil", 2, weights, width, compat=compat)
    with torch.no_grad():
        out = head(bag(n, width))
    equal(out.logits_BC, g[f"{key}.bag_logits"])
    equal(out.prob_BC, g[f"{key}.bag_prob"])
    equal(out.embedding_BKE, g[f"{key}.cls_embedding"])
    for y in (0, 1):
        equal(F.cross_entropy(out.logits_BC, torch.tensor([y])), g[f"{key}.loss_y{y}"])
    if version == "ny014":
        equal(out.attention_raw_BKN, g[f"{key}.derived_cls_attention_layer2_folded"])


@pytest.mark.parametrize("n", BAGS)
def test_transmil__attention_of_both_layers_before_folding(n: int) -> None:
    from cytofm_cli.mil.methods import transmil

    g = golden("transmil")
    head = head_of("transmil", 2, sliced("transmil", "_fc1.0.weight", 192))
    seen: list[Tensor] = []
    for layer in (head.layer1, head.layer2):
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    with torch.no_grad():
        head(bag(n))
    for number, attention in enumerate(seen, start=1):
        equal(attention[1 : n + 1], g[f"out.d192.ny014.n{n}.derived_cls_attention_layer{number}"])
        assert len(attention) == int(g[f"out.d192.ny014.n{n}.tokens"])
    assert transmil.PLUGIN.make.order_matters


DTFD_MODES = {"g4t4": 1, "g4t16": 4}


@pytest.mark.parametrize("n", BAGS)
@pytest.mark.parametrize("width", [192, 1024])
@pytest.mark.parametrize("distill", ["AFS", "MaxS", "MaxMinS"])
def test_dtfd__equals_the_official_outputs(distill: str, width: int, n: int) -> None:
    g, base = golden("dtfd"), f"out.d{width}.n{n}"
    weights = sliced("dtfd", "dimReduction.fc1.weight", width)
    for mode, per_end in DTFD_MODES.items():
        if f"{base}.{mode}.{distill}.tier2_logits" not in g:
            assert (distill, mode) == ("AFS", "g4t16")
            continue
        head = head_of("dtfd", 2, weights, width, distill=distill, per_end=per_end, keep_empty=True)
        with torch.no_grad():
            h = head.project(bag(n, width))
            parts, outside = head.split(g[f"{base}.g4.permutation"])
            bags, attention, raw = head.attention.pool_parts(h[0], outside)
            tiers = head.tiers(h[0], bags, attention, parts)
        equal(raw[0], g[f"{base}.g4.attention_raw"])
        equal(tiers.tier1_GC, g[f"{base}.g4.tier1_logits"])
        equal(tiers.attention_N, g[f"{base}.g4.pseudobag_attention_softmax"])
        equal(tiers.cam_CN[1], g[f"{base}.g4.instance_prob_cam"])
        key = f"{base}.{mode}.{distill}"
        equal(tiers.tier2_C, g[f"{key}.tier2_logits"])
        equal(tiers.tier2_C.softmax(-1), g[f"{key}.tier2_prob"])
        equal(tiers.tier2_attention_S, g[f"{key}.tier2_attention_softmax"])
        if distill == "AFS":
            equal(tiers.distilled_SH, g[f"{key}.distilled"])
        else:
            assert tiers.indices_S.tolist() == g[f"{key}.distilled_indices"].tolist()
        for y in (0, 1):
            one = torch.tensor([y])
            tier1 = F.cross_entropy(tiers.tier1_GC, one.expand(4))
            equal(tier1, g[f"{base}.g4.tier1_loss_y{y}"])
            tier2 = F.cross_entropy(tiers.tier2_C[None], one)
            equal(tier2, g[f"{key}.tier2_loss_y{y}"])
            aux = {"tier1_BGC": tiers.tier1_GC[None]}
            nothing = torch.zeros(1, 1, n)
            out = MilOutput(tiers.tier2_C[None], nothing, nothing, nothing, aux=aux)
            equal(head.loss(out, one, F.cross_entropy), tier1 + tier2)


# LESS


def less_head() -> MilHead:
    return head_of(
        "less",
        2,
        official("less_crossvit"),
        144,
        size="mini",
        blocks=2,
        large_depth=2,
        small_columns=48,
        adapter=False,
    )


@pytest.mark.parametrize("n", BAGS)
def test_less__equals_the_official_outputs(n: int) -> None:
    g, key, head = golden("less_crossvit"), f"out.n{n}", less_head()
    out = head(bag(n)[..., :144])
    equal(out.logits_BC, g[f"{key}.bag_logits"])
    equal(out.prob_BC, g[f"{key}.bag_prob"])
    for branch, columns in (("small", slice(0, 48)), ("large", slice(48, 144))):
        equal(out.aux[f"{branch}_BC"], g[f"{key}.branch_{branch}_logits"])
        equal(out.embedding_BKE[0, 0, columns], g[f"{key}.branch_{branch}_cls"])
    equal(out.attention_raw_BKN[0, 0], g[f"{key}.derived_attention_on_large"])
    equal(out.attention_raw_BKN[0, 1], g[f"{key}.derived_attention_on_small"])
    for y in (0, 1):
        equal(head.loss(out, torch.tensor([y]), F.cross_entropy), g[f"{key}.loss_y{y}"])


def test_less__equals_the_official_gradients() -> None:
    head = less_head()
    head.loss(head(bag(100)[..., :144]), torch.tensor([1]), F.cross_entropy).backward()
    norms = with_prefix(golden("less_crossvit"), "gradnorm.n100.y1.")
    assert norms
    check_gradients(head, "less", official("less_crossvit"), norms)


def test_vpu_loss__equals_the_official_losses_and_gradients() -> None:
    g = golden("less_vpu_loss")
    weight, bias = (g[f"w.fc.{k}"].clone().requires_grad_() for k in ("weight", "bias"))

    def log_phi(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias).log_softmax(1)[:, 1]

    x, p, lam = g["x"], g["p"], float(g["out.mix_lambda"])
    equal(vpu.variational_loss(log_phi(p), log_phi(x)), g["out.val_variational_loss"])
    equal(vpu.variational_loss(log_phi(p), log_phi(x)), g["out.train_variational_loss"])
    mixed = log_phi(vpu.mix(x, p[g["out.mix_permutation"]], lam))
    regulariser = vpu.mixup_regulariser(mixed, log_phi(x), lam)
    equal(regulariser, g["out.train_mixup_regulariser"])
    loss = vpu.vpu_loss(log_phi(p), log_phi(x), mixed, lam)
    equal(loss, g["out.train_total_loss"])
    loss.backward()
    for parameter, name in ((weight, "weight"), (bias, "bias")):
        norm = float(g[f"out.grad.fc.{name}_norm"])
        assert float(parameter.grad.norm()) == pytest.approx(norm, rel=1e-4)
