"""One marked instance in a bag, along a direction that no single feature shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.base import Recipe, make_head, preset_settings
from cytofm_cli.mil.train import Labelled, fit, predict_logits

WIDTH = 36


def needles(patients: int, seed: int, size: int) -> Labelled:
    """Two bags a patient, at one place; an instance of one is 6 off, along all features alike."""
    rng = np.random.default_rng(seed)
    bags = []
    offset_PD = 0.3 * rng.normal(size=(patients, WIDTH))
    for i in range(2 * patients):
        x_ND = rng.normal(size=(size, WIDTH)) + offset_PD[i // 2]
        x_ND[0] += (i % 2) * 6 / WIDTH**0.5
        bags.append(Bag(f"{seed}_{i}", x_ND.astype(np.float32)))
    return Labelled(bags, np.arange(2 * patients) % 2)


def auc_of(method: str, preset: str, size: int = 24) -> float:
    """Train on 50 patients, choose the pass on 10, judge 60 others."""
    recipe, settings = preset_settings(method, preset)
    train, validation, test = (needles(n, seed, size) for seed, n in enumerate((50, 10, 60)))
    model = fit(method, settings, Recipe(**recipe), train, validation, 2, seeds=[0]).model
    logits_SC = predict_logits(model, test.bags)
    z = logits_SC[:, 1] - logits_SC[:, 0]
    return float((z[1::2, None] > z[None, ::2]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["max_score", "dsmil", "max"])
def test_needle__is_found_by_heads_that_look_along_directions(method: str) -> None:
    assert auc_of(method, "cytofm") >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["abmil", "clam_sb"])
def test_needle__in_a_large_bag_is_found_before_patience_ends(method: str) -> None:
    # Attention starts even: one instance of many moves it slowly, and the loss stands still.
    assert auc_of(method, "cytofm", size=240) >= 0.9


@pytest.mark.slow
def test_needle__is_not_seen_by_the_maximum_of_single_features() -> None:
    assert auc_of("max", "official") <= 0.75  # without a hidden layer


@pytest.mark.parametrize(("preset", "norm"), [("cytofm", 0.01), ("official", 1.0)])
def test_dsmil__published_start_is_a_direction_of_length_one_and_the_presets_a_hundredth(
    preset: str, norm: float
) -> None:
    head, _ = make_head("dsmil", 12, 2, preset_settings("dsmil", preset)[1])
    for layer in (head.instance, head.bag):
        assert layer.weight.norm().item() == pytest.approx(norm)
        assert layer.bias.abs().max() == 0
    # The queries, which pick by likeness to the critical instance, are orthogonal in both.
    weight = head.query[2].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
