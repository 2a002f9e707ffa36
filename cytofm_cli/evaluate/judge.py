"""How good held-out answers are, how sure that is, and which encoder is better.

Intervals and tests are over groups (patients, blocks of staining; slides where none are given):
cells of a group look alike and come and go together.
Legend: N instances, G groups, C classes, R replicates or draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics
from cytofm_cli.stats.intervals import Difference, Estimate, Metric
from cytofm_cli.stats.paired import auc_difference, recall_difference
from cytofm_cli.stats.score_intervals import (
    macro_auc_interval,
    recall_interval,
    share_interval,
    widening,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_CHUNK_VALUES = 4_000_000  # weights of replicates × instances held at a time
_MOST_SINGLE_GROUPS = 10

COMPARED = ("auc", "balanced_accuracy")


@dataclass(frozen=True)
class Comparison:
    """Two encoders on the same instances, second minus first.

    Attributes:
        task: name of the task.
        probe: name of the probe.
        metric: what differs.
        first: name of the one encoder.
        second: name of the other.
        difference: with its interval over groups and p-value.
        p_adjusted: p after Holm's correction over all comparisons of the run.
    """

    task: str
    probe: str
    metric: str
    first: str
    second: str
    difference: Difference
    p_adjusted: float

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        gap = {key: _plain(value) for key, value in self.difference.__dict__.items()}
        rest = {key: value for key, value in self.__dict__.items() if key != "difference"}
        return rest | gap


def balanced_accuracy(y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None) -> Floats:
    """Compute the mean over classes of the share of a class that is found; chance is 1 / C."""
    predicted_N = p_NC.argmax(1).astype(np.int64)
    each = [metrics.class_recall(y_N, predicted_N, c, weight_RN) for c in range(p_NC.shape[1])]
    return np.asarray(np.mean(each, axis=0))


METRICS = ("auc", "balanced_accuracy", "average_precision", "accuracy")
_DRAWN: dict[str, Callable[[Ints, Floats], Floats]] = {
    "auc": metrics.macro_auc,
    "balanced_accuracy": balanced_accuracy,
}


def default_folds(groups: Sequence[str]) -> int:
    """Return the number of folds: one a group while they are few, else five."""
    n = len(set(groups))
    return n if n <= _MOST_SINGLE_GROUPS else 5


@dataclass(frozen=True, eq=False)
class Truth:
    """What the answers of a task are judged by.

    Attributes:
        y_N: class indices.
        groups: group of each instance.
        retrained: how much answers depend on each other; see `score_intervals.retraining`.
    """

    y_N: Ints
    groups: tuple[str, ...]
    retrained: float


def group_weights(truth: Truth, replicates: int, seed: int) -> Floats:
    """Draw groups with replacement: how often each comes in each replicate.

    Groups are drawn among those with the same rarest class (rare: in few groups), as many as
    there are: so the rarest class of all is never lost.

    Returns:
        float64 (R, G), groups in sorted order.
    """
    names, group_N = np.unique(np.array(truth.groups), return_inverse=True)
    in_GC = np.zeros((len(names), int(truth.y_N.max()) + 1), dtype=bool)
    in_GC[group_N, truth.y_N] = True
    stratum_G = np.where(in_GC, in_GC.sum(0), len(names) + 1).argmin(1)
    rng = np.random.default_rng(seed)
    weight_RG = np.zeros((replicates, len(names)))
    for stratum in np.unique(stratum_G):
        among = np.flatnonzero(stratum_G == stratum)
        share = np.full(len(among), 1 / len(among))
        weight_RG[:, among] = rng.multinomial(len(among), share, size=replicates)
    return weight_RG


def over_groups(metric: Metric, groups: Sequence[str]) -> Metric:
    """Turn a metric of instance weights (…, N) into one of group weights (…, G)."""
    group_N = np.unique(np.array(groups), return_inverse=True)[1]
    rows = max(1, _CHUNK_VALUES // len(group_N))

    def of_groups(weight_RG: Floats | None) -> Floats:
        if weight_RG is None:
            return metric(None)
        starts = range(0, len(weight_RG), rows)
        return np.concatenate([metric(weight_RG[i : i + rows][:, group_N]) for i in starts])

    return of_groups


def judge(truth: Truth, p_NC: Floats, weight_RG: Floats) -> dict[str, Estimate]:
    """Compute every metric of the held-out answers with its 95 % interval over groups.

    Args:
        truth: what is right.
        p_NC: held-out probabilities.
        weight_RG: draws of groups, for the average precision; the others have score intervals.
    """
    y_N, groups, n_classes = truth.y_N, truth.groups, p_NC.shape[1]
    said_N = p_NC.argmax(1).astype(np.int64)
    precision = over_groups(lambda w: metrics.macro_average_precision(y_N, p_NC, w), groups)
    how: dict[str, Any] = {"retrained": truth.retrained}
    return {
        "auc": macro_auc_interval(y_N, p_NC, groups, **how),
        "balanced_accuracy": recall_interval(y_N, said_N, groups, n_classes, **how),
        "average_precision": statistics.bootstrap(precision, weight_RG),
        "accuracy": share_interval(said_N == y_N, groups, **how),
    }


def per_group(y_N: Ints, p_NC: Floats, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compute the metrics inside each group, over the classes that it has.

    The AUC is None in a group of one class.
    """
    metrics_of = {}
    for group in sorted(set(groups)):
        rows = np.array([name == group for name in groups])
        y, p_C = y_N[rows], p_NC[rows]
        recalls = [(p_C.argmax(1)[y == c] == c).mean() for c in np.unique(y)]
        classes = [1] if p_NC.shape[1] == 2 else np.unique(y).tolist()
        aucs = [metrics.auc((y == c).astype(np.int64), p_C[:, c]) for c in classes]
        auc = _plain(float(np.mean(aucs)))
        counts = np.bincount(y, minlength=p_NC.shape[1]).tolist()
        metrics_of[group] = {
            "instances": counts,
            "auc": auc,
            "balanced_accuracy": float(np.mean(recalls)),
        }
    return metrics_of


