"""Metrics, intervals over groups and comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from cytofm_cli.evaluate import judge
from cytofm_cli.stats import metrics
from cytofm_cli.stats.intervals import Difference
from cytofm_cli.stats.paired import auc_difference

GROUPS = [f"s{i // 5:02}" for i in range(100)]


def answers(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(100) % classes
    p = rng.dirichlet(np.ones(classes), 100) + 0.3 * np.eye(classes)[y]
    return y, p / p.sum(1, keepdims=True)


def truth(y: np.ndarray) -> judge.Truth:
    return judge.Truth(y, tuple(GROUPS), retrained=0.0)


@pytest.mark.parametrize("classes", [2, 3])
def test_judge__values_are_scikit_learns(classes: int) -> None:
    y, p = answers(classes)
    found = judge.judge(truth(y), p, judge.group_weights(truth(y), 200, 0))
    auc = roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert found["auc"].value == pytest.approx(auc)
    wanted = balanced_accuracy_score(y, p.argmax(1))
    assert found["balanced_accuracy"].value == pytest.approx(wanted)
    for estimate in found.values():
        assert estimate.low < estimate.value < estimate.high


def test_balanced_accuracy__by_hand_with_weights() -> None:
    y = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]])
    assert judge.balanced_accuracy(y, p) == pytest.approx((2 / 3 + 1) / 2)
    weights = np.array([[1.0, 0, 1, 1], [1, 1, 1, 0]])
    found = judge.balanced_accuracy(y, p, weights)
    assert found[0] == pytest.approx((1 / 2 + 1) / 2)
    assert np.isnan(found[1])


def test_over_groups__weights_of_groups_are_weights_of_their_cells(monkeypatch) -> None:
    y, p = answers(2)
    weight_RG = judge.group_weights(truth(y), 9, 0)
    monkeypatch.setattr(judge, "_CHUNK_VALUES", 400)  # four replicates at a time
    whole = judge.over_groups(lambda w: judge.balanced_accuracy(y, p, w), GROUPS)(weight_RG)
    for r in range(9):
        rows = np.repeat(np.arange(100), weight_RG[r][np.arange(100) // 5].astype(int))
        wanted = balanced_accuracy_score(y[rows], p.argmax(1)[rows])
        assert whole[r] == pytest.approx(wanted)


def test_group_weights__draw_as_many_groups_and_never_lose_the_rarest_class() -> None:
    y = np.zeros(100, dtype=np.int64)
    y[[3, 8]] = 1  # groups 0 and 1 alone hold class 1
    weight_RG = judge.group_weights(truth(y), 300, 0)
    assert weight_RG.shape == (300, 20)
    assert (weight_RG.sum(1) == 20).all()
    assert (weight_RG[:, :2].sum(1) == 2).all()
    assert weight_RG[:, 0].min() == 0
    assert weight_RG[:, 5].std() == pytest.approx(1.0, abs=0.15)


def compare(first: np.ndarray, second: np.ndarray, y: np.ndarray) -> list[judge.Comparison]:
    answers = {("a", "t", "linear"): first, ("b", "t", "linear"): second}
    return judge.compare(answers, {"t": truth(y)}, swaps=400)


def test_compare__identical_answers_differ_by_exactly_zero() -> None:
    y, p = answers(3)
    for pair in compare(p, p.copy(), y):
        gap = pair.difference
        assert (gap.value, gap.low, gap.high, gap.p, pair.p_adjusted) == (0, 0, 0, 1, 1)


def test_compare__better_answers_are_found_and_corrected_for_their_number() -> None:
    y, p = answers(2)
    better = np.eye(2)[y] * 0.8 + 0.1
    pairs = compare(p, better, y)
    assert [(pair.first, pair.second, pair.metric) for pair in pairs] == [
        ("a", "b", "auc"),
        ("a", "b", "balanced_accuracy"),
    ]
    for pair in pairs:
        assert 0 < pair.difference.low <= pair.difference.value <= pair.difference.high
        assert 0 < pair.difference.p < 0.01
    worst = max(pair.difference.p for pair in pairs)
    assert max(pair.p_adjusted for pair in pairs) >= worst
    assert min(pair.p_adjusted for pair in pairs) == pytest.approx(
        2 * min(pair.difference.p for pair in pairs)
    )


def test_per_group__uses_the_classes_that_a_group_has() -> None:
    y = np.array([0, 0, 1, 0, 0])
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]])
    found = judge.per_group(y, p, ["a", "a", "a", "b", "b"])
    assert found["a"] == {"instances": [2, 1], "auc": 0.5, "balanced_accuracy": 0.75}
    assert found["b"] == {"instances": [2, 0], "auc": None, "balanced_accuracy": 0.5}


def test_over_draws__is_the_mean_and_the_spread() -> None:
    y = np.array([0, 1])
    right, wrong = np.eye(2), np.eye(2)[::-1]
    found = judge.over_draws(y, np.stack([right, wrong, right, right]))["balanced_accuracy"]
    assert found.value == 0.75
    assert found.high == 1
    assert found.low == pytest.approx(0.075)


def two_versions(groups: int, seed: int = 0) -> tuple[judge.Truth, np.ndarray, np.ndarray]:
    """Return cells of both classes in every group, and answers to two versions of each."""
    rng = np.random.default_rng(seed)
    y_N = np.tile([0, 1, 0, 1], groups)
    group_N = np.repeat(np.arange(groups), 4)
    p_N = np.clip(0.4 + 0.2 * y_N + 0.2 * rng.normal(size=len(y_N)), 0, 1)
    q_N = np.clip(p_N + 0.03 * rng.normal(size=len(y_N)), 0, 1)
    of = judge.Truth(y_N, tuple(f"g{i:02}" for i in group_N), 0.0)
    return of, np.stack([1 - p_N, p_N], 1), np.stack([1 - q_N, q_N], 1)


def test_change_of_auc__has_the_interval_of_the_jackknife_over_groups() -> None:
    of, p_NC, q_NC = two_versions(9)
    change = judge.change_of_auc(of, p_NC, q_NC, swaps=100)
    gaps = []
    for group in sorted(set(of.groups)):
        rest = np.array([name != group for name in of.groups])
        y = of.y_N[rest]
        gaps.append(metrics.auc(y, q_NC[rest, 1]) - metrics.auc(y, p_NC[rest, 1]))
    error = np.sqrt(8 / 9 * ((np.array(gaps) - np.mean(gaps)) ** 2).sum())
    whole = float(metrics.auc(of.y_N, q_NC[:, 1]) - metrics.auc(of.y_N, p_NC[:, 1]))
    assert change.value == pytest.approx(whole)
    reach = 2.306 * error  # Student's, 8 degrees of freedom
    assert (change.low, change.high) == pytest.approx((whole - reach, whole + reach), rel=1e-3)
    apart = auc_difference(of.y_N, p_NC, q_NC, of.groups, swaps=100)
    assert change.p == apart.p
    assert change.high - change.low < apart.high - apart.low


def test_change_of_auc__leads_to_no_auc_beyond_0_and_1() -> None:
    # All right before; after, all right in one group and all wrong in the other: AUC 1, then 0.5.
    y_N = np.array([0, 1, 0, 1])
    of = judge.Truth(y_N, ("a", "a", "b", "b"), 0.0)
    before, after = np.array([0.0, 1, 0, 1]), np.array([0.0, 1, 1, 0])
    versions = (np.stack([1 - p_N, p_N], 1) for p_N in (before, after))
    change = judge.change_of_auc(of, *versions, swaps=100)
    assert change.value == -0.5
    assert (change.low, change.high) == pytest.approx((-1, 0))  # Student's reach is 6.35


def test_change_of_auc__of_the_same_answers_is_nothing() -> None:
    of, p_NC, _ = two_versions(9)
    assert judge.change_of_auc(of, p_NC, p_NC) == Difference(0.0, 0.0, 0.0, 1.0)


def test_change_of_auc__of_a_class_in_one_group_has_no_interval() -> None:
    of, p_NC, q_NC = two_versions(3)
    y_N = np.where(np.array(of.groups) == "g01", of.y_N, 0)
    change = judge.change_of_auc(judge.Truth(y_N, of.groups, 0.0), p_NC, q_NC, swaps=100)
    assert np.isfinite(change.value)
    assert np.isnan([change.low, change.high]).all()
