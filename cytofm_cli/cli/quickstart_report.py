"""What `cytofm quickstart` says at the end: numbers beside the truth, and where to look."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_points(cohort: Path, path: Path) -> None:
    """Write the true cells of a simulated cohort as the table that `evaluate probe` reads."""
    from cytofm_cli.simulate.nuclei import points_table, read_nuclei
    from cytofm_cli.work.files import write_text

    write_text(path, points_table(read_nuclei(cohort)))


def against_truth(cohort: Path, stores: Path, probe: Path) -> dict[str, Any]:
    """Return what was found beside what is there.

    Args:
        cohort: folder of the simulated cohort.
        stores: its stores, with nuclei.
        probe: RUN of `evaluate probe` with the task `abnormal`.

    Returns:
        `nuclei` (see `NucleiFound.record`), `probe` (AUC by encoder), `bayes_auc`.
    """
    from cytofm_cli.api.truth import judge_nuclei
    from cytofm_cli.simulate.tables import read_summary

    content = json.loads((probe / "metrics.json").read_text(encoding="utf-8"))
    encoders = content["tasks"]["abnormal"]["encoders"]
    summary = read_summary(cohort)
    return {
        "nuclei": judge_nuclei(stores, cohort).record(),
        "probe": {name: one["probes"]["linear"]["auc"] for name, one in encoders.items()},
        "bayes_auc": None if summary is None else summary["bayes_auc"],
    }


def metrics_of(run: Path) -> dict[str, Any]:
    """Return AUC, accuracy and recall of a RUN of `mil train`, with their intervals."""
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {name: content.get(name) for name in ("auc", "accuracy", "recall")}


def table(metrics: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    """Return the numbers as lines: nuclei and cells where the truth is known, slides always."""
    lines = _cells(found) if found else []
    lines.append(f"{'slides by':<18}{'AUC':<22}{'accuracy':<22}{'recall':<22}".rstrip())
    for head, values in metrics.items():
        cells = [_interval(values[name]) for name in ("auc", "accuracy", "recall")]
        lines.append(f"{head:<18}" + "".join(f"{cell:<22}" for cell in cells).rstrip())
    if found and found["bayes_auc"] is not None:
        lines.append(f"{'Bayes ceiling':<18}{found['bayes_auc']:.3f}")
    lines.append("")
    lines.append("95 % intervals, over groups. Few groups: the intervals say how little is known.")
    if found:
        lines.append(
            "Bayes ceiling: AUC of the exact posterior given every true cell; no head can beat it "
            "in the mean."
        )
        lines.append(
            "The cells are simulated: these numbers say that everything works, and no more."
        )
    return "\n".join(lines)


def _cells(found: Mapping[str, Any]) -> list[str]:
    nuclei = found["nuclei"]
    lines = [
        f"nuclei            recall {_share(nuclei['recall'])} of {nuclei['n_true']} true ones, "
        f"precision {_share(nuclei['precision'])} of {nuclei['n_found']} detections",
        f"                  (matched one to one within {nuclei['match_um']} µm; recall of marked "
        "cells, precision of all nuclei)",
        *_others(nuclei),
        "",
        f"{'cells by':<18}AUC, abnormal against NILM (linear probe, whole patients held out)",
    ]
    lines += [f"{name:<18}{_interval(value)}" for name, value in found["probe"].items()]
    return [*lines, ""]


def _others(nuclei: Mapping[str, Any]) -> list[str]:
    """Say what the detections are that are no nuclei."""
    others = nuclei["others"]
    total = sum(others.values())
    if not total:
        return []
    parts = ", ".join(f"{name} {n / total:.0%}" for name, n in others.items())
    return [f"                  the other {total}: {parts}"]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: Mapping[str, float | None] | None) -> str:
    if value is None or value["value"] is None:
        return "–"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def where(folder: Path, best: Path, seconds: float, *, simulated: bool) -> str:
    """Return where everything lies, and what to do next."""
    truth = f"  {folder}/cohort/       slides, labels and the truth, as simulated\n" * simulated
    return f"""
Done in {seconds:.0f} s. Open in a browser:
  {folder}/report.html          metrics, curves, every slide, and the cells that decided
  {folder}/gallery/index.html   the cells most unlike the rest, the largest, the darkest
and walk over the slides, with what decided, and mark cells:
  cytofm view {folder}/stores --run {best}

What else there is:
{truth}  {folder}/preview/      foreground and chosen tiles of every slide, as pictures
  {folder}/stores/       one Zarr store a slide: tiles, nuclei, embeddings, attention
  {folder}/run-*/        splits, predictions, metrics, models, settings
  {folder}/scores.csv    probabilities of the ensemble

On your own slides:
  cytofm quickstart --data SLIDES/ --labels labels.csv  all of this: slide_id,label,group
  cytofm info SLIDES/                                   what is there, at which resolution
  cytofm tile SLIDES/ -o stores                         any format; --slide-mpp 0.25 if a file
                                                        states no resolution (40×)
  cytofm detect stores                                  nuclei, for cell bags (--unit cell)
  cytofm export stores -o qupath --to geojson           look at them in QuPath
  cytofm embed stores --encoder timm/vit_small_patch16_224 --weights FILE
  cytofm mil train --bags stores --labels labels.csv -o run
  cytofm mil score run stores -o scores.csv
  cytofm report run stores -o report.html
"""
