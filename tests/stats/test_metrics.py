"""Metrics against hand-worked cases and scikit-learn; weights equal repetition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as reference

from cytofm_cli.stats import metrics


def case(seed: int, n: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.normal(size=(n, classes)).round(1) + np.eye(classes)[y]  # rounded: ties
    return y, metrics.softmax(logits)


def test_auc__hand_worked_with_a_tie() -> None:
    # pairs: (.8 > .1), (.8 > .4), (.4 > .1), (.4 = .4): 3.5 of 4
    assert metrics.auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.4, 0.8])) == 0.875


def test_auc__one_class_is_undefined() -> None:
    assert np.isnan(metrics.auc(np.array([1, 1]), np.array([0.1, 0.2])))


@pytest.mark.parametrize("seed", range(5))
def test_two_classes__equal_scikit_learn(seed: int) -> None:
    y, p = case(seed)
    hard = p.argmax(1)
    assert metrics.auc(y, p[:, 1]) == pytest.approx(reference.roc_auc_score(y, p[:, 1]))
    assert metrics.average_precision(y, p[:, 1]) == pytest.approx(
        reference.average_precision_score(y, p[:, 1])
    )
    assert metrics.accuracy(y, hard) == pytest.approx(reference.accuracy_score(y, hard))
    assert metrics.recall(y, hard, 2) == pytest.approx(reference.recall_score(y, hard))
    assert metrics.brier(y, p) == pytest.approx(reference.brier_score_loss(y, p[:, 1]))
    false_rate, true_rate, _ = reference.roc_curve(y, p[:, 1], drop_intermediate=False)
    expected = true_rate[false_rate <= 0.2 + 1e-12].max()
    assert metrics.sensitivity_at_specificity(y, p[:, 1], 0.8) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_four_classes__equal_scikit_learn(seed: int) -> None:
    y, p = case(seed, classes=4)
    hard = p.argmax(1)
    assert metrics.macro_auc(y, p) == pytest.approx(
        reference.roc_auc_score(y, p, multi_class="ovr")
    )
    assert metrics.recall(y, hard, 4) == pytest.approx(
        reference.recall_score(y, hard, average="macro")
    )
    assert metrics.quadratic_kappa(y, hard, 4) == pytest.approx(
        reference.cohen_kappa_score(y, hard, weights="quadratic")
    )
    assert metrics.macro_average_precision(y, p) == pytest.approx(
        reference.average_precision_score(np.eye(4)[y], p)
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), classes=st.integers(2, 3))
def test_weights__equal_repeating_the_slides(seed: int, classes: int) -> None:
    y, p = case(seed, n=30, classes=classes)
    weight = np.random.default_rng(seed).integers(0, 4, size=(3, 30)).astype(float)
    weight[:, :classes] = 1  # every class stays
    hard = p.argmax(1)
    of = [
        lambda y, p, h, w: metrics.macro_auc(y, p, w),
        lambda y, p, h, w: metrics.macro_average_precision(y, p, w),
        lambda y, p, h, w: metrics.accuracy(y, h, w),
        lambda y, p, h, w: metrics.recall(y, h, classes, w),
        lambda y, p, h, w: metrics.brier(y, p, w),
        lambda y, p, h, w: metrics.calibration_error(y, p, w),
        lambda y, p, h, w: metrics.quadratic_kappa(y, h, classes, w),
        lambda y, p, h, w: metrics.sensitivity_at_specificity(
            (y == 1).astype(int), p[:, 1], 0.7, w
        ),
    ]
    for metric in of:
        together = metric(y, p, hard, weight)
        for row, value in zip(weight, together, strict=True):
            index = np.repeat(np.arange(30), row.astype(int))
            assert metric(y[index], p[index], hard[index], None) == pytest.approx(value)


def test_calibration_error__hand_worked() -> None:
    p1 = np.array([0.15, 0.15, 0.95, 0.95])
    p = np.stack([1 - p1, p1], 1)
    # bin .1–.2: mean .15 against 0.5; bin .9–1: .95 against 1 → (.35 + .05) / 2
    assert metrics.calibration_error(np.array([0, 1, 1, 1]), p) == pytest.approx(0.2)


def test_fit_temperature__recovers_the_one_that_was_applied() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3)) * 2
    y = np.array([rng.choice(3, p=p) for p in metrics.softmax(logits)])
    assert metrics.fit_temperature(logits * 2.5, y) == pytest.approx(2.5, rel=0.05)


def test_fit_temperature__separable_slides_stay_within_bounds() -> None:
    logits = np.array([[1.0, -1.0], [-1.0, 1.0]])
    assert metrics.fit_temperature(4000 * logits, np.array([1, 0])) == pytest.approx(8.0, rel=1e-3)
    assert metrics.fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.25, rel=1e-3)
    assert metrics.fit_temperature(logits, np.array([1, 0])) == pytest.approx(8.0, rel=1e-3)


def test_youden_threshold__hand_worked_and_nearest_to_half_among_equals() -> None:
    y, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.45, 0.9])
    assert metrics.youden_threshold(y, score) == pytest.approx(0.375)
    assert metrics.youden_threshold(np.array([0, 1]), np.array([0.2, 0.9])) == 0.5
    assert metrics.youden_threshold(np.array([1, 1]), np.array([0.2, 0.9])) == 0.5


def test_specificity_threshold__reaches_the_specificity_and_not_a_slide_more() -> None:
    y = np.array([0] * 10 + [1] * 3)
    score = np.concatenate([np.arange(10) / 20, [0.42, 0.7, 0.9]])
    threshold = metrics.specificity_threshold(y, score, 0.9)
    assert (score[y == 0] < threshold).mean() == 0.9
    assert (score[y == 1] >= threshold).all()
    assert metrics.specificity_threshold(y, score, 0.0) == 0.0


def test_specificity_threshold__without_negatives_or_above_all_of_them() -> None:
    assert metrics.specificity_threshold(np.array([1, 1]), np.array([0.2, 0.6]), 0.9) == 0.5
    above = metrics.specificity_threshold(np.array([0, 0]), np.array([0.2, 0.6]), 1.0)
    assert above == pytest.approx(0.8)  # halfway to 1


def test_youden_threshold__lies_between_two_scores_and_counts_equals_as_positive() -> None:
    assert metrics.youden_threshold(np.array([0, 1]), np.array([0.6, 0.9])) == pytest.approx(0.75)
    assert metrics.youden_threshold(np.array([0, 1, 1]), np.array([0.1, 0.5, 0.9])) == 0.5
    # 0.2 and 0.775 gain as much: the second lies nearer to 0.5
    y, score = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.6, 0.95])
    assert metrics.youden_threshold(y, score) == pytest.approx(0.775)


def test_softmax__hand_worked_and_without_overflow() -> None:
    logits = np.array([[0.0, np.log(3)], [1000.0, 1000.0 + np.log(3)]])
    np.testing.assert_allclose(metrics.softmax(logits), [[0.25, 0.75]] * 2)
    np.testing.assert_allclose(metrics.softmax(2 * logits[:1], 2.0), [[0.25, 0.75]])
    np.testing.assert_array_equal(metrics.softmax(np.array([[0.0, 1000.0]])), [[0.0, 1.0]])


def test_fit_temperature__is_the_least_log_loss() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(200, 3)) * 3
    y = np.where(rng.random(200) < 0.6, logits.argmax(1), rng.integers(0, 3, 200))

    def loss(temperature: float) -> float:
        return reference.log_loss(y, metrics.softmax(logits, temperature))

    best = optimize.minimize_scalar(loss, bounds=(0.25, 8.0), options={"xatol": 1e-9}).x
    assert 0.5 < best < 6.0
    assert metrics.fit_temperature(logits, y) == pytest.approx(best, rel=1e-5)
    far = logits + 5_000 * rng.normal(size=(200, 1))  # what all classes share says nothing
    assert metrics.fit_temperature(far, y) == pytest.approx(best, rel=1e-5)


def test_calibration_error__of_three_classes_is_of_the_confidence() -> None:
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9], [1.0, 0.0, 0.0]])
    # right, wrong, right, right: bins 6, 7, and 9 twice → (0.4 + 0.7 + 0.1) / 4
    assert metrics.calibration_error(np.array([0, 0, 2, 0]), p) == pytest.approx(0.3)


def test_calibration_error__of_two_classes_is_of_the_positive_one() -> None:
    p1 = np.array([0.15, 0.85])  # one bin by confidence, two by probability: (0.85 + 0.15) / 2
    found = metrics.calibration_error(np.array([1, 1]), np.stack([1 - p1, p1], 1))
    assert found == pytest.approx(0.5)


def test_calibration_error__has_ten_bins() -> None:
    # 0.81 and 0.89 share a bin of ten, of no nine or eleven: gaps −0.19 and +0.89 cancel in part
    p1 = np.array([0.81, 0.89])
    found = metrics.calibration_error(np.array([1, 0]), np.stack([1 - p1, p1], 1))
    assert found == pytest.approx(0.35)
    sure = np.array([[0.0, 1.0]])  # lies in the last bin
    assert metrics.calibration_error(np.array([0]), sure) == 1.0


def test_brier__of_three_classes_is_the_whole_square() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    assert metrics.brier(np.array([0, 2]), p) == pytest.approx((0.25 + 0.09 + 0.04) / 2)


def test_macro_average_precision__of_two_classes_is_that_of_the_second() -> None:
    y, p = case(7)
    assert metrics.macro_average_precision(y, p) == metrics.average_precision(y, p[:, 1])
    assert metrics.average_precision(y, p[:, 1]) != metrics.average_precision(1 - y, p[:, 0])


def test_sensitivity_at_specificity__none_reaches_it_or_nothing_is_negative() -> None:
    y, score = np.array([1, 0]), np.array([0.1, 0.9])
    assert metrics.sensitivity_at_specificity(y, score, 1.0) == 0.0
    assert np.isnan(metrics.sensitivity_at_specificity(np.array([1, 1]), score, 0.9))
    assert metrics.auc(y, score) == 0.0 and metrics.auc(1 - y, score) == 1.0
