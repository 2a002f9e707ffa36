"""How much of a cell probe is left on perturbed cells.

The probes of `evaluate probe` are fitted on unchanged cells of the training folds and asked about
the held-out cells under every condition: an encoder whose features move, but not where classes
are told apart, keeps its AUC.
Legend: N cells, M of them judged, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import as_record
from cytofm_cli.evaluate import condition_tables, judge, probe
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.condition_config import RetentionConfig
from cytofm_cli.evaluate.condition_folder import RETENTION, Results, make_run
from cytofm_cli.evaluate.conditions import Conditions, Note, Places, Progress
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.notes import cautions, plan_notes
from cytofm_cli.evaluate.perturbation_names import UNCHANGED, parse_all
from cytofm_cli.evaluate.plan import Plan as ProbePlan
from cytofm_cli.evaluate.plan import is_judged
from cytofm_cli.evaluate.plan import make_plan as make_probe_plan
from cytofm_cli.evaluate.points import Task
from cytofm_cli.evaluate.probe import Features, Probe
from cytofm_cli.runs.folder import RunReport
from cytofm_cli.runs.record import Record
from cytofm_cli.stats.intervals import Difference, holm
from cytofm_cli.stats.score_intervals import macro_auc_interval, retraining
from cytofm_cli.work.signals import stopping

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is fixed before the first pixel is read.

    Attributes:
        config: settings.
        probes: cells, tasks and encoders, as of `evaluate probe`.
        folds: by task, the fold that tests each cell; negative: none does.
        record: sections of config.toml.
    """

    config: RetentionConfig
    probes: ProbePlan
    folds: dict[str, Ints]
    record: Record


def make_plan(
    config: RetentionConfig,
    sources: Sequence[Source],
    points: Path | None,
    choices: Sequence[Choice],
    *,
    groups: Path | None = None,
) -> Plan:
    """Read and check everything but pixels; arguments and errors as of `plan.make_plan`."""
    plan = make_probe_plan(config.as_probe(), sources, points, choices, groups=groups)
    n_folds = config.folds or judge.default_folds(plan.points.groups)
    group_N = _numbers(plan.points.groups)
    folds = {}
    for task in plan.tasks:
        fold_N = probe.grouped_folds(task.y_N, group_N[task.rows_N], n_folds, config.seed)
        folds[task.name] = np.where(is_judged(plan.points, task, config.judged), fold_N, -1)
    record = {
        "retention": as_record(config, results_only=True),
        "data": plan.record["data"],
    }
    return Plan(config, plan, folds, record)


