"""What is learnt from what, in the lines that every run and dry run of `mil` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cytofm_cli.mil.config import MilSettings
from cytofm_cli.mil.labels import Cohort
from cytofm_cli.mil.origin import Origin
from cytofm_cli.stats import cautions as intervals
from cytofm_cli.stats.cautions import interval_text
from cytofm_cli.stats.classes import why_positive


def describe(cohort: Cohort, config: MilSettings) -> list[str]:
    """Name classes with their counts, the positive one, and the groups."""
    slides = np.bincount(cohort.y_N, minlength=len(cohort.classes)).tolist()
    groups = intervals.class_groups(cohort.y_N, cohort.groups, cohort.classes)
    counts = ", ".join(
        f"{name!r} {n} slides of {groups[name]} groups"
        for name, n in zip(cohort.classes, slides, strict=True)
    )
    chosen = config.positive is not None or config.classes is not None
    column = cohort.group_column
    patients = f"column {column!r}" if column else "every slide taken as a patient"
    return [
        f"classes of column {cohort.label_column!r}: {counts}",
        positive_line(cohort.classes, chosen=chosen),
        f"{len(cohort.bags)} slides of {len(set(cohort.groups))} groups ({patients})",
    ]


def positive_line(classes: Sequence[str], *, chosen: bool | None = None) -> str:
    """Name the positive class; for more classes than two, their order.

    Args:
        classes: in order.
        chosen: the user chose; False: say by what rule it is; None: a RUN has it, and why it
            was chosen is its affair.
    """
    if len(classes) == 2 and chosen is None:
        return f"positive class: {classes[1]!r}"
    if len(classes) == 2:
        return f"positive class: {classes[1]!r} ({why_positive(classes, chosen=bool(chosen))})"
    return f"{len(classes)} classes, none is positive; in order: {', '.join(map(repr, classes))}"


def bags_text(origin: Origin, unit: str) -> str:
    """Name encoder, unit and geometry of the bags, as far as they say."""
    parts = [f"encoder {origin.encoder or 'not stated'}", f"unit {unit}"]
    if origin.tile_px is not None:
        at = f" at {origin.mpp:.4g} µm/px" if origin.mpp is not None else ""
        parts.append(f"tiles of {origin.tile_px} px{at}")
    if unit == "cell" and origin.cell_um is not None:
        parts.append(f"cells of {origin.cell_um:.4g} µm")
    return ", ".join(parts)


def result_line(metrics: dict[str, Any]) -> str:
    """Say how good a RUN is, from its metrics.json: for which class, from how much."""
    classes = metrics["classes"]
    of = f" of {classes[1]!r}" if len(classes) == 2 else ""
    parts = [
        f"{name}{of if name == 'recall' else ''} {m['value']:.3f} "
        f"{interval_text(m['low'], m['high'])}"
        for name in ("auc", "accuracy", "recall")
        if (m := metrics.get(name)) and m["value"] is not None
    ]
    if threshold := metrics.get("threshold"):
        parts.append(f"threshold for {classes[1]!r} {threshold['mean']:.3f} ({threshold['rule']})")
    size = f"{metrics['slides']} slides, {metrics['groups']} groups"
    by_class = metrics.get("class_groups")  # RUNs of older versions do not count them
    brief = intervals.brief(by_class) if by_class else None
    return f"{metrics['method']}: {', '.join(parts)}  ({size}{f'; {brief}' if brief else ''})"
