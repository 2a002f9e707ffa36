"""Intervals of AUCs and shares that hold their level with few patients and at the border.

Each is a score interval: the values θ for which the estimate lies within t standard errors,
the error taken at θ and not at the estimate. So it never leaves [0, 1], and where everything
was right it is one-sided instead of without width. Patients count through an effective number
of slides, models that were trained on each other's test slides through `Retrained`.
How often they hold the truth: `tests/bench/bench_intervals.py`, table in docs/statistics.md.

Legend: N slides, G groups (patients), θ the true value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from cytofm_cli.stats.intervals import Estimate, placements

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def auc_interval(
    y_N: Ints,
    score_N: Floats,
    groups: Sequence[str],
    *,
    retrained: float = 0.0,
    level: float = 0.95,
) -> Estimate:
    """Compute the AUC with a score interval over patients.

    Method 5 of Newcombe (Stat Med 25:559, 2006), the variance of Hanley & McNeil (Radiology
    143:29, 1982) at θ with both class sizes set to their mean in its numerator. Class sizes are
    divided by the design effect: the clustered variance of Obuchowski (Biometrics 53:567, 1997)
    over DeLong's, at least 1 and at most the slides a patient. Where it cannot be told
    (separated classes, a class of one patient) it is the slides a patient.

    Args:
        y_N: 1 positive, 0 negative.
        score_N: higher means more positive.
        groups: patient of each slide.
        retrained: see `retraining`.
        level: of the interval.

    Returns:
        the AUC; NaN where a class is missing.
    """
    parts = placements(y_N, score_N, groups)
    if parts is None:
        return Estimate(math.nan, math.nan, math.nan)
    n_groups = len(set(groups))
    effect = design_effect(parts.clustered, parts.independent, parts.slides_a_group, n_groups)
    n_positive = max(1.0, parts.n_positive / effect)
    n_negative = max(1.0, parts.n_negative / effect)
    degrees = parts.positive_groups + parts.negative_groups - 2

    def variance(theta: float) -> float:
        mean = (n_positive + n_negative) / 2
        bracket = 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return theta * (1 - theta) / (n_positive * n_negative) * bracket

    return _invert(parts.auc, variance, degrees, retrained, level)


def share_interval(
    hit_N: Bools, groups: Sequence[str], *, retrained: float = 0.0, level: float = 0.95
) -> Estimate:
    """Compute a share of slides (accuracy, recall) with a Wilson interval over patients.

    Wilson (JASA 22:209, 1927) with the effective sample of Korn & Graubard (Surv Methodol
    24:193, 1998): slides divided by the design effect, Student's quantile over patients. Where
    all are hits, or none, patients are counted, not slides.

    Args:
        hit_N: which slides count; of a recall, the slides of that class only.
        groups: patient of each slide.
        retrained: see `retraining`.
        level: of the interval.

    Returns:
        the share; NaN without slides.
    """
    n = len(hit_N)
    if not n:
        return Estimate(math.nan, math.nan, math.nan)
    share = float(np.mean(hit_N))
    _, group_N = np.unique(np.array(groups), return_inverse=True)
    n_groups = int(group_N.max()) + 1
    independent = share * (1 - share) / n
    sums_G = np.bincount(group_N, hit_N - share)
    clustered = math.nan
    if n_groups > 1:
        clustered = float(sums_G @ sums_G) * n_groups / ((n_groups - 1) * n * n)
    effective = n / design_effect(clustered, independent, n / n_groups, n_groups)
    return _invert(share, lambda t: t * (1 - t) / effective, n_groups - 1, retrained, level)


def macro_auc_interval(
    y_N: Ints, p_NC: Floats, groups: Sequence[str], *, retrained: float = 0.0
) -> Estimate:
    """Compute the AUC of class 1 of two, else the mean of each class against the rest.

    Args:
        y_N: class indices.
        p_NC: probabilities.
        groups: patient of each slide.
        retrained: see `retraining`.
    """
    columns = [1] if p_NC.shape[1] == 2 else range(p_NC.shape[1])
    return mean_interval(
        [
            auc_interval((y_N == c).astype(np.int64), p_NC[:, c], groups, retrained=retrained)
            for c in columns
        ]
    )


def recall_interval(
    y_N: Ints,
    said_N: Ints,
    groups: Sequence[str],
    n_classes: int,
    *,
    only: int | None = None,
    retrained: float = 0.0,
) -> Estimate:
    """Compute the mean over classes of the share of a class that is found, or that of one.

    Args:
        y_N: class indices.
        said_N: answers.
        groups: patient of each slide.
        n_classes: how many there are.
        only: the class; None: the mean over all.
        retrained: see `retraining`.
    """
    of_group = np.array(groups)
    parts = []
    for of_class in range(n_classes) if only is None else [only]:
        rows = y_N == of_class
        hit_N = said_N[rows] == of_class
        parts.append(share_interval(hit_N, of_group[rows].tolist(), retrained=retrained))
    return mean_interval(parts, independent=True)


def mean_interval(parts: Sequence[Estimate], *, independent: bool = False) -> Estimate:
    """Combine estimates, one a class, to their mean with an interval.

    Args:
        parts: the estimates.
        independent: they rest on different slides (recalls): distances to the limits add as
            squares (Zou & Donner, Stat Med 27:1693, 2008). Else they may go together fully
            (one class against the rest): distances add.

    Returns:
        the mean; NaN where one of them is.
    """
    value = float(np.mean([part.value for part in parts]))
    below = np.array([part.value - part.low for part in parts]) / len(parts)
    above = np.array([part.high - part.value for part in parts]) / len(parts)
    if independent:
        return Estimate(value, value - math.hypot(*below), value + math.hypot(*above))
    return Estimate(value, value - float(below.sum()), value + float(above.sum()))


def difference_limits(first: Estimate, second: Estimate, correlation: float) -> tuple[float, float]:
    """Return the limits of second − first from those of both and how they go together.

    MOVER (Zou, Psychol Methods 12:399, 2007).
    """
    gap = second.value - first.value
    down, up = second.value - second.low, second.high - second.value
    down_first, up_first = first.value - first.low, first.high - first.value
    below = down**2 + up_first**2 - 2 * correlation * down * up_first
    above = up**2 + down_first**2 - 2 * correlation * up * down_first
    return gap - math.sqrt(max(0.0, below)), gap + math.sqrt(max(0.0, above))


def retraining(n_folds: int) -> float:
    """Return how much the answers of a cross-validation depend on each other; see `widening`.

    Args:
        n_folds: of the cross-validation; 1 or less: models that saw none of the slides.
    """
    return 0.0 if n_folds < 2 else n_folds / (n_folds - 1)


def widening(theta: float, retrained: float) -> float:
    """Return by how much pooled answers of a cross-validation vary more than independent ones.

    Each slide is answered by a model that learnt from the others, so errors go together. Where
    nothing can be learnt (θ = 0.5) the variance is 1 + K / (K − 1) times as large with K folds
    (Nadeau & Bengio, Mach Learn 52:239, 2003: 1 / K + test / train slides for 1 / K), where all
    can (θ = 1) it is not larger; 4 θ (1 − θ) goes between, fitted by simulation.
    """
    return 1 + retrained * 4 * theta * (1 - theta)


def design_effect(
    clustered: float, independent: float, slides_a_group: float, n_groups: int
) -> float:
    """Return by how much patients with several slides widen a variance, at least 1.

    Few patients differ less from each other than many: the ratio is raised by G / (G − 2).

    Args:
        clustered: variance over patients; NaN if unknown.
        independent: variance as if every slide were a patient; 0 at the border.
        slides_a_group: the largest it can be.
        n_groups: how many patients.
    """
    most = max(1.0, slides_a_group)
    if not math.isfinite(clustered) or independent <= 0 or n_groups < 3:
        return most
    return min(max(1.0, clustered / independent * n_groups / (n_groups - 2)), most)


def _invert(
    estimate: float,
    variance: Callable[[float], float],
    degrees: float,
    retrained: float,
    level: float,
) -> Estimate:
    """Return all θ within t standard errors of the estimate."""
    quantile = float(stats.t.ppf(0.5 + level / 2, max(1.0, degrees)))

    def beyond(theta: float) -> float:
        widened = variance(theta) * widening(theta, retrained)
        return (estimate - theta) ** 2 - quantile**2 * widened

    return Estimate(estimate, _limit(beyond, estimate, 0.0), _limit(beyond, estimate, 1.0))


def _limit(beyond: Callable[[float], float], estimate: float, end: float) -> float:
    """Return where `beyond` turns positive between the estimate and an end of [0, 1].

    At the end the variance is 0, so it is positive there unless the estimate is the end.
    """
    if estimate == end:
        return end
    inside = estimate if 0 < estimate < 1 else estimate + math.copysign(1e-9, end - estimate)
    return float(optimize.brentq(beyond, inside, end, xtol=1e-9))