def over_draws(y_N: Ints, p_RNC: Floats) -> dict[str, Estimate]:
    """Compute AUC and balanced accuracy: mean over the draws, and where 95 % of them lie."""
    estimates = {}
    for name in COMPARED:
        values = np.array([float(_DRAWN[name](y_N, p_NC)) for p_NC in p_RNC])
        low, high = np.quantile(values, [0.025, 0.975])
        estimates[name] = Estimate(float(values.mean()), float(low), float(high))
    return estimates


def compare(
    answers: Mapping[tuple[str, str, str], Floats],
    truths: Mapping[str, Truth],
    *,
    swaps: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every pair of encoders on every task and probe.

    Answers are swapped by group (`stats.paired`); p-values are corrected for all comparisons
    made (Holm).

    Args:
        answers: held-out probabilities (N, C) by (encoder, task, probe).
        truths: by task.
        swaps: how many the test draws where there are more than it can try.
        seed: of those.
    """
    rows: list[tuple[str, str, str, str, str, Difference]] = []
    encoders = Counter(key[0] for key in answers)
    for task, probe in dict.fromkeys((task, probe) for _, task, probe in answers):
        truth = truths[task]
        how: dict[str, Any] = {"retrained": truth.retrained, "swaps": swaps, "seed": seed}
        for first, second in combinations(encoders, 2):
            p_NC, q_NC = answers[first, task, probe], answers[second, task, probe]
            said = p_NC.argmax(1).astype(np.int64), q_NC.argmax(1).astype(np.int64)
            gaps = {
                "auc": auc_difference(truth.y_N, p_NC, q_NC, truth.groups, **how),
                "balanced_accuracy": recall_difference(
                    truth.y_N, *said, truth.groups, p_NC.shape[1], **how
                ),
            }
            rows += [(task, probe, metric, first, second, gaps[metric]) for metric in COMPARED]
    adjusted = statistics.holm([row[-1].p for row in rows])
    return [Comparison(*row, p) for row, p in zip(rows, adjusted, strict=True)]


def change_of_auc(
    truth: Truth, first_NC: Floats, second_NC: Floats, *, swaps: int = 2000, seed: int = 0
) -> Difference:
    """Compare answers of the same models to two versions of the same instances, second − first.

    Their AUCs go together so closely that only the change itself tells how sure it is: its
    interval is that of the jackknife over groups (Student's, by the groups of the class that is
    in fewest), widened as folds were pooled. `stats.paired.auc_difference`, which is for models
    that differ, puts it together from the intervals of both AUCs: too wide here. p is its.

    Args:
        truth: what is right.
        first_NC: probabilities for the one version.
        second_NC: for the other.
        swaps, seed: as of `auc_difference`.

    Returns:
        the change; no interval (NaN) where a class is in one group only.
    """
    y_N, groups = truth.y_N, truth.groups
    how: dict[str, Any] = {"retrained": truth.retrained, "swaps": swaps, "seed": seed}
    change = auc_difference(y_N, first_NC, second_NC, groups, **how)
    if np.array_equal(first_NC, second_NC):
        return change
    n = len(set(groups))
    left_out_GG = 1.0 - np.eye(n)
    first, second = (
        over_groups(lambda w, p=p_NC: metrics.macro_auc(y_N, p, w), groups)  # type: ignore[misc]
        for p_NC in (first_NC, second_NC)
    )
    gap_G = second(left_out_GG) - first(left_out_GG)
    error = math.sqrt((n - 1) / n * float(((gap_G - gap_G.mean()) ** 2).sum()))
    before = float(first(None))
    mean = before + change.value / 2
    fewest = min(len({groups[i] for i in np.flatnonzero(y_N == c)}) for c in np.unique(y_N))
    if fewest < 2:
        return replace(change, low=math.nan, high=math.nan)
    reach = error * math.sqrt(widening(mean, truth.retrained))
    reach *= float(stats.t.ppf(0.975, fewest - 1))
    low, high = max(change.value - reach, -before), min(change.value + reach, 1 - before)
    return replace(change, low=low, high=high)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
