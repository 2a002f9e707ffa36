"""The charts of a report, as SVG.

Legend: S slides, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cytofm_cli.pictures.plot import Chart, room_for
from cytofm_cli.report.answers import RunAnswers
from cytofm_cli.stats import curves
from cytofm_cli.stats.cautions import interval_text
from cytofm_cli.stats.compare import Comparison

_STRIP: Final = 400  # slides, up to which each is a point
_BINS: Final = 25
_ROW_PX: Final = 46


def number(value: float | None, form: str = ".3f") -> str:
    """Write a number of metrics.json; – for what is not defined."""
    return "–" if value is None else f"{value:{form}}"


def estimate(value: dict[str, Any] | None) -> str:
    """Write a metric with its interval: `0.812 [0.700, 0.901]`."""
    if value is None or value["value"] is None:
        return "–"
    return f"{value['value']:.3f} {interval_text(value['low'], value['high'])}"


def difference_text(record: dict[str, float | None]) -> str:
    """Write a difference with its interval: `+0.031 [-0.020, +0.082]`."""
    if record["value"] is None:
        return "–"
    return f"{record['value']:+.3f} {interval_text(record['low'], record['high'], '+.3f')}"


def roc(runs: Sequence[RunAnswers]) -> str:
    """Draw the ROC curve of each RUN; of one RUN with more classes, one against the rest."""
    chart = Chart(
        "ROC curve",
        "; ".join(f"{run.name}: AUC {estimate(run.metrics['auc'])}" for run in runs),
        "1 − specificity", "sensitivity",
    )  # fmt: skip
    chart.rule(diagonal=True, name="chance")
    for index, (name, auc, y_S, score_S) in enumerate(_series(runs, "auc")):
        if (curve := curves.roc(y_S, score_S)) is not None:
            label = f"{name}{f': AUC {auc}' if auc else ''}"
            chart.line(curve.x_T.tolist(), curve.y_T.tolist(), index, name=label)
    return chart.svg()


def precision_recall(runs: Sequence[RunAnswers]) -> str:
    """Draw precision over recall, as `roc`."""
    first = runs[0]
    chart = Chart(
        "Precision and recall",
        "; ".join(
            f"{run.name}: average precision {estimate(run.metrics['average_precision'])}"
            for run in runs
        ),
        "recall (sensitivity)", "precision",
    )  # fmt: skip
    if first.positive is not None:
        share = float((first.answers.y_S == 1).mean())
        chart.rule(y=share, name=f"chance: {share:.2f} of the slides are {first.positive}")
    for index, (name, ap, y_S, score_S) in enumerate(_series(runs, "average_precision")):
        if (curve := curves.precision_recall(y_S, score_S)) is not None:
            label = f"{name}{f': AP {ap}' if ap else ''}"
            x, y = [0.0, *curve.x_T.tolist()], [float(curve.y_T[0]), *curve.y_T.tolist()]
            chart.line(x, y, index, name=label, steps=True)
    return chart.svg()


def calibration(runs: Sequence[RunAnswers]) -> str:
    """Draw how often slides of a probability are of the class; a larger point is of more."""
    first = runs[0]
    of = first.positive or "the answer"
    what = f"share of slides that are {of}" if first.positive else "share of right answers"
    chart = Chart(
        "Calibration",
        "; ".join(
            f"{run.name}: expected calibration error {estimate(run.metrics['ece'])}" for run in runs
        ),
        f"mean probability of {of}", what,
    )  # fmt: skip
    chart.rule(diagonal=True, name="perfectly calibrated")
    for index, run in enumerate(runs):
        bins = curves.calibration(run.answers.y_S, run.answers.p_SC)
        label = f"{run.name}: ECE {estimate(run.metrics['ece'])}"
        chart.line([b.mean for b in bins], [b.share for b in bins], index, name=label)
        most = max(b.n for b in bins)
        for b in bins:
            radius = 2.5 + 5 * (b.n / most) ** 0.5
            told = f"{b.n} slides: mean probability {b.mean:.3f}, share {b.share:.3f}"
            chart.dot(b.mean, b.share, index, radius=radius, name=told)
    return chart.svg()


def probabilities(run: RunAnswers) -> str:
    """Draw the probability of each slide by its class, and the thresholds of the folds.

    Two classes: of the positive one. More: of the true class.
    """
    y_S, p_SC, classes = run.answers.y_S, run.answers.p_SC, run.classes
    of = f"probability of {run.positive}" if run.positive else "probability of the true class"
    p_S = p_SC[:, 1] if run.positive else p_SC[np.arange(len(y_S)), y_S]
    right_S = run.predicted_S == y_S
    rows = len(classes)
    chart = Chart(
        f"{of[0].upper()}{of[1:]}, by class",
        ", ".join(
            f"{name}: {int((y_S == c).sum())} slides, {int((right_S & (y_S == c)).sum())} right"
            for c, name in enumerate(classes)
        ),
        of, width=420, height=_ROW_PX * rows, y_range=(rows - 0.5, -0.5), y_names=classes,
        left=room_for(classes),
    )  # fmt: skip
    for c in range(rows):
        of_class = np.flatnonzero(y_S == c)
        if len(of_class) <= _STRIP:
            for place, s in enumerate(of_class[np.argsort(p_S[of_class])].tolist()):
                shift = ((place * 7) % 11 - 5) / 16  # apart, and the same each time
                told = f"{run.answers.slide_ids[s]}: {p_S[s]:.3f}"
                filled = bool(right_S[s])
                chart.dot(p_S[s], c + shift, 0 if filled else 1, radius=3, filled=filled, name=told)
        else:
            _histogram(chart, p_S[of_class], c)
    if run.positive is not None:
        by_fold = run.metrics["threshold"]["by_fold"]
        label = f"thresholds of the folds: {', '.join(number(t) for t in by_fold)}"
        for place, value in enumerate(sorted(set(by_fold))):
            chart.rule(x=value, name=label if place == 0 else "")
    if len(y_S) <= _STRIP or any((y_S == c).sum() <= _STRIP for c in range(rows)):
        chart.key("right", 0)
        chart.key("wrong", 1, filled=False)
    return chart.svg()


def spread(runs: Sequence[RunAnswers]) -> str:
    """Draw the AUC of every fold and seed of each RUN, and the pooled one with its interval."""
    names: list[str] = []
    points: list[tuple[int, int, float]] = []
    for index, run in enumerate(runs):
        for kind in ("fold", "seed"):
            names.append(f"{run.name}: each {kind}" if len(runs) > 1 else f"each {kind}")
            row = len(names) - 1
            points += [
                (index, row, auc) for auc in run.metrics[f"auc_by_{kind}"].values()
                if auc is not None
            ]  # fmt: skip
        names.append(f"{run.name}: pooled" if len(runs) > 1 else "pooled")
    chart = Chart(
        "AUC by fold and seed",
        "; ".join(
            f"{run.name}: folds {_listed(run.metrics['auc_by_fold'])}, "
            f"seeds {_listed(run.metrics['auc_by_seed'])}"
            for run in runs
        ),
        "AUC", width=420, height=30 * len(names), y_range=(len(names) - 0.5, -0.5),
        y_names=names, left=room_for(names),
    )  # fmt: skip
    chart.rule(x=0.5)
    for index, row, auc in points:
        chart.dot(auc, row, index, filled=False, name=f"{auc:.3f}")
    for index, run in enumerate(runs):
        pooled, row = run.metrics["auc"], 3 * index + 2
        if pooled["value"] is not None:
            if pooled["low"] is not None:
                chart.interval(pooled["low"], pooled["high"], row, index)
            chart.dot(pooled["value"], row, index, name=estimate(pooled))
    return chart.svg()


def differences(pairs: Sequence[Comparison]) -> str:
    """Draw the differences of AUC with their intervals."""
    names = [f"{pair.second} − {pair.first}" for pair in pairs]
    ends = [
        abs(v) for p in pairs for v in (p.difference.low, p.difference.high, p.difference.value)
    ]
    reach = max([0.05, *(v for v in ends if np.isfinite(v))])
    reach = min(1.0, np.ceil(reach * 20) / 20)
    chart = Chart(
        "Differences of AUC",
        "; ".join(
            f"{name}: {difference_text(pair.record()['difference'])}"
            for name, pair in zip(names, pairs, strict=True)
        ),
        "difference of AUC", width=420, height=34 * len(pairs), x_range=(-reach, reach),
        y_range=(len(pairs) - 0.5, -0.5), y_names=names, left=room_for(names, 260),
        x_ticks=[-reach, -reach / 2, 0.0, reach / 2, reach],
    )  # fmt: skip
    chart.rule(x=0.0)
    for row, pair in enumerate(pairs):
        gap = pair.difference
        if np.isfinite(gap.low) and np.isfinite(gap.high):
            chart.interval(gap.low, gap.high, row, 0)
        if np.isfinite(gap.value):
            chart.dot(gap.value, row, 0)
    return chart.svg()


def _series(runs: Sequence[RunAnswers], metric: str) -> list[tuple[str, str, Any, Any]]:
    """List what is drawn: name, metric, 1 or 0 of each slide, score of each slide."""
    first = runs[0]
    if first.positive is not None:
        return [
            (run.name, estimate(run.metrics[metric]), run.answers.y_S, run.answers.p_SC[:, 1])
            for run in runs
        ]
    y_S, p_SC = first.answers.y_S, first.answers.p_SC
    return [
        (f"{name} against the rest", "", (y_S == c).astype(np.int64), p_SC[:, c])
        for c, name in enumerate(first.classes)
    ]


def _histogram(chart: Chart, p_S: Any, row: int) -> None:
    count_B, edge_B = np.histogram(p_S, _BINS, (0.0, 1.0))
    for n, low, high in zip(count_B.tolist(), edge_B[:-1], edge_B[1:], strict=True):
        if n:
            top = row + 0.4 - 0.8 * n / max(1, int(count_B.max()))
            chart.bar((float(low), float(high)), (row + 0.4, top), 0)


def _listed(values: dict[str, float | None]) -> str:
    return ", ".join(number(value) for value in values.values())
