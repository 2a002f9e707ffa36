"""Intervals and tests: against formulas worked out separately, and by simulation."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics


def sample(seed: int, n: int = 80, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 2).astype(np.int64)
    return y, rng.normal(size=n) + shift * y


def delong_by_hand(y: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """DeLong 1988 by double loops: difference of AUCs and its variance."""
    v10, v01 = [], []
    for s in (first, second):
        psi = np.array([[(p > q) + 0.5 * (p == q) for q in s[y == 0]] for p in s[y == 1]])
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    cov = np.cov(v10) / (y == 1).sum() + np.cov(v01) / (y == 0).sum()
    gap = v10[1].mean() - v10[0].mean()
    return float(gap), float(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])


def test_delong__equals_the_double_loop() -> None:
    y, first = sample(0)
    second = (first + np.random.default_rng(1).normal(size=len(y))).round(1)
    groups = [str(i) for i in range(len(y))]
    auc, cov = statistics.delong_covariance(y, np.stack([first, second]), groups)
    gap, variance = delong_by_hand(y, first, second)
    assert auc[1] - auc[0] == pytest.approx(gap)
    assert cov[0, 0] + cov[1, 1] - 2 * cov[0, 1] == pytest.approx(variance)
    assert auc[0] == pytest.approx(float(metrics.auc(y, first)))


def test_delong__repeating_every_slide_under_its_patient_changes_little() -> None:
    # Three copies of a patient's slide bring no information: the variance must stay, not
    # shrink threefold as it does if slides are taken for independent.
    y, score = sample(2, n=200)
    groups = [str(i) for i in range(200)]
    _, once = statistics.delong_covariance(y, score[None], groups)
    _, copies = statistics.delong_covariance(np.tile(y, 3), np.tile(score, 3)[None], groups * 3)
    assert copies[0, 0] == pytest.approx(once[0, 0], rel=1e-9)
    _, naive = statistics.delong_covariance(
        np.tile(y, 3), np.tile(score, 3)[None], [str(i) for i in range(600)]
    )
    assert naive[0, 0] < 0.4 * once[0, 0]


def test_bootstrap__covers_the_truth_for_clustered_slides() -> None:
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(40), 3)
        y = (group % 2).astype(np.int64)
        score = rng.normal(size=40)[group] + y  # one value a patient, three slides
        weight = statistics.group_weights([str(g) for g in group], 300, seed)
        found = statistics.bootstrap(partial(metrics.auc, y, score), weight)
        hits += found.low <= 0.7602 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


def test_group_weights__patients_come_and_go_together() -> None:
    weight = statistics.group_weights(["a", "b", "a", "c"], 500, 0)
    np.testing.assert_array_equal(weight[:, 0], weight[:, 2])
    per_group = weight[:, [0, 1, 3]]
    assert (per_group.sum(1) == 3).all()
    assert per_group.mean(0) == pytest.approx([1.0] * 3, abs=0.15)
    assert weight.shape == (500, 4) and weight.dtype == np.float64
    np.testing.assert_array_equal(
        weight, statistics.group_weights(["b", "a", "b", "c"], 500, 0)[:, [1, 0, 1, 3]]
    )


def metric(of_all: float, of_replicates: list[float]) -> statistics.Metric:
    return lambda weight: np.array(of_all if weight is None else of_replicates)


def test_bootstrap__percentiles_of_what_is_defined() -> None:
    values = [i / 100 for i in range(101)] + [np.nan] * 7
    weight = np.ones((108, 1))
    found = statistics.bootstrap(metric(0.3, values), weight, level=0.9)
    assert (found.value, found.dropped) == (0.3, 7)
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.95))
    found = statistics.bootstrap(metric(0.3, values), weight)
    assert (found.low, found.high) == (pytest.approx(0.025), pytest.approx(0.975))
    none = statistics.bootstrap(metric(0.3, [np.nan] * 4), weight)
    assert none.value == 0.3 and none.dropped == 4
    assert none.record() == {"value": 0.3, "low": None, "high": None}


def test_bootstrap__metric_undefined_in_every_replicate_has_no_interval() -> None:
    y = np.ones(4, dtype=np.int64)
    weight = statistics.group_weights(list("abcd"), 100, 0)
    record = statistics.bootstrap(partial(metrics.auc, y, np.arange(4.0)), weight).record()
    assert record == {"value": None, "low": None, "high": None}


def test_holm__hand_worked() -> None:
    # sorted .01, .02, .03, .04 × 4, 3, 2, 1 = .04, .06, .06, .04 → running maximum
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []
