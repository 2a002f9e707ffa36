"""Results of a probe for reading (table.md) and for other tools (predictions.csv)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.evaluate.points import Points, Task
from cytofm_cli.stats.cautions import interval_text
from cytofm_cli.table_text import TableWriter

_METRICS = {"auc": "AUC", "balanced_accuracy": "balanced accuracy"}


def markdown(metrics: Mapping[str, Any]) -> str:
    """Write metrics.json for reading: a table a task, values by group, comparisons."""
    blocks = [_task(name, task, metrics["probes"]) for name, task in metrics["tasks"].items()]
    if metrics["comparisons"]:
        blocks.append(_comparisons(metrics["comparisons"]))
    return "\n\n".join([*blocks, _legend(metrics)]) + "\n"


def one_line(label: str, metrics: Mapping[str, Any]) -> str:
    """Say how good one encoder is: AUC with interval for every task and main probe."""
    parts = []
    for name, task in metrics["tasks"].items():
        probes = task["encoders"][label]["probes"]
        said = [f"{_cell(probes[probe]['auc'])} {probe}" for probe in metrics["probes"]]
        parts.append(f"{name} AUC {', '.join(said)}")
    return f"{label}: {'; '.join(parts)}"


def task_line(name: str, classes: Sequence[str], counts: Mapping[str, int]) -> str:
    """Say what a task tells apart: classes with their counts, and the positive one of two."""
    said = ", ".join(f"{label!r} {counts[label]}" for label in classes)
    positive = f"; positive: {classes[1]!r}" if len(classes) == 2 else ""
    return f"task {name}: {said}{positive}"


def predictions_csv(
    points: Points,
    tasks: Sequence[Task],
    folds: Mapping[str, NDArray[Any]],
    answers: Mapping[tuple[str, str, str], NDArray[Any]],
) -> str:
    """Write held-out answers: a row an instance, encoder, task and main probe.

    Args:
        points: the instances.
        tasks: what was asked.
        folds: by task, the fold that tested each instance; negative: none did.
        answers: probabilities (M, C) of those tested, by (encoder, task, probe).
    """
    classes = list(dict.fromkeys(name for task in tasks for name in task.classes))
    text = io.StringIO()
    writer = TableWriter(text)
    head = ["encoder", "task", "probe", "slide_id", "x", "y", "group", "fold", "label", "predicted"]
    writer.writerow([*head, *(f"prob_{name}" for name in classes)])
    by_name = {task.name: task for task in tasks}
    for (encoder, name, probe), p_NC in answers.items():
        task = by_name[name]
        at = {label: i for i, label in enumerate(task.classes)}
        tested = np.flatnonzero(folds[name] >= 0).tolist()
        for i, p_C in zip(tested, p_NC, strict=True):
            row = task.rows_N[i]
            x, y = points.xy_px0[row].tolist()
            place = [points.slides[row], f"{x:g}", f"{y:g}", points.groups[row], folds[name][i]]
            said = [task.classes[task.y_N[i]], task.classes[int(p_C.argmax())]]
            numbers = [f"{p_C[at[c]]:.6g}" if c in at else "" for c in classes]
            writer.writerow([encoder, name, probe, *place, *said, *numbers])
    return text.getvalue()


def _task(name: str, task: Mapping[str, Any], probes: Sequence[str]) -> str:
    counts = ", ".join(f"{label} {count}" for label, count in task["counts"].items())
    shots = list(next(iter(task["encoders"].values()))["few_shot"])[-1:]
    columns = [f"{probe} {text}" for probe in probes for text in _METRICS.values()]
    columns += [f"{n} shots AUC" for n in shots]
    positive = f"; positive: {task['classes'][1]}" if len(task["classes"]) == 2 else ""
    lines = [f"## {name}", "", f"{counts}{positive}; {task['folds']} folds of whole groups.", ""]
    if task["left_out"]:
        left = ", ".join(f"{label} ({n})" for label, n in task["left_out"].items())
        lines[2] += f" Left out, being in one group only: {left}."
    lines += ["| encoder | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for label, encoder in task["encoders"].items():
        cells = [_cell(encoder["probes"][probe][metric]) for probe in probes for metric in _METRICS]
        cells += [_spread(encoder["few_shot"][n]["auc"]) for n in shots]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_groups(task, probes[0])])


def _groups(task: Mapping[str, Any], probe: str) -> list[str]:
    rows = {
        label: encoder["probes"][probe]["groups"] for label, encoder in task["encoders"].items()
    }
    groups = list(next(iter(rows.values())))
    lines = [
        f"AUC of the {probe} probe inside each group:",
        "",
        "| encoder | " + " | ".join(groups) + " |",
        "|---|" + "---|" * len(groups),
    ]
    for label, of in rows.items():
        lines.append(f"| {label} | " + " | ".join(_number(of[g]["auc"]) for g in groups) + " |")
    return lines


def _comparisons(pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Comparisons",
        "",
        "| task | probe | metric | second − first | difference | p |",
        "|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        interval = interval_text(pair["low"], pair["high"], "+.3f")
        gap = f"{_number(pair['value'], '+.3f')} {interval}"
        names = f"{pair['second']} − {pair['first']}"
        lines.append(
            f"| {pair['task']} | {pair['probe']} | {_METRICS[pair['metric']]} | {names} | {gap} | "
            f"{pair['p_adjusted']:.3g} |"
        )
    return "\n".join(lines)


def _legend(metrics: Mapping[str, Any]) -> str:
    shots = (
        "Shots: nearest class mean of so many examples a class, mean of "
        f"{metrics['draws']} draws and where 95 % of them lie. "
    )
    only = f", {', '.join(metrics['judged'])} judged" if metrics["judged"] else ""
    legend = (
        f"{metrics['instances']} {metrics['unit']}s of {metrics['slides']} slides in "
        f"{metrics['groups']} groups; whole groups are held out{only}. "
        f"Brackets: {metrics['interval']}. {shots}"
        "AUC of more than two classes is the mean one-vs-rest. "
        "p: answers swapped by group, corrected for all comparisons (Holm)."
    )
    return "\n\n".join([legend, *(f"{note}." for note in metrics.get("notes", []))])


def _cell(estimate: Mapping[str, float | None]) -> str:
    return f"{_number(estimate['value'])} {interval_text(estimate['low'], estimate['high'])}"


def _spread(estimate: Mapping[str, float | None]) -> str:
    """Write where draws lie; unlike an interval, that may be one place."""
    return f"{_number(estimate['value'])} [{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)
