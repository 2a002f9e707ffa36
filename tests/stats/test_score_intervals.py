"""Score intervals: hand-worked, at the border, by patients, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from cytofm_cli.stats.intervals import Estimate
from cytofm_cli.stats.score_intervals import (
    auc_interval,
    design_effect,
    difference_limits,
    mean_interval,
    recall_interval,
    retraining,
    share_interval,
    widening,
)


def alone(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_auc_interval__limits_solve_newcombes_equation() -> None:
    y = np.array([0] * 6 + [1] * 4)
    score = np.array([1, 2, 3, 4, 5, 6, 3.5, 7, 8, 9])
    found = auc_interval(y, score, alone(10))
    assert found.value == 1 - 3 / 24
    quantile = t.ppf(0.975, 8)
    for theta in (found.low, found.high):
        bracket = 1 + (5 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) / 24 * bracket
        assert (found.value - theta) ** 2 == pytest.approx(quantile**2 * variance, rel=1e-6)
    wider = auc_interval(y, score, alone(10), retrained=1.25)
    assert wider.low < found.low < found.high < wider.high


def test_auc_interval__separated_classes_have_a_lower_bound_alone() -> None:
    y, score = np.array([0] * 10 + [1] * 10), np.arange(20.0)
    found = auc_interval(y, score, alone(20))
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.7 < found.low < 0.8
    turned = auc_interval(y, -score, alone(20))
    assert (turned.value, turned.low) == (0.0, 0.0)
    assert turned.high == pytest.approx(1 - found.low, abs=1e-6)


def test_auc_interval__copies_of_slides_add_nothing() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    score = rng.normal(size=20) + y
    once = auc_interval(y, score, alone(20))
    copies = auc_interval(np.tile(y, 3), np.tile(score, 3), alone(20) * 3)
    assert copies.value == pytest.approx(once.value)
    assert copies.high - copies.low == pytest.approx(once.high - once.low, rel=0.05)


def test_auc_interval__one_class_has_none() -> None:
    found = auc_interval(np.ones(4, int), np.arange(4.0), alone(4))
    assert np.isnan([found.value, found.low, found.high]).all()


def test_share_interval__is_wilsons_with_students_quantile() -> None:
    hit = np.array([True] * 7 + [False] * 3)
    found = share_interval(hit, alone(10))
    q2 = t.ppf(0.975, 9) ** 2
    middle = (0.7 + q2 / 20) / (1 + q2 / 10)
    reach = math.sqrt(q2 * (0.21 / 10 + q2 / 400)) / (1 + q2 / 10)
    assert found.value == 0.7
    assert (found.low, found.high) == (pytest.approx(middle - reach), pytest.approx(middle + reach))


def test_share_interval__all_hits_count_patients_not_slides() -> None:
    found = share_interval(np.ones(30, bool), [f"p{i // 3}" for i in range(30)])
    assert found.low == pytest.approx(10 / (10 + t.ppf(0.975, 9) ** 2), abs=1e-6)
    assert found.high == 1.0
    none = share_interval(np.zeros(0, bool), [])
    assert math.isnan(none.value)


def test_design_effect__is_kept_between_one_and_the_slides_a_patient() -> None:
    assert design_effect(0.02, 0.01, 3.0, 12) == pytest.approx(2 * 12 / 10)
    assert design_effect(0.001, 0.01, 3.0, 12) == 1.0
    assert design_effect(0.9, 0.01, 3.0, 12) == 3.0
    assert design_effect(math.nan, 0.01, 3.0, 12) == 3.0
    assert design_effect(0.0, 0.0, 3.0, 12) == 3.0
    assert design_effect(0.01, 0.01, 3.0, 2) == 3.0


def test_mean_interval__distances_add_or_add_as_squares() -> None:
    parts = [Estimate(0.6, 0.3, 0.8), Estimate(0.8, 0.4, 0.9)]
    assert mean_interval(parts) == Estimate(pytest.approx(0.7), pytest.approx(0.35), 0.85)
    apart = mean_interval(parts, independent=True)
    assert apart.low == pytest.approx(0.7 - math.hypot(0.3, 0.4) / 2)
    assert apart.high == pytest.approx(0.7 + math.hypot(0.2, 0.1) / 2)


def test_recall_interval__of_one_class_and_of_the_mean() -> None:
    y, said = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1, 0])
    groups = alone(7)
    one = recall_interval(y, said, groups, 2, only=1)
    by_hand = share_interval(np.array([True, True, True, False]), groups[3:])
    assert [one.value, one.low, one.high] == pytest.approx(
        [by_hand.value, by_hand.low, by_hand.high]
    )
    both = recall_interval(y, said, groups, 2)
    assert both.value == pytest.approx((2 / 3 + 3 / 4) / 2)


def test_difference_limits__what_goes_together_is_narrower() -> None:
    first, second = Estimate(0.7, 0.5, 0.8), Estimate(0.8, 0.6, 0.9)
    low, high = difference_limits(first, second, 0.0)
    assert low == pytest.approx(0.1 - math.hypot(0.2, 0.1))
    assert high == pytest.approx(0.1 + math.hypot(0.1, 0.2))
    closer = difference_limits(first, second, 0.9)
    assert low < closer[0] < 0.1 < closer[1] < high
    assert difference_limits(first, first, 1.0) == (pytest.approx(-0.1), pytest.approx(0.1))


def test_widening__most_where_nothing_can_be_learnt() -> None:
    assert (retraining(1), retraining(5), retraining(2)) == (0.0, 1.25, 2.0)
    assert widening(0.5, 1.25) == 2.25
    assert widening(1.0, 1.25) == widening(0.0, 1.25) == 1.0
    assert widening(0.8, 0.0) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 6)), min_size=2))
def test_intervals__hold_their_estimate_inside_zero_and_one(rows: list) -> None:
    y = np.array([label for label, _, _ in rows]).astype(int)
    score = np.array([float(value) for _, value, _ in rows])
    groups = [f"p{group}" for _, _, group in rows]
    for found in (auc_interval(y, score, groups), share_interval(y == 1, groups)):
        if not math.isnan(found.value):
            assert 0 <= found.low <= found.value <= found.high <= 1
            assert found.low < found.high


@pytest.mark.parametrize("n_groups", [8, 20])
def test_auc_interval__covers_the_truth_of_few_clustered_patients(n_groups: int) -> None:
    rng, truth, held, n = np.random.default_rng(1), 0.8, 0, 0
    shift = math.sqrt(2) * norm.ppf(truth)
    for _ in range(300):
        group = np.repeat(np.arange(n_groups), 3)
        y = (rng.random(n_groups) < 0.3).astype(int)[group]
        if len(np.unique(y)) < 2:
            continue
        score = shift * y + math.sqrt(0.5) * (
            rng.normal(size=n_groups)[group] + rng.normal(size=len(y))
        )
        found = auc_interval(y, score, [str(g) for g in group])
        held, n = held + (found.low <= truth <= found.high), n + 1
    assert held / n >= 0.93
