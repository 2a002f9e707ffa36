"""How good held-out classes of cells are: discrimination, calibration, and what abstaining buys.

Legend: N cells, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.stats import metrics
from cytofm_cli.stats.score_intervals import (
    auc_interval,
    macro_auc_interval,
    recall_interval,
    share_interval,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class Judged:
    """Held-out answers and what is right.

    Attributes:
        y_N: classes.
        said_N: answers.
        p_NC: probabilities.
        rank_NC: what orders cells: probabilities before calibration, or of one-class the distance.
        groups: of each cell.
        weight_N: of each cell where probabilities are judged; as it was fitted.
        retrained: see `score_intervals.retraining`.
    """

    y_N: Ints
    said_N: Ints
    p_NC: Floats
    rank_NC: Floats
    groups: tuple[str, ...]
    weight_N: Floats
    retrained: float


def judge(of: Judged, classes: Sequence[str], *, ordinal: bool) -> dict[str, Any]:
    """Compute the metrics of held-out answers with 95 % intervals over groups; plain JSON."""
    n_classes, groups = len(classes), of.groups
    how: dict[str, Any] = {"retrained": of.retrained}
    hit_N = of.said_N == of.y_N
    whole = {
        "auc": macro_auc_interval(of.y_N, of.rank_NC, groups, **how),
        "balanced_accuracy": recall_interval(of.y_N, of.said_N, groups, n_classes, **how),
        "accuracy": share_interval(hit_N, groups, **how),
    }
    of_class = {}
    for c, name in enumerate(classes):
        recall = recall_interval(of.y_N, of.said_N, groups, n_classes, only=c, **how)
        is_c = (of.y_N == c).astype(np.int64)
        auc = auc_interval(is_c, of.rank_NC[:, c], groups, **how)
        said = int((of.said_N == c).sum())
        right = int((hit_N & (of.said_N == c)).sum())
        of_class[name] = {
            "cells": int(is_c.sum()),
            "recall": recall.record(),
            "precision": right / said if said else None,
            "auc": auc.record(),
        }
    table_CC = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(table_CC, (of.y_N, of.said_N), 1)
    told: dict[str, Any] = {name: value.record() for name, value in whole.items()}
    if ordinal:
        told["quadratic_kappa"] = _finite(
            float(metrics.quadratic_kappa(of.y_N, of.said_N, n_classes))
        )
    return {
        **told,
        "classes": of_class,
        "confusion": table_CC.tolist(),
    }


def calibration(y_N: Ints, p_NC: Floats, weight_N: Floats) -> dict[str, float]:
    """Compute the expected calibration error (10 bins) and the Brier score."""
    return {
        "ece": float(metrics.calibration_error(y_N, p_NC, weight_N)),
        "brier": float(metrics.brier(y_N, p_NC, weight_N)),
    }


def coverage(
    y_N: Ints, said_N: Ints, p_NC: Floats, thresholds: Sequence[float] = THRESHOLDS
) -> list[dict[str, float | None]]:
    """Say how many cells are answered above each probability, and how many of those rightly.

    Returns:
        a row a threshold: `threshold`, `coverage` (share answered), `accuracy` and
        `balanced_accuracy` (mean over the classes that are left) of the answered ones; None for
        none.
    """
    sure_N = p_NC.max(1)
    rows: list[dict[str, float | None]] = []
    for threshold in sorted(set(thresholds)):
        kept = sure_N >= threshold
        hit = y_N[kept] == said_N[kept]
        recalls = [hit[y_N[kept] == c].mean() for c in np.unique(y_N[kept])]
        rows.append(
            {
                "threshold": threshold,
                "coverage": float(kept.mean()),
                "accuracy": float(hit.mean()) if kept.any() else None,
                "balanced_accuracy": float(np.mean(recalls)) if recalls else None,
            }
        )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
