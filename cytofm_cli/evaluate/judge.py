"""How good held-out answers are, how sure that is, and which encoder is better.

Intervals and tests resample slides: cells of a slide look alike and come and go together.
Slides are drawn within strata, so that no replicate lacks a rare class.
Legend: N instances, S slides, C classes, R replicates or draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics
from cytofm_cli.stats.intervals import Difference, Estimate, Metric

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
        difference: with its interval over slides and p-value.
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


def _accuracy(y_N: Ints, p_NC: Floats, weight_RN: Floats | None = None) -> Floats:
    return metrics.accuracy(y_N, p_NC.argmax(1).astype(np.int64), weight_RN)


METRICS: dict[str, Callable[[Ints, Floats, Floats | None], Floats]] = {
    "auc": metrics.macro_auc,
    "balanced_accuracy": balanced_accuracy,
    "average_precision": metrics.macro_average_precision,
    "accuracy": _accuracy,
}


def default_folds(groups: Sequence[str]) -> int:
    """Return the number of folds: one a group while they are few, else five."""
    n = len(set(groups))
    return n if n <= _MOST_SINGLE_GROUPS else 5


def slide_weights(slides: Sequence[str], y_N: Ints, replicates: int, seed: int) -> Floats:
    """Draw slides with replacement: how often each comes in each replicate.

    Slides are drawn among those with the same rarest class (rare: on few slides), as many as
    there are: so the rarest class of all is never lost.

    Returns:
        float64 (R, S), slides in sorted order.
    """
    names, slide_N = np.unique(np.array(slides), return_inverse=True)
    on_SC = np.zeros((len(names), int(y_N.max()) + 1), dtype=bool)
    on_SC[slide_N, y_N] = True
    slides_C = on_SC.sum(0)
    stratum_S = np.where(on_SC, slides_C, len(names) + 1).argmin(1)
    rng = np.random.default_rng(seed)
    weight_RS = np.zeros((replicates, len(names)))
    for stratum in np.unique(stratum_S):
        among = np.flatnonzero(stratum_S == stratum)
        share = np.full(len(among), 1 / len(among))
        weight_RS[:, among] = rng.multinomial(len(among), share, size=replicates)
    return weight_RS


def over_slides(metric: Metric, slides: Sequence[str]) -> Metric:
    """Turn a metric of instance weights (…, N) into one of slide weights (…, S)."""
    slide_N = np.unique(np.array(slides), return_inverse=True)[1]
    rows = max(1, _CHUNK_VALUES // len(slide_N))

    def of_slides(weight_RS: Floats | None) -> Floats:
        if weight_RS is None:
            return metric(None)
        starts = range(0, len(weight_RS), rows)
        return np.concatenate([metric(weight_RS[i : i + rows][:, slide_N]) for i in starts])

    return of_slides


def judge(y_N: Ints, p_NC: Floats, slides: Sequence[str], weight_RS: Floats) -> dict[str, Estimate]:
    """Compute every metric of the held-out answers with its 95 % interval over slides."""
    return {
        name: statistics.bootstrap(over_slides(_bound(name, y_N, p_NC), slides), weight_RS)
        for name in METRICS
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
        values = np.array([float(METRICS[name](y_N, p_NC, None)) for p_NC in p_RNC])
        low, high = np.quantile(values, [0.025, 0.975])
        estimates[name] = Estimate(float(values.mean()), float(low), float(high))
    return estimates


def compare(
    answers: Mapping[tuple[str, str, str], Floats],
    truth: Mapping[str, tuple[Ints, Sequence[str], Floats]],
) -> list[Comparison]:
    """Compare every pair of encoders on every task and probe.

    A paired bootstrap over slides; p-values are corrected for all comparisons made (Holm).

    Args:
        answers: held-out probabilities (N, C) by (encoder, task, probe).
        truth: by task: class indices, slide of each instance, slide weights (R, S).
    """
    rows: list[tuple[str, str, str, str, str, Difference]] = []
    encoders = Counter(key[0] for key in answers)
    for task, probe in dict.fromkeys((task, probe) for _, task, probe in answers):
        y_N, slides, weight_RS = truth[task]
        for metric in COMPARED:
            at = {
                name: over_slides(_bound(metric, y_N, answers[name, task, probe]), slides)
                for name in encoders
            }
            for first, second in combinations(encoders, 2):
                gap = statistics.paired_bootstrap(at[first], at[second], weight_RS)
                rows.append((task, probe, metric, first, second, gap))
    adjusted = statistics.holm([row[-1].p for row in rows])
    return [Comparison(*row, p) for row, p in zip(rows, adjusted, strict=True)]


def _bound(name: str, y_N: Ints, p_NC: Floats) -> Metric:
    return lambda weight_RN: METRICS[name](y_N, p_NC, weight_RN)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
