"""Numbers that judge predicted probabilities.

Every function takes optional weights (…, N), one row a bootstrap replicate, and returns one
number a row: an interval over 2000 replicates is one call.
Legend: N slides, C classes, R replicates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def auc(y_N: Ints, score_N: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute the area under the ROC curve; ties count half.

    The probability that a positive slide scores above a negative one (Mann–Whitney).

    Args:
        y_N: 1 positive, 0 negative.
        score_N: higher means more positive.
        weight_RN: (…, N) weights.

    Returns:
        (…), NaN where only one class has weight.
    """
    positive, negative = _by_threshold(y_N, score_N, weight_RN)
    below = np.cumsum(negative, -1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(-1)
    return _ratio(wins, positive.sum(-1) * negative.sum(-1))


def macro_auc(y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute the AUC: of class 1 for two classes, else the mean one-vs-rest AUC."""
    if p_NC.shape[1] == 2:
        return auc(y_N, p_NC[:, 1], weight_RN)
    each = [auc((y_N == c).astype(np.int64), p_NC[:, c], weight_RN) for c in range(p_NC.shape[1])]
    return np.asarray(np.mean(each, axis=0))


def average_precision(y_N: Ints, score_N: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute the area under the precision-recall steps, Σ (R_k − R_{k−1}) P_k."""
    positive, negative = _by_threshold(y_N, score_N, weight_RN)
    hit, miss = np.cumsum(positive[..., ::-1], -1), np.cumsum(negative[..., ::-1], -1)
    precision = np.divide(hit, hit + miss, out=np.zeros_like(hit), where=hit + miss > 0)
    return _ratio((positive[..., ::-1] * precision).sum(-1), positive.sum(-1))


def macro_average_precision(y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute average precision: of class 1 for two classes, else the one-vs-rest mean."""
    columns = [1] if p_NC.shape[1] == 2 else range(p_NC.shape[1])
    each = [average_precision((y_N == c).astype(int), p_NC[:, c], weight_RN) for c in columns]
    return np.asarray(np.mean(each, axis=0))


def sensitivity_at_specificity(
    y_N: Ints, score_N: Floats, specificity: float, weight_RN: Floats | None = None
) -> Floats:
    """Compute the best sensitivity among thresholds that reach `specificity` on these slides."""
    positive, negative = _by_threshold(y_N, score_N, weight_RN)
    hit, miss = np.cumsum(positive[..., ::-1], -1), np.cumsum(negative[..., ::-1], -1)
    allowed = (1 - specificity) * negative.sum(-1, keepdims=True) + 1e-9
    best = np.where(miss <= allowed, hit, 0).max(-1)
    return np.where(negative.sum(-1) > 0, _ratio(best, positive.sum(-1)), np.nan)


def accuracy(y_N: Ints, predicted_N: Ints, weight_RN: Floats | None = None) -> Floats:
    """Compute the share of slides predicted right."""
    weight = _weights(y_N, weight_RN)
    return _ratio((weight * (y_N == predicted_N)).sum(-1), weight.sum(-1))


def recall(y_N: Ints, predicted_N: Ints, n_classes: int, weight_RN: Floats | None = None) -> Floats:
    """Compute recall: of class 1 (sensitivity) for two classes, else the mean over classes."""
    columns = [1] if n_classes == 2 else range(n_classes)
    return np.asarray(np.mean([class_recall(y_N, predicted_N, c, weight_RN) for c in columns], 0))


def class_recall(
    y_N: Ints, predicted_N: Ints, of_class: int, weight_RN: Floats | None = None
) -> Floats:
    """Compute the share of one class that is found (class 0 of two: specificity)."""
    weight = _weights(y_N, weight_RN) * (y_N == of_class)
    return _ratio((weight * (predicted_N == of_class)).sum(-1), weight.sum(-1))


def brier(y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute the mean squared error of probabilities; two classes: (p − y)², range 0–1."""
    target_NC = np.eye(p_NC.shape[1])[y_N]
    square_N = ((p_NC - target_NC) ** 2).sum(1) / (2 if p_NC.shape[1] == 2 else 1)
    weight = _weights(y_N, weight_RN)
    return _ratio((weight * square_N).sum(-1), weight.sum(-1))


def calibration_error(
    y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None, bins: int = 10
) -> Floats:
    """Compute the expected calibration error over equal-width bins.

    Two classes: probability of class 1 against its frequency. More: confidence against
    accuracy (Guo et al. 2017, eq. 3).
    """
    if p_NC.shape[1] == 2:
        confidence_N, right_N = p_NC[:, 1], (y_N == 1).astype(np.float64)
    else:
        confidence_N, right_N = p_NC.max(1), (p_NC.argmax(1) == y_N).astype(np.float64)
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    weight = _weights(y_N, weight_RN)
    gap = weight * (confidence_N - right_N)
    total = sum(np.abs(gap[..., bin_N == b].sum(-1)) for b in range(bins))
    return _ratio(np.asarray(total), weight.sum(-1))


def quadratic_kappa(
    y_N: Ints, predicted_N: Ints, n_classes: int, weight_RN: Floats | None = None
) -> Floats:
    """Compute Cohen's kappa with quadratic weights, for ordered classes."""
    weight = _weights(y_N, weight_RN)
    onehot_y = np.eye(n_classes)[y_N]
    onehot_p = np.eye(n_classes)[predicted_N]
    total = weight.sum(-1)
    observed = _ratio((weight * (y_N - predicted_N) ** 2).sum(-1), total)
    rows, columns = weight @ onehot_y, weight @ onehot_p
    distance_CC = (np.arange(n_classes)[:, None] - np.arange(n_classes)) ** 2
    chance = np.einsum("...i,ij,...j->...", rows, distance_CC.astype(float), columns)
    return np.asarray(1 - _ratio(observed, _ratio(chance, total**2)))


def softmax(logits_NC: Floats, temperature: float = 1.0) -> Floats:
    """Turn logits into probabilities; a temperature above 1 makes them less sure."""
    scaled = logits_NC / temperature
    shifted = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def fit_temperature(
    logits_NC: Floats,
    y_N: Ints,
    *,
    low: float = 0.25,
    high: float = 8.0,
    weight_N: Floats | None = None,
    target_NC: Floats | None = None,
) -> float:
    """Find the temperature of least log loss (Guo et al. 2017, §4.2), by golden section.

    The log loss is convex in 1/T. The bounds keep a handful of validation slides that happen
    to be separable from making every probability 0 or 1.

    Args:
        logits_NC: logits, or logarithms of probabilities.
        y_N: classes.
        low, high: bounds.
        weight_N: of each row; None: alike.
        target_NC: probabilities that are right, rows sum to 1; None: 1 for the class.
    """
    weight = _weights(y_N, weight_N)
    right_NC = np.eye(logits_NC.shape[1])[y_N] if target_NC is None else target_NC

    def loss(inverse: float) -> float:
        logs = logits_NC * inverse
        peak = logs.max(1)
        total = peak + np.log(np.exp(logs - peak[:, None]).sum(1))
        return float(np.average(total - (logs * right_NC).sum(1), weights=weight))

    ratio = (5**0.5 - 1) / 2
    a, b = 1 / high, 1 / low
    for _ in range(60):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, right) if loss(left) <= loss(right) else (left, b)
    return 2 / (a + b)


def youden_threshold(y_N: Ints, score_N: Floats) -> float:
    """Return the threshold of largest sensitivity + specificity; of equals, nearest to 0.5.

    Thresholds lie halfway between neighbouring scores; `score >= threshold` is positive.
    """
    values = np.unique(score_N)
    cuts = np.concatenate([(values[1:] + values[:-1]) / 2, [0.5]])
    if len(values) < 2 or len(np.unique(y_N)) < 2:
        return 0.5
    called = score_N >= cuts[:, None]
    gain = called[:, y_N == 1].mean(1) - called[:, y_N == 0].mean(1)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[np.abs(cuts[best] - 0.5).argmin()]])


