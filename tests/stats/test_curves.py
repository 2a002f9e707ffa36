"""Points of curves against hand-worked ones, and against the metrics that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.stats import curves, metrics

Y = np.array([1, 0, 1, 0, 0])
SCORE = np.array([0.9, 0.8, 0.8, 0.3, 0.1])


def test_roc__of_five_slides_by_hand() -> None:
    curve = curves.roc(Y, SCORE)
    assert curve is not None
    # From 0.9 on: one of two positives. From 0.8 on: both, and one of three negatives.
    np.testing.assert_allclose(curve.x_T, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.y_T, [0, 0.5, 1, 1, 1])


def test_precision_recall__of_five_slides_by_hand() -> None:
    curve = curves.precision_recall(Y, SCORE)
    assert curve is not None
    np.testing.assert_allclose(curve.x_T, [0.5, 1, 1, 1])
    np.testing.assert_allclose(curve.y_T, [1, 2 / 3, 2 / 4, 2 / 5])


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40).filter(
        lambda rows: len({y for y, _ in rows}) == 2
    )
)
def test_curves__have_the_area_of_the_metric(rows: list[tuple[int, int]]) -> None:
    y, score = np.array([r[0] for r in rows]), np.array([r[1] / 6 for r in rows])
    roc, pr = curves.roc(y, score), curves.precision_recall(y, score)
    assert roc is not None
    assert pr is not None
    assert np.trapezoid(roc.y_T, roc.x_T) == pytest.approx(float(metrics.auc(y, score)))
    area = (np.diff(pr.x_T, prepend=0) * pr.y_T).sum()
    assert area == pytest.approx(float(metrics.average_precision(y, score)))


def test_curves__of_one_class_are_none() -> None:
    assert curves.roc(np.ones(3, int), SCORE[:3]) is None
    assert curves.roc(np.zeros(3, int), SCORE[:3]) is None
    assert curves.precision_recall(np.zeros(3, int), SCORE[:3]) is None


def test_calibration__bins_by_hand() -> None:
    p = np.array([0.05, 0.07, 0.92, 1.0])
    bins = curves.calibration(np.array([0, 1, 1, 1]), np.column_stack([1 - p, p]))
    assert [(round(b.mean, 6), b.share, b.n) for b in bins] == [(0.06, 0.5, 2), (0.96, 1.0, 2)]


@given(st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_calibration__bins_have_the_error_of_the_metric(n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(n_classes), 50)
    y = rng.integers(0, n_classes, 50)
    error = sum(b.n * abs(b.mean - b.share) for b in curves.calibration(y, p)) / 50
    assert error == pytest.approx(float(metrics.calibration_error(y, p)))


def test_confusion__rows_are_classes_and_columns_answers() -> None:
    table = curves.confusion(np.array([0, 0, 1, 2, 2]), np.array([0, 2, 1, 2, 0]), 3)
    assert table.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
