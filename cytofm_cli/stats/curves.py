"""The points of what is drawn of answers: ROC, precision and recall, calibration, confusion.

Legend: N slides, C classes, T thresholds, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Curve(NamedTuple):
    """Points of a curve, float64 (T,) each."""

    x_T: Floats
    y_T: Floats


@dataclass(frozen=True)
class Bin:
    """Slides whose probabilities lie close together.

    Attributes:
        mean: of their probabilities.
        share: of them that are of the class, or that are answered right.
        n: how many.
    """

    mean: float
    share: float
    n: int


def roc(y_N: Ints, score_N: Floats) -> Curve | None:
    """Return false positive rate and sensitivity at every threshold, strictest first.

    Equal scores are one step, so that the area below is `metrics.auc`.

    Args:
        y_N: 1 positive, 0 negative.
        score_N: higher means more positive.

    Returns:
        the points from (0, 0) to (1, 1); None where only one class is there.
    """
    hit_T, miss_T = _counts(y_N, score_N)
    if not hit_T[-1] or not miss_T[-1]:
        return None
    return Curve(miss_T / miss_T[-1], hit_T / hit_T[-1])


def precision_recall(y_N: Ints, score_N: Floats) -> Curve | None:
    """Return recall and precision at every threshold, strictest first; None without positives.

    The area below the steps is `metrics.average_precision`.
    """
    hit_T, miss_T = _counts(y_N, score_N)
    if not hit_T[-1]:
        return None
    hit_T, miss_T = hit_T[1:], miss_T[1:]
    return Curve(hit_T / hit_T[-1], hit_T / (hit_T + miss_T))


def calibration(y_N: Ints, p_NC: Floats, bins: int = 10) -> list[Bin]:
    """Return mean probability and frequency in bins of equal width; empty ones are left out.

    Two classes: probability of class 1 against its frequency. More: that of the most probable
    class against how often it is right, as `metrics.calibration_error`.
    """
    if p_NC.shape[1] == 2:
        sure_N, right_N = p_NC[:, 1], y_N == 1
    else:
        sure_N, right_N = p_NC.max(1), p_NC.argmax(1) == y_N
    bin_N = np.minimum((sure_N * bins).astype(int), bins - 1)
    return [
        Bin(float(sure_N[rows].mean()), float(right_N[rows].mean()), int(rows.sum()))
        for b in range(bins)
        if (rows := bin_N == b).any()
    ]


def confusion(y_N: Ints, predicted_N: Ints, n_classes: int) -> Ints:
    """Count slides by class (rows) and answer (columns): int64 (C, C)."""
    table_CC = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(table_CC, (y_N, predicted_N), 1)
    return table_CC


def _counts(y_N: Ints, score_N: Floats) -> tuple[Floats, Floats]:
    """Return how many of each class reach each threshold, (T,), after none at all."""
    order_N = np.argsort(-score_N, kind="stable")
    last_N = np.append(np.diff(score_N[order_N]) != 0, True) if len(order_N) else np.ones(0, bool)
    hit_T = np.cumsum(y_N[order_N] == 1)[last_N]
    miss_T = np.cumsum(y_N[order_N] != 1)[last_N]
    return np.concatenate([[0.0], hit_T]), np.concatenate([[0.0], miss_T])
