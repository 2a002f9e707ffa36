"""From logits to answers, and every metric of them with its interval."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.stats import intervals, metrics
from cytofm_cli.stats.judge import Decision, decide, fix_decision, judge
from cytofm_cli.stats.score_intervals import auc_interval, share_interval

Y = np.array([0, 0, 0, 1, 1])
# Logit gaps of class 1: the best threshold of the probabilities lies between 0.5 and 2.
LOGITS = np.stack([np.zeros(5), [-2.0, -1.0, 0.5, 2.0, 3.0]], 1)


def fixed(y: np.ndarray = Y, logits: np.ndarray = LOGITS, **changes: object) -> Decision:
    settings = {"calibrate": False, "rule": "youden", "specificity": 0.6} | changes
    return fix_decision(y, logits, **settings)


def test_decide__by_threshold_for_two_classes_else_the_most_probable() -> None:
    p_NC = np.array([[0.7, 0.3], [0.69, 0.31], [0.1, 0.9]])
    assert decide(p_NC, 0.31).tolist() == [0, 1, 1]
    assert decide(np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]), 0.05).tolist() == [1, 0]
    assert decide(p_NC, 0.31).dtype == np.int64


def test_decision__divides_by_its_temperature_and_asks_its_threshold() -> None:
    decision = Decision(temperature=2.0, threshold=0.6)
    p_NC = decision.probabilities(np.array([[0.0, 2.0], [0.0, 0.4]]))
    np.testing.assert_allclose(p_NC[:, 1], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-0.2))])
    assert decision.classes(p_NC).tolist() == [1, 0]


def test_fix_decision__each_rule() -> None:
    p_N = 1 / (1 + np.exp(-LOGITS[:, 1]))
    assert fixed().threshold == pytest.approx((p_N[2] + p_N[3]) / 2)
    # Two of three negatives reach 0.6: the threshold lies above the second.
    assert fixed(rule="specificity").threshold == pytest.approx((p_N[1] + p_N[2]) / 2)
    assert fixed(rule="half") == Decision(1.0, 0.5)


def test_fix_decision__temperature_comes_first() -> None:
    warm = fixed(calibrate=True)
    assert warm.temperature == metrics.fit_temperature(LOGITS, Y) != 1.0
    p_N = metrics.softmax(LOGITS, warm.temperature)[:, 1]
    assert warm.threshold == pytest.approx((p_N[2] + p_N[3]) / 2)


@pytest.mark.parametrize("rule", ["youden", "specificity"])
def test_fix_decision__one_class_or_three_fix_nothing(rule: str) -> None:
    assert fixed(y=np.ones(5, int), calibrate=True, rule=rule) == Decision(1.0, 0.5)
    three = np.concatenate([LOGITS, -LOGITS[:, 1:]], 1)
    assert fixed(logits=three, rule=rule) == Decision(1.0, 0.5)


def judged(y: np.ndarray, p: np.ndarray, raw: np.ndarray, *, ordinal: bool = False) -> dict:
    groups = [f"g{i // 2}" for i in range(len(y))]
    return judge(
        y, p, p.argmax(1), raw, groups,
        replicates=200, seed=3, specificity=0.7, ordinal=ordinal,
    )  # fmt: skip


def test_judge__two_classes() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 40)
    logits = rng.normal(size=(40, 2)) + np.eye(2)[y]
    p, raw = metrics.softmax(logits, 2.0), metrics.softmax(logits)
    found = judged(y, p, raw)
    hard = p.argmax(1)
    value = {name: of["value"] for name, of in found.items() if name != "replicates_left_out"}
    assert value == {
        "auc": pytest.approx(float(metrics.auc(y, p[:, 1]))),
        "accuracy": (hard == y).mean(),
        "recall": pytest.approx((hard[y == 1] == 1).mean()),
        "average_precision": metrics.average_precision(y, p[:, 1]),
        "brier": pytest.approx(((p[:, 1] - y) ** 2).mean()),
        "ece": metrics.calibration_error(y, p),
        "brier_uncalibrated": pytest.approx(((raw[:, 1] - y) ** 2).mean()),
        "ece_uncalibrated": metrics.calibration_error(y, raw),
        "specificity": pytest.approx((hard[y == 0] == 0).mean()),
        "sensitivity_at_specificity_0.7": metrics.sensitivity_at_specificity(y, p[:, 1], 0.7),
    }
    groups = [f"g{i // 2}" for i in range(40)]
    weight = intervals.group_weights(groups, 200, 3)
    again = intervals.bootstrap(lambda w: metrics.average_precision(y, p[:, 1], w), weight)
    assert found["average_precision"] == again.record()
    assert found["auc"] == auc_interval(y, p[:, 1], groups).record()
    assert found["accuracy"] == share_interval(hard == y, groups).record()
    positive = [group for group, label in zip(groups, y, strict=True) if label]
    assert found["recall"] == share_interval(hard[y == 1] == 1, positive).record()
    assert found["replicates_left_out"] == {}


def test_judge__three_ordered_classes() -> None:
    y = np.array([0, 1, 2] * 6)
    p = np.random.default_rng(1).dirichlet(np.ones(3), 18)
    plain, ordered = judged(y, p, p), judged(y, p, p, ordinal=True)
    assert "specificity" not in plain
    more = ordered.keys() - plain.keys()
    assert more == {"quadratic_kappa", "auc_from_class_1", "auc_from_class_2"}
    kappa = metrics.quadratic_kappa(y, p.argmax(1), 3)
    assert ordered["quadratic_kappa"]["value"] == pytest.approx(float(kappa))
    worst = metrics.auc((y == 2).astype(int), p[:, 2])
    assert ordered["auc_from_class_2"]["value"] == pytest.approx(float(worst))
    any_found = metrics.auc((y > 0).astype(int), 1 - p[:, 0])
    assert ordered["auc_from_class_1"]["value"] == pytest.approx(float(any_found))


def test_judge__replicates_without_a_class_are_counted() -> None:
    y = np.array([0] * 10 + [1, 1])  # the positives are of one of six patients
    p = np.linspace(0, 1, 12)
    found = judged(y, np.stack([1 - p, p], 1), np.stack([1 - p, p], 1))
    weight = intervals.group_weights([f"g{i // 2}" for i in range(12)], 200, 3)
    lacking = int((weight[:, 10] == 0).sum())
    assert 40 < lacking < 90  # (5 / 6)^6 = 33 %
    of = found["replicates_left_out"]
    assert of["average_precision"] == lacking
    assert not of.keys() & {"auc", "recall", "accuracy"}
    assert "accuracy" not in of and "brier" not in of
