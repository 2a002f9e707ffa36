"""Every head at its published widths on a bag of 1000, in float32 (../shared/golden/mil).

Small bags, gradients and training are compared in every checkout, by `test_mil_golden.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from cytofm_cli.mil.base import MilHead, MilOutput, make_head
from cytofm_cli.mil.convert import load_official

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "mil"
pytestmark = pytest.mark.needs_shared("golden/mil")
BAGS = (1000,)
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


@pytest.mark.parametrize("n", BAGS)
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
