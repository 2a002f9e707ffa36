"""Paired comparison: by hand, in any scale, with its level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from cytofm_cli.stats import metrics
from cytofm_cli.stats.paired import auc_difference, recall_difference, swap_test, widened
from cytofm_cli.stats.score_intervals import widening

Y = np.array([0, 0, 1, 1])


def two(score: np.ndarray) -> np.ndarray:
    return np.stack([1 - score, score], 1)


def test_swap_test__all_sixteen_swaps_by_hand() -> None:
    first, second = np.array([0.3, 0.4, 0.1, 0.2]), np.array([0.1, 0.2, 0.3, 0.4])
    groups = list("abcd")
    gap = 1.0 - 0.0
    ranks = {0: np.array([3, 4, 1, 2.0]), 1: np.array([1, 2, 3, 4.0])}
    beyond = 0.0
    for code in range(16):
        swapped = [(code >> i) & 1 for i in range(4)]
        one = np.array([ranks[s][i] for i, s in enumerate(swapped)])
        other = np.array([ranks[1 - s][i] for i, s in enumerate(swapped)])
        reached = abs(float(metrics.auc(Y, other) - metrics.auc(Y, one)))
        beyond += 1.0 if reached > gap + 1e-12 else 0.5 if abs(reached - gap) < 1e-12 else 0.0
    p = swap_test(Y[None], first[None], second[None], groups)
    assert p == beyond / 16
    assert swap_test(Y[None], first[None], first[None], groups) == 1.0
    assert swap_test(Y[None], first[None] * 100, second[None] ** 3, groups) == p  # ranks alone


def test_auc_difference__values_sign_and_identity() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    good, poor = (1 / (1 + np.exp(-(rng.normal(size=120) + k * (y - 0.5)))) for k in (3, 0))
    groups = [f"p{i // 2}" for i in range(120)]
    found = auc_difference(y, two(poor), two(good), groups)
    assert found.value == pytest.approx(float(metrics.auc(y, good) - metrics.auc(y, poor)))
    assert 0.1 < found.low < found.value < found.high < 0.7 and found.p < 0.001
    other = auc_difference(y, two(good), two(poor), groups)
    assert (other.value, other.low, other.high) == (
        pytest.approx(-found.value), pytest.approx(-found.high), pytest.approx(-found.low),
    )  # fmt: skip
    same = auc_difference(y, two(good), two(good), groups)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    pooled = auc_difference(y, two(poor), two(good), groups, retrained=1.25)
    mean = float(metrics.auc(y, good) + metrics.auc(y, poor)) / 2
    assert pooled.p == pytest.approx(widened(found.p, widening(mean, 1.25)))
    assert pooled.low < found.low and pooled.high > found.high


def test_auc_difference__a_missing_class_has_none() -> None:
    found = auc_difference(np.ones(3, int), two(np.zeros(3)), two(np.ones(3)), list("abc"))
    assert np.isnan([found.value, found.low, found.high]).all() and found.p == 1.0


def test_recall_difference__by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 1])
    first, second = np.array([0, 1, 1, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    groups = list("abcabc")
    found = recall_difference(y, first, second, groups, 2)
    assert found.value == pytest.approx(1 - (1 / 3 + 2 / 3) / 2)
    # Patients gain 1, 1, 1 of six recalls: of 8 sign flips 2 reach 3 / 6, by half each.
    assert found.p == pytest.approx(1 / 8)
    assert found.low < found.value < found.high
    turned = recall_difference(y, second, first, groups, 2)
    assert (turned.value, turned.p) == (pytest.approx(-found.value), pytest.approx(found.p))
    lacking = recall_difference(y, first, second, groups, 3)
    assert np.isnan(lacking.value) and lacking.p == 1.0


def test_widened__divides_the_standard_score() -> None:
    assert widened(2 * norm.sf(3.0), 2.25) == pytest.approx(2 * norm.sf(2.0))
    assert widened(1.0, 2.0) == 1.0 and widened(0.03, 1.0) == pytest.approx(0.03)


@pytest.mark.parametrize("n_groups", [8, 20])
def test_auc_difference__equal_models_are_rejected_one_time_in_twenty(n_groups: int) -> None:
    rng, rejected, held, n = np.random.default_rng(2), 0, 0, 300
    for _ in range(n):
        group = np.repeat(np.arange(n_groups), 2)
        y = np.resize([0, 1], n_groups)[group]
        shared = rng.normal(size=len(y)) + y
        first, second = (norm.cdf(shared + rng.normal(size=len(y))) for _ in range(2))
        found = auc_difference(y, two(first), two(second), [str(g) for g in group], swaps=400)
        rejected += found.p < 0.05
        held += found.low <= 0 <= found.high
    assert 0.02 <= rejected / n <= 0.075
    assert held / n >= 0.93
