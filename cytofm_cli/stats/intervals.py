"""Intervals and paired tests that respect patients.

Legend: N slides, G groups (patients), R bootstrap replicates, M models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# A metric of weights: (…, N) → (…).
Metric = Callable[[Floats | None], Floats]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: of all slides.
        low: end of the interval.
        high: the other end.
        dropped: replicates that were undefined and left out.
    """

    value: float
    low: float
    high: float
    dropped: int = 0

    def record(self) -> dict[str, float | None]:
        """Return plain JSON values; undefined numbers are null."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {key: float(v) if math.isfinite(v) else None for key, v in values.items()}


@dataclass(frozen=True)
class Difference:
    """Second minus first, with its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def group_weights(groups: Sequence[str], replicates: int, seed: int) -> Floats:
    """Draw groups with replacement: how often each slide comes in each replicate.

    Slides of a patient come and go together, so the interval counts patients, not slides.

    Returns:
        float64 (R, N).
    """
    names, group_N = np.unique(np.array(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    return np.asarray(draws[:, group_N], dtype=np.float64)


def bootstrap(metric: Metric, weight_RN: Floats, level: float = 0.95) -> Estimate:
    """Compute a metric with its percentile interval; undefined replicates are left out."""
    tail = (1 - level) / 2
    values = metric(weight_RN)
    known = values[np.isfinite(values)]
    dropped = values.size - known.size
    if not len(known):
        return Estimate(float(metric(None)), math.nan, math.nan, dropped)
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(float(metric(None)), float(low), float(high), dropped)


@dataclass(frozen=True)
class Placements:
    """The AUC of one model, and its variance with and without regard to patients.

    Attributes:
        auc: the AUC.
        n_positive, n_negative: slides of each class.
        positive_groups, negative_groups: patients with slides of each class.
        clustered: variance by patients (Obuchowski 1997), NaN with one patient in a class.
        independent: variance as if every slide were a patient (DeLong 1988), NaN with one slide.
    """

    auc: float
    n_positive: int
    n_negative: int
    positive_groups: int
    negative_groups: int
    clustered: float
    independent: float

    @property
    def slides_a_group(self) -> float:
        """Mean number of slides a patient, of the class where it is larger."""
        return max(self.n_positive / self.positive_groups, self.n_negative / self.negative_groups)


def placements(y_N: Ints, score_N: Floats, groups: Sequence[str]) -> Placements | None:
    """Return the AUC and its variances; None where a class is missing."""
    positive, negative = score_N[None, y_N == 1], score_N[None, y_N == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        return None
    auc_M, covariance = delong_covariance(y_N, score_N[None], groups)
    independent = math.nan
    if m > 1 and n > 1:
        v10, v01 = _placement(positive, negative), 1 - _placement(negative, positive)
        independent = float(v10.var(ddof=1) / m + v01.var(ddof=1) / n)
    of_group = np.array(groups)
    return Placements(
        auc=float(auc_M[0]),
        n_positive=m,
        n_negative=n,
        positive_groups=len(np.unique(of_group[y_N == 1])),
        negative_groups=len(np.unique(of_group[y_N == 0])),
        clustered=float(covariance[0, 0]),
        independent=independent,
    )


def delong_covariance(y_N: Ints, scores_MN: Floats, groups: Sequence[str]) -> tuple[Floats, Floats]:
    """Compute the AUCs of M models on the same slides and their covariance.

    DeLong et al. (1988) with the clusters of Obuchowski (1997): the placement values of a
    patient's slides are summed first. With one slide a patient it is DeLong's own.

    Returns:
        auc (M,), covariance (M, M); NaN covariance where a class has fewer than two patients.
    """
    positive, negative = scores_MN[:, y_N == 1], scores_MN[:, y_N == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        nothing = np.full(len(scores_MN), np.nan)
        return nothing, np.outer(nothing, nothing)
    v10_MP = _placement(positive, negative)
    v01_MQ = 1 - _placement(negative, positive)
    auc_M = v10_MP.mean(1)
    names, group_N = np.unique(np.array(groups), return_inverse=True)
    sum10_MG = _group_sums(v10_MP - auc_M[:, None], group_N[y_N == 1], len(names))
    sum01_MG = _group_sums(v01_MQ - auc_M[:, None], group_N[y_N == 0], len(names))
    with10 = len(np.unique(group_N[y_N == 1]))
    with01 = len(np.unique(group_N[y_N == 0]))
    if with10 < 2 or with01 < 2:
        return auc_M, np.full((len(auc_M),) * 2, np.nan)
    cross = sum10_MG @ sum01_MG.T * len(names) / (len(names) - 1)
    covariance = (
        (sum10_MG @ sum10_MG.T) * with10 / ((with10 - 1) * m * m)
        + (sum01_MG @ sum01_MG.T) * with01 / ((with01 - 1) * n * n)
        + (cross + cross.T) / (m * n)
    )
    return auc_M, covariance


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several comparisons (Holm 1979); order is kept."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, (len(p_values) - rank) * float(p_values[index]))
        adjusted[index] = min(1.0, worst)
    return adjusted


def _placement(of_MP: Floats, among_MQ: Floats) -> Floats:
    """Return for each value the share of the others below it, ties half, by ranks."""
    placed = np.empty_like(of_MP)
    for model, (values, others) in enumerate(zip(of_MP, among_MQ, strict=True)):
        ordered = np.sort(others)
        below = np.searchsorted(ordered, values, "left")
        placed[model] = (below + np.searchsorted(ordered, values, "right")) / (2 * len(others))
    return placed


def _group_sums(values_MK: Floats, group_K: NDArray[np.intp], n_groups: int) -> Floats:
    return np.stack([np.bincount(group_K, row, minlength=n_groups) for row in values_MK])
