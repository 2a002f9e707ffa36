"""From logits to answers, and how good the answers are, each metric with its interval.

Legend: N slides, C classes, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cytofm_cli.stats import metrics
from cytofm_cli.stats.intervals import Estimate, bootstrap, group_weights
from cytofm_cli.stats.metrics import Floats, Ints
from cytofm_cli.stats.score_intervals import (
    auc_interval,
    macro_auc_interval,
    recall_interval,
    share_interval,
)


@dataclass(frozen=True)
class Decision:
    """How the logits of one fold's models become answers; fixed on validation alone.

    Attributes:
        temperature: divides the logits.
        threshold: of the positive class, for two classes.
    """

    temperature: float
    threshold: float

    def probabilities(self, logits_NC: Floats) -> Floats:
        """Return calibrated probabilities."""
        return metrics.softmax(logits_NC, self.temperature)

    def classes(self, p_NC: Floats) -> Ints:
        """Return the predicted class indices."""
        return decide(p_NC, self.threshold)


def decide(p_NC: Floats, threshold: float) -> Ints:
    """Return class indices: by threshold for two classes, else the most probable."""
    if p_NC.shape[1] == 2:
        return np.asarray(p_NC[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(p_NC.argmax(1), dtype=np.int64)


def fix_decision(
    y_N: Ints, logits_NC: Floats, *, calibrate: bool, rule: str, specificity: float
) -> Decision:
    """Fix temperature and threshold on slides that no model trained on.

    Args:
        y_N: class indices.
        logits_NC: what the models say.
        calibrate: fit the temperature.
        rule: of the threshold of two classes: "youden", "specificity", or else 0.5.
        specificity: for the rule of that name.
    """
    both = len(np.unique(y_N)) > 1
    temperature = metrics.fit_temperature(logits_NC, y_N) if calibrate and both else 1.0
    p_NC = metrics.softmax(logits_NC, temperature)
    threshold = 0.5
    if p_NC.shape[1] == 2 and both and rule == "youden":
        threshold = metrics.youden_threshold(y_N, p_NC[:, 1])
    elif p_NC.shape[1] == 2 and both and rule == "specificity":
        threshold = metrics.specificity_threshold(y_N, p_NC[:, 1], specificity)
    return Decision(temperature, threshold)


def judge(
    y_N: Ints,
    p_NC: Floats,
    predicted_N: Ints,
    raw_NC: Floats,
    groups: Sequence[str],
    *,
    replicates: int,
    seed: int,
    specificity: float,
    ordinal: bool,
    retrained: float = 0.0,
) -> dict[str, Any]:
    """Compute every metric with its interval over groups.

    AUCs, accuracy, recall and specificity have score intervals (`stats.score_intervals`), the
    others the percentile bootstrap over groups.

    Args:
        y_N: class indices.
        p_NC: calibrated probabilities.
        predicted_N: answers.
        raw_NC: probabilities without temperature.
        groups: patient of each slide.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        specificity: at which the sensitivity is told.
        ordinal: the classes are ordered.
        retrained: see `score_intervals.retraining`.

    Returns:
        by metric `{value, low, high}`; `replicates_left_out` counts by metric those that were
        undefined.
    """
    weight_RN = group_weights(groups, replicates, seed)
    wanted = _bootstrapped(y_N, p_NC, predicted_N, raw_NC, specificity, ordinal=ordinal)
    estimates = score_intervals_of(
        y_N, p_NC, predicted_N, groups, ordinal=ordinal, retrained=retrained
    ) | {name: bootstrap(of, weight_RN) for name, of in wanted.items()}
    found: dict[str, Any] = {name: estimate.record() for name, estimate in estimates.items()}
    found["replicates_left_out"] = {name: e.dropped for name, e in estimates.items() if e.dropped}
    return found


def score_intervals_of(
    y_N: Ints,
    p_NC: Floats,
    predicted_N: Ints,
    groups: Sequence[str],
    *,
    ordinal: bool,
    retrained: float,
) -> dict[str, Estimate]:
    """Compute AUCs and shares with their score intervals; see `judge`."""
    n_classes = p_NC.shape[1]
    recall = partial(recall_interval, y_N, predicted_N, groups, n_classes, retrained=retrained)
    estimates = {
        "auc": macro_auc_interval(y_N, p_NC, groups, retrained=retrained),
        "accuracy": share_interval(y_N == predicted_N, groups, retrained=retrained),
        "recall": recall(only=1 if n_classes == 2 else None),
    }
    if n_classes == 2:
        estimates["specificity"] = recall(only=0)
    if ordinal:
        for cut in range(1, n_classes):
            above_N, score_N = (y_N >= cut).astype(np.int64), p_NC[:, cut:].sum(1)
            estimates[f"auc_from_class_{cut}"] = auc_interval(
                above_N, score_N, groups, retrained=retrained
            )
    return estimates


def _bootstrapped(
    y: Ints, p: Floats, hard: Ints, raw: Floats, specificity: float, *, ordinal: bool
) -> dict[str, Callable[[Floats | None], Floats]]:
    wanted: dict[str, Callable[[Floats | None], Floats]] = {
        "average_precision": partial(metrics.macro_average_precision, y, p),
        "brier": partial(metrics.brier, y, p),
        "ece": partial(metrics.calibration_error, y, p),
        "brier_uncalibrated": partial(metrics.brier, y, raw),
        "ece_uncalibrated": partial(metrics.calibration_error, y, raw),
    }
    if p.shape[1] == 2:
        wanted[f"sensitivity_at_specificity_{specificity:g}"] = partial(
            metrics.sensitivity_at_specificity, y, p[:, 1], specificity
        )
    if ordinal:
        wanted["quadratic_kappa"] = partial(metrics.quadratic_kappa, y, hard, p.shape[1])
    return wanted
