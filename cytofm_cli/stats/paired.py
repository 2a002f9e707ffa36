"""Compare two models on the same slides: an interval and a test that hold their level.

Legend: N slides, C classes, R swaps, G groups (patients).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytofm_cli.stats.intervals import Difference, delong_covariance
from cytofm_cli.stats.metrics import Floats, Ints
from cytofm_cli.stats.score_intervals import (
    difference_limits,
    macro_auc_interval,
    recall_interval,
    widening,
)

_CHUNK_VALUES: Final = 4_000_000  # scores of swaps × slides that are ranked at a time
_ALL_SWAPS: Final = 12  # up to so many patients every swap is tried: 4 096


def auc_difference(
    y_N: Ints,
    first_NC: Floats,
    second_NC: Floats,
    groups: Sequence[str],
    *,
    retrained: float = 0.0,
    swaps: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare the AUCs of two models on the same slides (second − first).

    The interval combines those of both AUCs (`difference_limits`) with DeLong's correlation. p
    comes from swapping the models' answers patient by patient (Bandos, Rockette & Gur, Stat
    Med 24:2873, 2005), as ranks, so that the scales of the models do not matter; answers of a
    cross-validation depend on each other, and its standard score is divided accordingly.

    Args:
        y_N: class indices.
        first_NC, second_NC: probabilities; of two classes the second column counts, of more
            the mean of each class against the rest.
        groups: patient of each slide.
        retrained: see `score_intervals.retraining`.
        swaps: how many are drawn where there are too many for all.
        seed: of those.
    """
    columns = [1] if first_NC.shape[1] == 2 else range(first_NC.shape[1])
    if any(len(np.unique(y_N == c)) < 2 for c in columns):
        return Difference(math.nan, math.nan, math.nan, 1.0)
    if np.array_equal(first_NC, second_NC):
        return Difference(0.0, 0.0, 0.0, 1.0)
    y_CN = np.stack([(y_N == c).astype(np.int64) for c in columns])
    both = [np.stack([p_NC[:, c] for c in columns]) for p_NC in (first_NC, second_NC)]
    first, second = (
        macro_auc_interval(y_N, p_NC, groups, retrained=retrained) for p_NC in (first_NC, second_NC)
    )
    together = [
        _correlation(delong_covariance(y, np.stack(pair), groups)[1])
        for y, *pair in zip(y_CN, *both, strict=True)
    ]
    low, high = difference_limits(first, second, float(np.mean(together)))
    p = swap_test(y_CN, both[0], both[1], groups, swaps=swaps, seed=seed)
    p = widened(p, widening((first.value + second.value) / 2, retrained))
    return Difference(second.value - first.value, low, high, p)


def recall_difference(
    y_N: Ints,
    first_N: Ints,
    second_N: Ints,
    groups: Sequence[str],
    n_classes: int,
    *,
    retrained: float = 0.0,
    swaps: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare the mean recall over classes (balanced accuracy) of two models' answers.

    As `auc_difference`; what goes together is measured by the patients' parts of both means.

    Args:
        y_N: class indices; every class must occur.
        first_N, second_N: answers.
        groups: patient of each slide.
        n_classes: how many there are.
        retrained, swaps, seed: as there.
    """
    _, group_N = np.unique(np.array(groups), return_inverse=True)
    size_C = np.bincount(y_N, minlength=n_classes)
    if not size_C.all():
        return Difference(math.nan, math.nan, math.nan, 1.0)
    if np.array_equal(first_N, second_N):
        return Difference(0.0, 0.0, 0.0, 1.0)
    weight_N = 1 / (n_classes * size_C[y_N])
    first, second = (
        recall_interval(y_N, said_N, groups, n_classes, retrained=retrained)
        for said_N in (first_N, second_N)
    )
    first_G, second_G = (
        np.bincount(group_N, weight_N * (said_N == y_N)) for said_N in (first_N, second_N)
    )
    share_G = np.bincount(group_N, weight_N)
    residual = [sums_G - share_G * sums_G.sum() for sums_G in (first_G, second_G)]
    both = math.sqrt(float(residual[0] @ residual[0]) * float(residual[1] @ residual[1]))
    together = 0.0 if both <= 0 else float(residual[0] @ residual[1]) / both
    low, high = difference_limits(first, second, together)
    swap_RG = _swaps(len(first_G), swaps, seed)
    p = _p_of(np.where(swap_RG, -1.0, 1.0) @ (second_G - first_G), len(first_G))
    p = widened(p, widening((first.value + second.value) / 2, retrained))
    return Difference(second.value - first.value, low, high, p)


def swap_test(
    y_CN: Ints,
    first_CN: Floats,
    second_CN: Floats,
    groups: Sequence[str],
    *,
    swaps: int = 2000,
    seed: int = 0,
) -> float:
    """Return the two-sided p of a difference of AUCs when answers are swapped by patient.

    Half of the swaps that come to the same difference count (mid-p, Lancaster 1961): with few
    patients the test would hardly ever reject otherwise.

    Args:
        y_CN: 1 positive, 0 negative, a row for each AUC of the mean that is compared.
        first_CN, second_CN: scores, a row likewise.
        groups: patient of each slide.
        swaps: how many are drawn where there are more than 4 096.
        seed: of those.
    """
    _, group_N = np.unique(np.array(groups), return_inverse=True)
    swap_RG = _swaps(int(group_N.max()) + 1, swaps, seed)
    gap_R = np.zeros(len(swap_RG))
    rows = max(1, _CHUNK_VALUES // len(group_N))
    for y_N, *scores in zip(y_CN, first_CN, second_CN, strict=True):
        first_N, second_N = (stats.rankdata(score_N) for score_N in scores)
        for start in range(0, len(swap_RG), rows):
            chunk = slice(start, start + rows)
            swap_RN = swap_RG[chunk][:, group_N]
            gap_R[chunk] += _auc_rows(y_N, np.where(swap_RN, first_N, second_N))
            gap_R[chunk] -= _auc_rows(y_N, np.where(swap_RN, second_N, first_N))
    return _p_of(gap_R, swap_RG.shape[1])


def _p_of(gap_R: Floats, n_groups: int) -> float:
    """Return the p of the first of some differences, which swaps nobody, among all of them.

    Where every swap was tried it is the share that goes further, and half of those that go as
    far. Of drawn swaps it is the normal tail by their spread, which no number of draws bounds.
    """
    gap = abs(float(gap_R[0]))
    if gap <= 1e-12:
        return 1.0
    if n_groups > _ALL_SWAPS:
        return float(2 * stats.norm.sf(gap / np.std(gap_R[1:])))
    larger = np.count_nonzero(np.abs(gap_R) > gap + 1e-12)
    equal = np.count_nonzero(np.abs(np.abs(gap_R) - gap) <= 1e-12)
    return (larger + equal / 2) / len(gap_R)


def widened(p: float, factor: float) -> float:
    """Return a two-sided p whose standard score is divided by the root of a variance factor."""
    return float(2 * stats.norm.sf(stats.norm.isf(p / 2) / math.sqrt(factor)))


def _swaps(n_groups: int, swaps: int, seed: int) -> NDArray[np.bool_]:
    """Return bool (R, G), the first row all False: all swaps, or some."""
    if n_groups <= _ALL_SWAPS:
        codes = np.arange(2**n_groups)
        return np.asarray((codes[:, None] >> np.arange(n_groups)) & 1 == 1)
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
