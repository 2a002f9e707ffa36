"""The tables of a report above its slides: metrics, confusion, cohort, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cytofm_cli.mil.describe import bags_text
from cytofm_cli.mil.origin import SECTION, from_record
from cytofm_cli.report.answers import RunAnswers
from cytofm_cli.report.charts import estimate, number
from cytofm_cli.stats import curves
from cytofm_cli.words import named

_WORDS: Final = {
    "auc": "AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "expected calibration error (ECE)",
    "brier_uncalibrated": "Brier score, uncalibrated",
    "ece_uncalibrated": "ECE, uncalibrated",
    "quadratic_kappa": "kappa, quadratic weights",
}
_CARDS: Final = ("auc", "accuracy", "recall", "specificity")


def is_estimate(value: Any) -> bool:
    """Tell whether an entry of metrics.json is a metric with its interval."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


def metric_rows(runs: Sequence[RunAnswers]) -> list[dict[str, Any]]:
    """Return every metric of the RUNs, in the order of the first."""
    keys = dict.fromkeys(k for run in runs for k, v in run.metrics.items() if is_estimate(v))
    return [
        {
            "key": key,
            "name": metric_name(key, runs[0]),
            "cells": [estimate(run.metrics.get(key)) for run in runs],
        }
        for key in keys
    ]


def metric_name(key: str, run: RunAnswers) -> str:
    """Return what a metric is called, and of which class it is."""
    words = _WORDS.get(key, key.replace("_", " "))
    if run.positive is None:
        mean = key in ("auc", "average_precision", "recall")
        return f"{words}, mean of the classes" if mean else words
    if key in ("auc", "average_precision", "recall"):
        return f"{words} of {run.positive}"
    if key == "specificity":
        return f"{words} (recall of {run.classes[0]})"
    return words


def cards(run: RunAnswers) -> list[dict[str, str]]:
    """Return the few numbers that stand first."""
    shown = []
    for key in _CARDS:
        value = run.metrics.get(key)
        if value is None:
            continue
        text, _, interval = estimate(value).partition(" ")
        shown.append({"what": metric_name(key, run), "value": text, "range": interval})
    return shown


def confusion(runs: Sequence[RunAnswers]) -> list[dict[str, Any]]:
    """Return a table of counts a RUN."""
    tables = []
    for run in runs:
        table_CC = curves.confusion(run.answers.y_S, run.predicted_S, len(run.classes)).tolist()
        rows = [
            {"name": name, "cells": [{"n": n, "right": c == k} for k, n in enumerate(row)]}
            for c, (name, row) in enumerate(zip(run.classes, table_CC, strict=True))
        ]
        tables.append({"name": run.name, "rows": rows})
    return tables


def threshold_lines(runs: Sequence[RunAnswers]) -> list[str]:
    """Say from which probability on the answers are positive."""
    if runs[0].positive is None:
        return ["The answer is the most probable class; there is no threshold."]
    lines = []
    for run in (run for run in runs if run.metrics.get("threshold")):
        told = run.metrics["threshold"]
        whose = f"{run.name}: a" if len(runs) > 1 else "A"
        by_fold = ", ".join(number(value) for value in told["by_fold"])
        lines.append(
            f"{whose} slide is called {told['of']} from a probability of {number(told['mean'])} on "
            f"(mean of the folds: {by_fold}; rule: {told['rule']})."
        )
    return [*lines, "Thresholds were fixed on validation slides, never on those that are judged."]


def cohort_rows(run: RunAnswers) -> list[dict[str, Any]]:
    """Return slides and groups of each class."""
    groups = run.metrics.get("class_groups", {})  # older RUNs do not count them
    counts = run.metrics.get("class_counts", [])
    return [
        {"name": name, "slides": n, "groups": groups.get(name, "–")}
        for name, n in zip(run.classes, counts, strict=False)
    ]


def cohort_line(run: RunAnswers) -> str:
    """Say what was asked of how many slides."""
    m = run.metrics
    column = m.get("group_column")
    patients = f"column “{column}”" if column else "every slide taken as a patient of its own"
    positive = f" Positive class: {run.positive}." if run.positive else ""
    return (
        f"{m['slides']} slides of {m['groups']} groups ({patients}); classes of column "
        f"“{m.get('label_column', 'label')}”.{positive}"
    )


def provenance(runs: Sequence[RunAnswers]) -> list[dict[str, Any]]:
    """Return where RUNs come from, a row a fact."""
    facts: list[dict[str, str]] = []
    for run in runs:
        task, mil = run.config.get("task", {}), run.config.get("mil", {})
        origin = from_record(run.config.get(SECTION, {"encoder": run.metrics.get("encoder")}))
        facts.append(
            {
                "RUN": str(run.path),
                "identity": run.digest,
                "trained with": f"cytofm {task.get('cytofm', 'of an older version')}",
                "finished": run.finished or "not said",
                "head": f"{run.metrics['method']}, preset {run.metrics['preset']}",
                "bags": bags_text(origin, run.unit),
                "weights of the encoder": origin.weights_sha256 or "none, or not stated",
                "protocol": f"{mil.get('protocol', '?')}, {run.metrics['folds']} folds, "
                f"{run.metrics['seeds']} seeds",
                "labels, bags, splits": ", ".join(
                    str(task.get(f"{name}_digest", "–")) for name in ("labels", "bags", "splits")
                ),
            }
        )
    return [{"name": key, "cells": [fact[key] for fact in facts]} for key in facts[0]]


def grouped(lines: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what is told of several slides once: `no attention … (3 slides: a, b, c)`."""
    of_line: dict[str, list[str]] = {}
    for slide, told in lines.items():
        for line in told:
            # Paths of slides and stores differ, and the reason is the same.
            of_line.setdefault(line, []).append(slide)
    return [
        f"{line} ({len(slides)} slides: {named(slides)})" if len(slides) > 1
        else f"{slides[0]}: {line}"
        for line, slides in of_line.items()
    ]  # fmt: skip