def retention_run(
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> RunReport:
    """Judge encoders and write a RUN: config.toml, metrics.json, table.md, TASK.svg.

    Args:
        plan: see `make_plan`.
        out: RUN folder.
        overwrite: make a RUN anew that was made with other settings.
        progress: called with (encoder, images done, of how many).
        note: called with what the user should know.

    Raises:
        ConfigMismatchError: `out` was made with other settings, or is something else.
        InputError, WeightsError: see `Conditions.features`.
        StoppedError: a signal asked to stop.
    """

    def make(folder: Path, stop: Any) -> Results:
        tell = stopping(progress, stop)

        metrics = _head(plan)
        probes, config = plan.probes, plan.config
        places = Places(probes.points, probes.sources, "cell", config.seed, config)
        for choice in probes.choices:
            tell(choice.label, 0, len(probes.points))
            conditions = Conditions(places, choice, folder, tell, note)
            values_of = {UNCHANGED: conditions.features(None)}
            for how in parse_all(config.perturb):
                values_of[how.name] = conditions.features(how)
            metrics["encoders"][choice.label] = choice.identity() | conditions.facts
            for task in probes.tasks:
                tell(choice.label, len(probes.points), len(probes.points))
                rows = _of_task(plan, task, values_of)
                metrics["comparisons"] += [
                    {"encoder": choice.label, "task": task.name, **row} for row in rows
                ]
        _adjust(metrics["comparisons"])
        return metrics, condition_tables.retention_files(metrics)

    return make_run(RETENTION, out, plan.record, make, overwrite=overwrite)


def out_of_fold_under(
    train_ND: Features,
    shown: Sequence[Features],
    y_N: Ints,
    groups_N: Ints,
    fold_N: Ints,
    kind: Probe,
) -> list[dict[str, Floats]]:
    """Fit on all folds but one, unchanged; answer for that one under every condition.

    Each fold is fitted once: all conditions meet the same probe.

    Args:
        train_ND: features that are learnt from.
        shown: by condition, features (N, D) of the same instances that are asked about.
        y_N, groups_N, fold_N: as of `probe.out_of_fold`.
        kind: the probe.

    Returns:
        by condition, as `probe.out_of_fold`.
    """
    n_classes = int(y_N.max()) + 1
    answers: list[dict[str, Floats]] = [{} for _ in shown]
    for fold in np.unique(fold_N[fold_N >= 0]):
        train, test = fold_N != fold, fold_N == fold
        present, y = np.unique(y_N[train], return_inverse=True)
        asked = np.concatenate([values_ND[test] for values_ND in shown])
        said = kind(train_ND[train], y.astype(np.int64), groups_N[train], asked, len(present))
        for name, p in said.items():
            for of, p_MC in zip(answers, np.split(p, len(shown)), strict=True):
                whole_NC = of.setdefault(name, np.zeros((len(y_N), n_classes)))
                whole_NC[np.ix_(test, present)] = p_MC
    return answers


def _of_task(
    plan: Plan, task: Task, values_of: Mapping[str, NDArray[np.float32]]
) -> list[dict[str, Any]]:
    """Return a record a condition and probe of one encoder on one task."""
    config, points, fold_N = plan.config, plan.probes.points, plan.folds[task.name]
    group_N = _numbers(points.groups)[task.rows_N]
    shown = [values_ND[task.rows_N] for values_ND in values_of.values()]
    tested_N = fold_N >= 0
    y_M = task.y_N[tested_N]
    groups = tuple(points.groups[i] for i in task.rows_N[tested_N])
    truth = judge.Truth(y_M, groups, retraining(len(np.unique(fold_N))))
    rows = []
    for kind in (
        probe.linear(inner_folds=config.inner_folds, balanced=config.balanced, seed=config.seed),
        probe.knn((config.k,), temperature=config.temperature, balanced=config.balanced),
    ):
        answers = out_of_fold_under(shown[0], shown, task.y_N, group_N, fold_N, kind)
        for condition, said in zip(values_of, answers, strict=True):
            for name, p_NC in said.items():
                unchanged_MC, p_MC = answers[0][name][tested_N], p_NC[tested_N]
                auc = macro_auc_interval(y_M, p_MC, groups, retrained=truth.retrained)
                change = judge.change_of_auc(
                    truth, unchanged_MC, p_MC, swaps=config.swaps, seed=config.seed
                )
                rows.append(
                    {"probe": name, "condition": condition, "auc": auc.record()}
                    | ({} if condition == UNCHANGED else {"change": _plain(change)})
                )
    return rows


def _adjust(rows: Sequence[dict[str, Any]]) -> None:
    """Correct the p of all changes for their number (Holm)."""
    changes = [row["change"] for row in rows if "change" in row]
    for change, p in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["p_adjusted"] = p


def _plain(change: Difference) -> dict[str, float | None]:
    return {key: float(v) if np.isfinite(v) else None for key, v in vars(change).items()}


def _numbers(groups: Sequence[str]) -> Ints:
    return np.unique(np.array(groups), return_inverse=True)[1].astype(np.int64)


def _head(plan: Plan) -> dict[str, Any]:
    points = plan.probes.points
    return {
        "instances": len(points),
        "slides": len(set(points.slides)),
        "groups": len(set(points.groups)),
        "probes": ["linear", f"knn{plan.config.k}"],
        "conditions": [UNCHANGED, *(how.name for how in parse_all(plan.config.perturb))],
        "encoders": {},
        "tasks": {
            task.name: {"classes": list(task.classes), "counts": task.counts}
            for task in plan.probes.tasks
        },
        "notes": [*plan_notes(plan.probes), *cautions(plan.probes, plan.folds)],
        "comparisons": [],
    }
