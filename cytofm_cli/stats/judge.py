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
from cytofm_cli.stats.intervals import bootstrap, delong_interval, group_weights
from cytofm_cli.stats.metrics import Floats, Ints


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
) -> dict[str, Any]:
    """Compute every metric with its interval over groups.

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

    Returns:
        by metric `{value, low, high}`; `replicates_left_out` counts by metric those that were
        undefined; two classes also have `auc_delong`.
    """
    weight_RN = group_weights(groups, replicates, seed)
    wanted = _metrics(y_N, p_NC, predicted_N, raw_NC, specificity=specificity, ordinal=ordinal)
    estimates = {name: bootstrap(of, weight_RN) for name, of in wanted.items()}
    record: dict[str, Any] = {name: estimate.record() for name, estimate in estimates.items()}
    record["replicates_left_out"] = {name: e.dropped for name, e in estimates.items() if e.dropped}
    if p_NC.shape[1] == 2:
        record["auc_delong"] = delong_interval(y_N, p_NC[:, 1], groups).record()
    return record


def _metrics(
    y: Ints, p: Floats, hard: Ints, raw: Floats, *, specificity: float, ordinal: bool
) -> dict[str, Callable[[Floats | None], Floats]]:
    n_classes = p.shape[1]
    wanted: dict[str, Callable[[Floats | None], Floats]] = {
        "auc": partial(metrics.macro_auc, y, p),
        "accuracy": partial(metrics.accuracy, y, hard),
        "recall": partial(metrics.recall, y, hard, n_classes),
        "average_precision": partial(metrics.macro_average_precision, y, p),
        "brier": partial(metrics.brier, y, p),
        "ece": partial(metrics.calibration_error, y, p),
        "brier_uncalibrated": partial(metrics.brier, y, raw),
        "ece_uncalibrated": partial(metrics.calibration_error, y, raw),
    }
    if n_classes == 2:
        wanted["specificity"] = partial(metrics.class_recall, y, hard, 0)
        wanted[f"sensitivity_at_specificity_{specificity:g}"] = partial(
            metrics.sensitivity_at_specificity, y, p[:, 1], specificity
        )
    if ordinal:
        wanted["quadratic_kappa"] = partial(metrics.quadratic_kappa, y, hard, n_classes)
        for cut in range(1, n_classes):
            wanted[f"auc_from_class_{cut}"] = partial(
                metrics.auc, (y >= cut).astype(np.int64), p[:, cut:].sum(1)
            )
    return wanted
