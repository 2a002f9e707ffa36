"""Compare two models on the same slides: an interval that agrees with its test.

Legend: N slides, R swaps, G groups (patients).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytofm_cli.stats.intervals import Difference, delong_covariance
from cytofm_cli.stats.score_intervals import auc_interval, difference_limits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ALL_SWAPS: Final = 12  # up to so many patients every swap is tried: 4 096


def auc_difference(
    y_N: Ints,
    first_N: Floats,
    second_N: Floats,
    groups: Sequence[str],
    *,
    retrained: float = 0.0,
    swaps: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Compare the AUCs of two models on the same slides (second − first).

    The interval combines those of both AUCs (`difference_limits`) with DeLong's correlation. p
    is that of swapping the models' answers patient by patient (Bandos, Rockette & Gur, Stat Med
    24:2873, 2005): ranks of either model, so that their scales do not matter.

    Args:
        y_N: 1 positive, 0 negative.
        first_N, second_N: scores, higher means more positive.
        groups: patient of each slide.
        retrained: see `score_intervals.retraining`.
        swaps: how many are drawn where there are too many for all.
        seed: of those.
        level: of the interval.
    """
    auc_M, covariance = delong_covariance(y_N, np.stack([first_N, second_N]), groups)
    if not np.isfinite(auc_M).all():
        return Difference(math.nan, math.nan, math.nan, 1.0)
    limits = [
        auc_interval(y_N, score_N, groups, retrained=retrained, level=level)
        for score_N in (first_N, second_N)
    ]
    low, high = difference_limits(limits[0], limits[1], _correlation(covariance))
    ranks = [stats.rankdata(score_N) for score_N in (first_N, second_N)]
    p = swap_test(y_N, ranks[0], ranks[1], groups, swaps=swaps, seed=seed)
    return Difference(float(auc_M[1] - auc_M[0]), low, high, p)


def swap_test(
    y_N: Ints,
    first_N: Floats,
    second_N: Floats,
    groups: Sequence[str],
    *,
    swaps: int = 2000,
    seed: int = 0,
) -> float:
    """Return the two-sided p of a difference of AUCs when answers are swapped by patient.

    Half of the swaps that come to the same difference count (mid-p, Lancaster 1961): with few
    patients the test would hardly ever reject otherwise.
    """
    _, group_N = np.unique(np.array(groups), return_inverse=True)
    swap_RG = _swaps(int(group_N.max()) + 1, swaps, seed)
    swap_RN = swap_RG[:, group_N]
    gap_R = _auc_rows(y_N, np.where(swap_RN, first_N, second_N)) - _auc_rows(
        y_N, np.where(swap_RN, second_N, first_N)
    )
    gap = abs(float(gap_R[0]))  # the first row swaps nobody
    larger = float((np.abs(gap_R) > gap + 1e-12).sum())
    equal = float((np.abs(np.abs(gap_R) - gap) <= 1e-12).sum())
    return min(1.0, (larger + equal / 2) / len(gap_R)) if gap > 1e-12 else 1.0


def _swaps(n_groups: int, swaps: int, seed: int) -> NDArray[np.bool_]:
    """Return bool (R, G), the first row all False: all swaps, or some."""
    if n_groups <= _ALL_SWAPS:
        codes = np.arange(2**n_groups)
        return (codes[:, None] >> np.arange(n_groups)) & 1 == 1
    drawn = np.random.default_rng(seed).random((swaps, n_groups)) < 0.5
    drawn[0] = False
    return np.asarray(drawn)


def _auc_rows(y_N: Ints, score_RN: Floats) -> Floats:
    """Return the AUC of each row, by ranks."""
    rank_RN = stats.rankdata(score_RN, axis=1)
    positive = y_N == 1
    m, n = int(positive.sum()), int((~positive).sum())
    wins = rank_RN[:, positive].sum(1) - m * (m + 1) / 2
    return np.asarray(wins / (m * n))


def _correlation(covariance: Floats) -> float:
    """Return how two AUCs go together; 0 where one of them has no variance."""
    both = covariance[0, 0] * covariance[1, 1]
    if not np.isfinite(both) or both <= 0:
        return 0.0
    return float(np.clip(covariance[0, 1] / math.sqrt(both), -1.0, 1.0))
