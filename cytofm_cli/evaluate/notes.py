"""What the user of an evaluation must know: what was left out, assumed, or rests on little."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.evaluate.plan import Plan
from cytofm_cli.stats import cautions as intervals
from cytofm_cli.words import named


def plan_notes(plan: Plan) -> list[str]:
    """Say what was assumed about the table of points, and what is left out."""
    notes = list(plan.points.notes)
    if plan.unknown:
        notes.append(
            f"{len(plan.unknown)} slide(s) of the points are not given and left out: "
            f"{named(plan.unknown)}"
        )
    if plan.unread:
        notes.append(f"{plan.unread} point(s) lie in no stored tile and are left out")
    for task in plan.tasks:
        if task.left_out:
            classes = ", ".join(f"{name} ({n})" for name, n in task.left_out.items())
            notes.append(f"task {task.name} leaves out classes of one group only: {classes}")
        groups = [plan.points.groups[row] for row in task.rows_N]
        n_groups = len(set(groups))
        if len(set(zip(groups, task.y_N.tolist(), strict=True))) == n_groups:
            notes.append(
                f"task {task.name}: each of the {n_groups} groups holds one class only: what tells "
                "classes apart may be what tells groups apart (stain, scanner, patient)"
            )
    return notes


def cautions(plan: Plan, folds: Mapping[str, NDArray[np.int64]]) -> list[str]:
    """Say which classes rest on few of the judged groups.

    Args:
        plan: of the evaluation.
        folds: by task, the fold that tests each instance; negative: none does.
    """
    said = []
    for task in plan.tasks:
        tested_N = folds[task.name] >= 0
        groups = [plan.points.groups[i] for i in task.rows_N[tested_N]]
        by_class = intervals.class_groups(task.y_N[tested_N], groups, task.classes)
        lines = intervals.cautions(by_class, len(set(groups)))
        said += [f"task {task.name}: {line}" for line in lines]
    return said


def check_scale(spec: EncoderSpec, crop_um: float, note: Callable[[str], None]) -> None:
    """Say if an encoder sees crops at another scale than it was trained at."""
    if spec.mpp is None or spec.input_px is None:
        return
    if abs(crop_um / spec.input_px / spec.mpp - 1) > 0.25:
        note(
            f"{spec.name} was trained at {spec.mpp:g} µm/px and sees "
            f"{crop_um / spec.input_px:.3g}: its input should cover "
            f"{spec.mpp * spec.input_px:.0f} µm"
        )
