"""From the logits of all models to predictions and metrics of a run.

Legend: S slides, C classes, M models, R bootstrap replicates.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.labels import Cohort
from cytofm_cli.stats import cautions as intervals
from cytofm_cli.stats import metrics
from cytofm_cli.stats.judge import Decision, fix_decision
from cytofm_cli.stats.judge import judge as judge_answers
from cytofm_cli.stats.score_intervals import retraining
from cytofm_cli.table_text import TableWriter

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CellResult:
    """What one model says about slides that it was not trained on.

    Attributes:
        fold: number of the outer fold.
        seed: seed of the model; -1 for the one trained on training and validation together.
        validation: slide indices; empty for the retrained one.
        validation_logits_SC: their logits.
        test: slide indices.
        test_logits_SC: their logits.
        best_epoch: the epoch that was kept, from 0.
        history: one record an epoch.
    """

    fold: int
    seed: int
    validation: Ints
    validation_logits_SC: Floats
    test: Ints
    test_logits_SC: Floats
    best_epoch: int
    history: list[dict[str, float]]


def fold_decision(cells: Sequence[CellResult], y_S: Ints, config: MilConfig) -> Decision:
    """Fix temperature and threshold of one fold on the validation slides of its models."""
    return fix_decision(
        np.concatenate([y_S[cell.validation] for cell in cells]),
        np.concatenate([cell.validation_logits_SC for cell in cells]),
        calibrate=config.calibrate,
        rule=config.threshold,
        specificity=config.specificity,
    )


@dataclass(frozen=True, eq=False)
class Pooled:
    """Out-of-fold answers of every tested slide: each from models that never saw it.

    Attributes:
        index: slide indices, ascending.
        p_SC: mean probability over models.
        predicted_S: class indices, by the mean threshold of the folds that tested the slide.
    """

    index: Ints
    p_SC: Floats
    predicted_S: Ints


def pool(
    cells: Sequence[CellResult], decisions: Sequence[Decision], n_classes: int, n_slides: int
) -> Pooled:
    """Average the models of each slide, over seeds and repeats."""
    total = np.zeros((n_slides, n_classes))
    threshold, count = np.zeros(n_slides), np.zeros(n_slides)
    for cell in cells:
        total[cell.test] += decisions[cell.fold].probabilities(cell.test_logits_SC)
        threshold[cell.test] += decisions[cell.fold].threshold
        count[cell.test] += 1
    index = np.flatnonzero(count)
    p_SC = total[index] / count[index, None]
    mean_threshold = threshold[index] / count[index]
    if n_classes == 2:
        predicted = (p_SC[:, 1] >= mean_threshold).astype(np.int64)
    else:
        predicted = p_SC.argmax(1).astype(np.int64)
    return Pooled(index, p_SC, predicted)


def predictions_csv(
    cells: Sequence[CellResult], decisions: Sequence[Decision], cohort: Cohort
) -> str:
    """Write `slide_id,fold,seed,label,prob_<class>…,predicted`: a row a slide and model.

    For two classes `threshold_<positive class>` follows: from it on, the answer is positive.
    """
    text = io.StringIO()
    writer = TableWriter(text)
    head = ["slide_id", "fold", "seed", "label", *(f"prob_{c}" for c in cohort.classes)]
    limit = [] if cohort.positive is None else [f"threshold_{cohort.positive}"]
    writer.writerow([*head, "predicted", *limit])
    for cell in cells:
        p_SC = decisions[cell.fold].probabilities(cell.test_logits_SC)
        predicted = decisions[cell.fold].classes(p_SC)
        threshold = [f"{decisions[cell.fold].threshold:.6f}" for _ in limit]
        for slide, p_C, answer in zip(cell.test.tolist(), p_SC, predicted.tolist(), strict=True):
            writer.writerow(
                [
                    cohort.bags[slide].slide_id,
                    cell.fold,
                    cell.seed,
                    cohort.classes[cohort.y_N[slide]],
                    *(f"{p:.6f}" for p in p_C),
                    cohort.classes[answer],
                    *threshold,
                ]
            )
    return text.getvalue()


def judge(
    pooled: Pooled,
    uncalibrated: Pooled,
    cohort: Cohort,
    config: MilConfig,
    *,
    ordinal: bool,
    folds: int,
) -> dict[str, Any]:
    """Compute every metric with its interval over groups.

    Args:
        pooled: the answers to judge.
        uncalibrated: the same without temperature.
        cohort: labels and groups.
        config: replicates, seed, specificity.
        ordinal: the classes are ordered.
        folds: whose answers were pooled.
    """
    return judge_answers(
        cohort.y_N[pooled.index],
        pooled.p_SC,
        pooled.predicted_S,
        uncalibrated.p_SC,
        [cohort.groups[i] for i in pooled.index.tolist()],
        replicates=config.bootstrap,
        seed=config.seed,
        specificity=config.specificity,
        ordinal=ordinal,
        retrained=retraining(folds),
    )


def spread(
    cells: Sequence[CellResult], decisions: Sequence[Decision], cohort: Cohort
) -> dict[str, Any]:
    """Compute the AUC of each seed (pooled over folds) and of each fold (averaged over seeds)."""
    n, c = len(cohort.y_N), len(cohort.classes)
    by_name: dict[str, Any] = {}
    for key in ("seed", "fold"):
        by: dict[str, float | None] = {}
        for value in sorted({getattr(cell, key) for cell in cells}):
            part = pool([x for x in cells if getattr(x, key) == value], decisions, c, n)
            auc = float(metrics.macro_auc(cohort.y_N[part.index], part.p_SC))
            by[str(value)] = auc if np.isfinite(auc) else None
        by_name[f"auc_by_{key}"] = by
    return by_name


def facts(cohort: Cohort, tested: Ints) -> dict[str, Any]:
    """Name classes, the positive one, and how many slides and groups of each were judged."""
    groups = [cohort.groups[i] for i in tested.tolist()]
    y = cohort.y_N[tested]
    return {
        "classes": list(cohort.classes),
        "positive": cohort.positive,
        "label_column": cohort.label_column,
        "group_column": cohort.group_column,
        "slides": len(tested),
        "groups": len(set(groups)),
        "class_counts": np.bincount(y, minlength=len(cohort.classes)).tolist(),
        "class_groups": intervals.class_groups(y, groups, cohort.classes),
    }


def threshold(
    decisions: Sequence[Decision], cohort: Cohort, config: MilConfig
) -> dict[str, Any] | None:
    """Describe the thresholds of two classes; None for more.

    Returns:
        of which class a probability is compared, by which rule, in each fold and on average.
    """
    if cohort.positive is None:
        return None
    by_fold = [decision.threshold for decision in decisions]
    return {
        "of": cohort.positive,
        "rule": config.threshold,
        "mean": float(np.mean(by_fold)),
        "by_fold": by_fold,
    }


def cohort_notes(cohort: Cohort, tested: Ints | None = None) -> list[str]:
    """Say what was assumed about the cohort and on how much it rests; needs no model.

    Args:
        cohort: labels and groups.
        tested: indices of the slides that are judged; None: all.
    """
    lines = list(cohort.notes)
    if cohort.group_column is None:
        lines.append(
            "the labels have no column of patients (`group`, `patient`, `case_id` …): every slide "
            "is taken as a patient of its own, and slides of one patient may stand on both sides "
            "of a split"
        )
    elif len(set(cohort.groups)) == len(cohort.groups):
        lines.append(f"every slide is its own group: column {cohort.group_column!r} names no two")
    having = intervals.class_groups(cohort.y_N, cohort.groups, cohort.classes)
    lines += [
        f"class {name!r} occurs in {n} groups: within the training part, validation shares a "
        "group with training for it"
        for name, n in having.items()
        if n < 3
    ]
    judged = facts(cohort, np.arange(len(cohort.bags)) if tested is None else tested)
    return [*lines, *intervals.cautions(judged["class_groups"], judged["groups"])]


def interval_notes(judged: Mapping[str, Any], replicates: int) -> list[str]:
    """Say where there is no interval, and what was left out of one.

    Args:
        judged: what `judge` found.
        replicates: of the bootstrap.
    """
    return [
        *intervals.unusable(judged),
        *intervals.left_out(judged["replicates_left_out"], replicates),
    ]
