"""What a cell classifier is fixed to before the first crop is read.

Legend: N cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.config import as_record, digest
from cytofm_cli.errors import LabelError
from cytofm_cli.evaluate import judge, notes, probe
from cytofm_cli.evaluate import plan as evaluate
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, Task, make_tasks
from cytofm_cli.stats.classes import as_found, class_order, is_bethesda, spelling_key
from cytofm_cli.store.tables import ABSTAINED, MAX_CLASSES
from cytofm_cli.words import named

NORMAL_OR_NOT = ("normal", "outlier")


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first crop is read.

    Attributes:
        config: the settings.
        crops: the points and how they are cut and encoded, as a probe does it.
        choice: the encoder.
        task: classes, in order, and the cells that take part.
        normal: of one-class: the labels that are learnt; else ().
        group_N: number of the group of each cell that takes part.
        fold_N: the fold that holds it out.
        record: sections of config.toml.
        notes: what the user must know.
    """

    config: CellsConfig
    crops: evaluate.Plan
    choice: Choice
    task: Task
    normal: tuple[str, ...]
    group_N: NDArray[np.int64]
    fold_N: NDArray[np.int64]
    record: dict[str, dict[str, Any]]
    notes: list[str]

    @property
    def points(self) -> Points:
        """Return the cells that take part."""
        return self.crops.points.take(self.task.rows_N)

    @property
    def n_folds(self) -> int:
        """Return the number of folds."""
        return int(self.fold_N.max()) + 1


def make_plan(
    config: CellsConfig,
    sources: Sequence[Source],
    labels: Path | None,
    choice: Choice,
    *,
    groups: Path | None = None,
) -> Plan:
    """Read and check everything but pixels.

    Raises:
        LabelError: see `read_points`, `locate` and `make_tasks`; classes without an order; a
            fold that nothing could be learnt for.
    """
    of_probe = _as_probe(config)
    located = evaluate.locate_points(of_probe, sources, labels, groups)
    points = located.points
    task, normal = _task(config, points)
    if len(task.classes) >= MAX_CLASSES:
        raise LabelError(
            f"{len(task.classes)} classes; a store holds {MAX_CLASSES - 1}.",
            hint="is the column of labels the right one?",
        )
    if ABSTAINED in map(spelling_key, task.classes):
        raise LabelError(
            f"the label {ABSTAINED!r} stands for cells of which nothing is said.",
            hint="call that class otherwise, or leave its rows out",
        )
    used = {points.groups[i] for i in task.rows_N}
    group_N = np.unique([points.groups[i] for i in task.rows_N], return_inverse=True)[1]
    group_N = group_N.astype(np.int64)
    n_folds = config.folds or judge.default_folds(sorted(used))
    fold_N = probe.grouped_folds(task.y_N, group_N, n_folds, config.seed)
    fold_N = np.unique(fold_N, return_inverse=True)[1].astype(np.int64)
    _refuse_poor_folds(config, task, fold_N)
    marks = evaluate.marks_of(points, located.sources)
    record = {
        "cells": as_record(config, results_only=True),
        "data": {
            "encoder": f"{choice.label} {digest(choice.identity())}",
            "instances": len(task.rows_N),
            "slides": len(set(points.slides)),
            "groups": len(used),
            "labels_digest": digest({"labels": points.labels, "groups": points.groups}),
            **marks,
            "cytofm": __version__,
        },
    }
    crops = evaluate.Plan(
        *(of_probe, located.sources, points, [task], [choice], {}),
        *(located.unread, located.unknown, marks, {}),
    )
    said = notes.plan_notes(crops)
    said += _stopping_notes(config, group_N, fold_N)
    said += _outlier_notes(config, task, fold_N)
    return Plan(config, crops, choice, task, normal, group_N, fold_N, record, said)


def _as_probe(config: CellsConfig) -> ProbeConfig:
    """Return the settings by which a probe cuts and encodes the same crops."""
    shared = ("crop_um", "slide_mpp", "pooling", "seed", "slides", "device", "batch_size")
    return ProbeConfig(**{name: getattr(config, name) for name in (*shared, "threads")})


def _task(config: CellsConfig, points: Points) -> tuple[Task, tuple[str, ...]]:
    """Return the classes with their cells, and the labels that are normal (one-class)."""
    if config.model == "one-class":
        return _normal_or_not(config, points)
    (task,) = make_tasks(points, [config.task], None)
    if config.order:
        order = as_found(points.labels, config.order, "--order", what="point")
        return _reordered(task, [name for name in order if name in task.classes]), ()
    if config.ordinal and config.task == "labels" and not is_bethesda(task.classes):
        raise LabelError(
            f"--ordinal: nobody says in which order {named(task.classes)} are.",
            hint="--order NORMAL,MILD,…,WORST; Bethesda classes need none: leave other rows out",
        )
    return task, ()


def _normal_or_not(config: CellsConfig, points: Points) -> tuple[Task, tuple[str, ...]]:
    wanted = config.normal or class_order(points.labels)[:1]
    normal = as_found(points.labels, wanted, "--normal", what="point", whole=False)
    y_N = np.array([label not in normal for label in points.labels], dtype=np.int64)
    groups = {points.groups[i] for i in np.flatnonzero(y_N == 0)}
    if len(groups) < 2:
        raise LabelError(
            f"{int((y_N == 0).sum())} normal cell(s) ({named(normal)}) of {len(groups)} group(s): "
            "two groups are needed, to learn from one and judge by the other.",
            hint="label normal cells of more groups, or name more labels with --normal",
        )
    return Task("one-class", NORMAL_OR_NOT, np.arange(len(points)), y_N, {}), normal


def _reordered(task: Task, order: Sequence[str]) -> Task:
    place_C = np.array([order.index(name) for name in task.classes], dtype=np.int64)
    return Task(task.name, tuple(order), task.rows_N, place_C[task.y_N], task.left_out)


def _refuse_poor_folds(config: CellsConfig, task: Task, fold_N: NDArray[np.int64]) -> None:
    """Refuse folds whose training part has fewer than two classes, or no normal cells."""
    if int(fold_N.max()) == 0:
        raise LabelError("one fold holds all cells: none can be held out.", hint="--folds 2")
    for fold in range(int(fold_N.max()) + 1):
        there = np.bincount(task.y_N[fold_N != fold], minlength=len(task.classes))
        if config.model == "one-class" and there[0] < 2:
            raise LabelError(
                "the normal cells of all groups but one fold's are fewer than two.",
                hint="label normal cells of more groups",
            )
        if config.model != "one-class" and (there > 0).sum() < 2:
            raise LabelError(
                f"without the groups of fold {fold} only one class is left to learn.",
                hint="label more groups, or ask for more --folds",
            )


def _stopping_notes(
    config: CellsConfig, group_N: NDArray[np.int64], fold_N: NDArray[np.int64]
) -> list[str]:
    """Say where no groups are left to tell when lora has learnt enough."""
    alone = [fold for fold in np.unique(fold_N) if len(np.unique(group_N[fold_N != fold])) < 2]
    if config.model != "lora" or not alone:
        return []
    return [
        f"in {len(alone)} fold(s) one group is left to learn from, so nothing says when to stop: "
        "all epochs are trained"
    ]


def _outlier_notes(config: CellsConfig, task: Task, fold_N: NDArray[np.int64]) -> list[str]:
    """Say where normal cells are too few for any cell to be an outlier: `share_nearer`."""
    if config.model != "one-class":
        return []
    normal_N = task.y_N == 0
    fewest = min(int((normal_N & (fold_N != fold)).sum()) for fold in np.unique(fold_N))
    farthest = fewest / (fewest + 1)
    if farthest > config.outlier:
        return []
    mend = f"--outlier {math.floor(100 * farthest - 1e-9) / 100:g}"
    if config.outlier < 1:
        enough = math.floor(config.outlier / (1 - config.outlier) + 1e-9) + 1
        mend = f"{enough} are needed, or {mend}"
    return [
        f"one-class: {fewest} normal cells of other folds are too few to place a cell farther out "
        f"than {config.outlier:.4g} of them: none is called an outlier ({mend})"
    ]