def specificity_threshold(y_N: Ints, score_N: Floats, specificity: float) -> float:
    """Return the lowest threshold that reaches `specificity` on these slides."""
    negatives = np.sort(score_N[y_N == 0])
    if not len(negatives):
        return 0.5
    kept = int(np.ceil(specificity * len(negatives) - 1e-9))
    if kept == 0:
        return 0.0
    above = score_N[score_N > negatives[kept - 1]]
    upper = above.min() if len(above) else 1.0
    return float((negatives[kept - 1] + upper) / 2)


def _weights(y_N: Ints, weight_RN: Floats | None) -> Floats:
    return np.ones(len(y_N)) if weight_RN is None else np.asarray(weight_RN, dtype=np.float64)


def _by_threshold(y_N: Ints, score_N: Floats, weight_RN: Floats | None) -> tuple[Floats, Floats]:
    """Sum the positive and negative weights at each distinct score, ascending."""
    order = np.argsort(score_N, kind="stable")
    score, y = score_N[order], y_N[order]
    weight = _weights(y_N, weight_RN)[..., order]
    starts = np.flatnonzero(np.concatenate([[True], score[1:] != score[:-1]]))
    positive = np.add.reduceat(weight * (y == 1), starts, axis=-1)
    return positive, np.add.reduceat(weight * (y != 1), starts, axis=-1)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0))
