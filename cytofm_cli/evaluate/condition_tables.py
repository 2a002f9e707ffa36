"""Results of `evaluate robustness` and `retention` for reading: table.md and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cytofm_cli.evaluate.perturbation_names import UNCHANGED
from cytofm_cli.evaluate.run_folder import TABLE
from cytofm_cli.pictures.plot import Chart, room_for
from cytofm_cli.stats.cautions import interval_text

_ROW_PX = 30


def robustness_files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return table.md, cosine.svg and topK.svg, for the largest k, by name."""
    top = f"top{max(metrics['k'])}"
    plots = {f"{name}.svg": _agreement_plot(metrics, name) for name in ("cosine", top)}
    return {TABLE: _robustness_table(metrics), **plots}


def retention_files(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return table.md, and a plot a task, by name."""
    plots = {f"{task}.svg": _retention_plot(metrics, task) for task in metrics["tasks"]}
    return {TABLE: _retention_table(metrics), **plots}


def collapse_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Say which encoders are robust only as they tell no place from another."""
    by_encoder: dict[str, list[Mapping[str, Any]]] = {}
    for row in metrics["comparisons"]:
        if row["collapsed"]:
            by_encoder.setdefault(row["encoder"], []).append(row)
    return [
        f"{label}: features look collapsed under {len(rows)} condition(s): cosine "
        f"{rows[0]['cosine']:.3f} ({rows[0]['apart']:.3f} between different places), top-k at "
        "chance"
        for label, rows in by_encoder.items()
    ]


def robustness_line(label: str, metrics: Mapping[str, Any]) -> str:
    """Say how robust one encoder is: medians over all comparisons."""
    of = metrics["groups"][label]["all"]
    tops = ", ".join(f"top-{k} {of[f'top{k}']['median']:.3f}" for k in metrics["k"])
    line = f"{label}: median cosine {of['cosine']['median']:.3f}, {tops}"
    board = metrics["leaderboard"][label]
    return line if board is None else f"{line}; leaderboard {board:.3f}"


def retention_line(label: str, metrics: Mapping[str, Any]) -> str:
    """Say what an encoder loses at worst, for every task and probe."""
    parts = []
    for task in metrics["tasks"]:
        for name in metrics["probes"]:
            rows = _rows(metrics, encoder=label, task=task, probe=name)
            changes = [row for row in rows if row.get("change", {}).get("value") is not None]
            said = f"{task} {name} AUC {_number(rows[0]['auc']['value'])}"
            if changes:
                worst = min(changes, key=lambda row: float(row["change"]["value"]))
                said += f", worst {worst['change']['value']:+.3f} ({worst['condition']})"
            parts.append(said)
    return f"{label}: {'; '.join(parts)}"


def _robustness_table(metrics: Mapping[str, Any]) -> str:
    blocks = ["## By group", _group_table(metrics)]
    blocks += ["## By comparison", _comparison_table(metrics)]
    said = (
        f"{metrics['places']} {metrics['unit']}s of {metrics['slides']} slides. Cosine: of a place "
        "with itself under both conditions; apart: with the other places. Top-k: how often a place "
        "is among its k nearest of both conditions, the mean of both directions; chance: of "
        "features that say nothing. Definitions of PLISM; rows are scaled to length 1 and left out "
        "of their own neighbours."
    )
    if any(value is not None for value in metrics["leaderboard"].values()):
        said += " Leaderboard: mean of the medians of cosine (all) and top-10 of three groups."
    return "\n\n".join([*blocks, said, *(f"{note}." for note in metrics["notes"])]) + "\n"


def _group_table(metrics: Mapping[str, Any]) -> str:
    names = ["cosine", *(f"top{k}" for k in metrics["k"])]
    head = [f"{name} {how}" for name in names for how in ("mean (std)", "median (IQR)")]
    k = max(metrics["k"])
    lines = [_row(["encoder", "group", "pairs", *head, f"chance {k}", "leaderboard"])]
    lines.append("|---" * (len(head) + 5) + "|")
    for label, groups in metrics["groups"].items():
        for group, of in groups.items():
            cells = []
            for name in names:
                cells += _spread(of[name])
            cells.append(_number(of[f"chance{k}"]["median"]))
            board = _number(metrics["leaderboard"][label]) if group == "all" else ""
            lines.append(_row([label, group, str(of["cosine"]["pairs"]), *cells, board]))
    return "\n".join(lines)


def _spread(of: Mapping[str, float]) -> list[str]:
    """Write mean (std) and median (IQR); one comparison has neither spread."""
    if of["pairs"] == 1:
        return [_number(of["mean"])] * 2
    return [
        f"{of['mean']:.3f} ({of['std']:.3f})",
        f"{of['median']:.3f} ({of['q25']:.3f} to {of['q75']:.3f})",
    ]


def _comparison_table(metrics: Mapping[str, Any]) -> str:
    ks = [str(k) for k in metrics["k"]]
    head = ["encoder", "conditions", "places", "cosine", "apart"]
    lines = [_row([*head, *(f"top-{k}" for k in ks), f"chance {ks[-1]}"])]
    lines.append("|---" * (len(head) + len(ks) + 1) + "|")
    for row in metrics["comparisons"]:
        numbers = [row["cosine"], row["apart"], *(row["top"][k] for k in ks), row["chance"][ks[-1]]]
        cells = [row["encoder"], condition_name(row), str(row["places"])]
        lines.append(_row([*cells, *(_number(value) for value in numbers)]))
    return "\n".join(lines)


def condition_name(row: Mapping[str, Any]) -> str:
    """Name what is compared: a perturbation, or two slides."""
    if row["first"] == UNCHANGED:
        return str(row["second"])
    return f"{row['first']} – {row['second']}"


def _agreement_plot(metrics: Mapping[str, Any], name: str) -> str:
    """Show a metric of every encoder: by perturbation, or by group of pairs with quartiles."""
    of_pairs = metrics["kind"] == "pairs"
    first = next(iter(metrics["encoders"]))
    names = (
        list(metrics["groups"][first])
        if of_pairs
        else [row["second"] for row in metrics["comparisons"] if row["encoder"] == first]
    )
    text = "cosine" if name == "cosine" else f"top-{name[3:]} accuracy"
    chart = _rows_chart(f"Robustness: {text}", names, text, (0.0, 1.0), len(metrics["encoders"]))
    if name != "cosine" and not of_pairs:  # of as many places: one chance level
        chart.rule(x=metrics["comparisons"][0]["chance"][name[3:]], name="chance")
    for index, label in enumerate(metrics["encoders"]):
        shift = _shift(index, len(metrics["encoders"]))
        for row, condition in enumerate(names):
            if of_pairs:
                spread = metrics["groups"][label][condition][name]
                value = spread["median"]
                chart.interval(spread["q25"], spread["q75"], row + shift, index)
            else:
                (of,) = (
                    r
                    for r in metrics["comparisons"]
                    if (r["encoder"], r["second"]) == (label, condition)
                )
                value = of["cosine"] if name == "cosine" else of["top"][name[3:]]
            chart.dot(min(max(value, 0.0), 1.0), row + shift, index, name=f"{label}: {value:.3f}")
        chart.key(label, index)
    return chart.svg() + "\n"


def _retention_table(metrics: Mapping[str, Any]) -> str:
    blocks = []
    for task, of in metrics["tasks"].items():
        counts = ", ".join(f"{name} {count}" for name, count in of["counts"].items())
        lines = [f"## {task}", "", counts, ""]
        head = [f"{name} {what}" for name in metrics["probes"] for what in ("AUC", "change", "p")]
        lines += [_row(["encoder", "condition", *head]), "|---" * (len(head) + 2) + "|"]
        for label in metrics["encoders"]:
            for condition in metrics["conditions"]:
                cells = []
                for name in metrics["probes"]:
                    (row,) = _rows(
                        metrics, encoder=label, task=task, probe=name, condition=condition
                    )
                    cells += [_estimate(row["auc"], ".3f"), *_change(row.get("change"))]
                lines.append(_row([label, condition, *cells]))
        blocks.append("\n".join(lines))
    said = (
        f"{metrics['instances']} cells of {metrics['slides']} slides in {metrics['groups']} "
        "groups. Probes are fitted on unchanged cells of other groups; change: AUC on changed "
        "cells less that on unchanged ones. Brackets: 95 %, over groups: score intervals of AUCs, "
        "jackknife of changes. p: answers swapped by group, corrected for all changes (Holm)."
    )
    return "\n\n".join([*blocks, said, *(f"{note}." for note in metrics["notes"])]) + "\n"


def _retention_plot(metrics: Mapping[str, Any], task: str) -> str:
    """Show the change of the linear probe's AUC of every encoder, with intervals."""
    probe, conditions = metrics["probes"][0], metrics["conditions"][1:]
    rows = [r for r in _rows(metrics, task=task, probe=probe) if "change" in r]
    values = [r["change"][end] for r in rows for end in ("value", "low", "high")]
    reach = max([0.05, *(abs(v) for v in values if v is not None)])
    reach = min(1.0, math.ceil(reach * 20) / 20)
    text = f"change of the AUC, {probe} probe"
    encoders = list(metrics["encoders"])
    chart = _rows_chart(f"Retention: {task}", conditions, text, (-reach, reach), len(encoders))
    chart.x_ticks = [-reach, -reach / 2, 0.0, reach / 2, reach]
    chart.rule(x=0.0)
    for row in rows:
        index, change = encoders.index(row["encoder"]), row["change"]
        at = conditions.index(row["condition"]) + _shift(index, len(encoders))
        if change["low"] is not None and change["high"] is not None:
            chart.interval(change["low"], change["high"], at, index)
        if change["value"] is not None:
            chart.dot(change["value"], at, index, name=f"{row['encoder']}: {change['value']:+.3f}")
    for index, label in enumerate(encoders):
        chart.key(label, index)
    return chart.svg() + "\n"


def _rows_chart(
    title: str, names: Sequence[str], x_label: str, x_range: tuple[float, float], encoders: int
) -> Chart:
    height = max(_ROW_PX, 14 * encoders) * len(names)
    return Chart(
        title, f"rows: {', '.join(names)}", x_label, x_range=x_range, width=420, height=height,
        y_range=(len(names) - 0.5, -0.5), y_names=names, left=room_for(names),
    )  # fmt: skip


def _shift(index: int, of: int) -> float:
    """Return how far below the middle of its row an encoder is drawn."""
    return (index - (of - 1) / 2) * 0.8 / of


def _rows(metrics: Mapping[str, Any], **wanted: str) -> list[Mapping[str, Any]]:
    return [
        row
        for row in metrics["comparisons"]
        if all(row[key] == value for key, value in wanted.items())
    ]


def _change(change: Mapping[str, float | None] | None) -> list[str]:
    if change is None:
        return ["", ""]
    p = change["p_adjusted"]
    return [_estimate(change, "+.3f"), "–" if p is None else f"{p:.3g}"]


def _estimate(of: Mapping[str, float | None], form: str) -> str:
    if of["value"] == of["low"] == of["high"] == 0:
        return "0"
    return f"{_number(of['value'], form)} {interval_text(of['low'], of['high'], form)}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)
