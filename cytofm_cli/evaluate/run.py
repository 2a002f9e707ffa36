"""A whole evaluation: points → features (kept) → probes → metrics, in one RUN folder.

Legend: N instances, C classes, R replicates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.config import digest
from cytofm_cli.encoders.base import CELL_UM
from cytofm_cli.evaluate import features, judge, probe, run_folder, tables
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.config import ProbeConfig
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.notes import cautions, check_scale, plan_notes
from cytofm_cli.evaluate.plan import Plan, is_judged, make_plan
from cytofm_cli.evaluate.points import Task, count_labels
from cytofm_cli.evaluate.run_folder import FEATURES, METRICS, PREDICTIONS, TABLE
from cytofm_cli.runs.folder import CONFIG, RunReport, holding
from cytofm_cli.runs.record import to_text
from cytofm_cli.stats.score_intervals import retraining
from cytofm_cli.store import schema
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals, stopping

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
# Kept features of another number were made in another way by a cytofm of the same version.
FEATURES_LAYOUT = 2
Answers = dict[tuple[str, str, str], NDArray[np.float64]]


def probe_run(
    config: ProbeConfig,
    sources: Sequence[Source],
    points: Path | None,
    choices: Sequence[Choice],
    out: Path,
    *,
    groups: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> RunReport:
    """Judge encoders and write a RUN: config.toml, predictions.csv, metrics.json, table.md.

    Features are kept in the RUN under a name made of encoder, weights, points and crops: a
    second run with other probes, or one that was stopped, computes none of them again.

    Args:
        config: settings.
        sources: slides or stores.
        points: table of labelled points; None: those that stores of cells hold.
        choices: encoders.
        out: RUN folder.
        groups: table of groups.
        overwrite: make a RUN anew that was made with other settings.
        progress: called with (encoder, instances done, of how many).
        note: called with what the user should know.

    Raises:
        ConfigMismatchError: `out` was made with other settings, or is something else.
        LabelError, InputError, WeightsError: see `make_plan` and `Choice.load`.
        StoppedError: a signal asked to stop.
    """
    plan = make_plan(config, sources, points, choices, groups=groups)
    for line in plan_notes(plan):
        note(line)
    out = real_place(out)
    with output_errors(out):
        if not run_folder.may_write(out, plan.record, defaults=plan.defaults, overwrite=overwrite):
            return RunReport(out, run_folder.read_metrics(out), skipped=True)
        with holding(out):
            (out / FEATURES).mkdir(parents=True, exist_ok=True)
            with catch_signals() as stop:
                metrics, answers, folds = _judge_all(plan, out / FEATURES, progress, note, stop)
            predictions = tables.predictions_csv(plan.points, plan.tasks, folds, answers)
            (out / METRICS).unlink(missing_ok=True)  # what was there is a RUN no more
            write_text(out / CONFIG, to_text(plan.record))
            write_text(out / PREDICTIONS, predictions)
            write_text(out / TABLE, tables.markdown(metrics))
            whole = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(out / METRICS, whole)
    return RunReport(out, metrics, skipped=False)


def features_of(
    plan: Plan, choice: Choice, folder: Path | None, progress: Progress, note: Note
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the features of one encoder, from the store or the RUN where they are there.

    Returns:
        float32 (N, D), and facts of the encoder.
    """
    config, points = plan.config, plan.points
    if config.unit == "tile":
        stored = features.stored_features(points, plan.sources, choice.name, choice.weights_sha256)
        if stored is not None:
            features.check_finite(stored, points, choice.label)
            return stored, {"dim": stored.shape[1], "features": "of the stores"}
    kept = None if folder is None else folder / features_name(plan, choice)
    if kept is not None and (known := run_folder.read_features(kept, len(points))) is not None:
        return known
    values, facts = _compute(plan, choice, progress, note)
    if kept is not None:
        run_folder.keep_features(kept, values, facts)
    return values, facts


def features_name(plan: Plan, choice: Choice) -> str:
    """Return the file of kept features: all that they depend on is in its name."""
    config = plan.config
    settings = {
        **choice.identity(),
        **plan.marks,
        "unit": config.unit,
        "crop_um": config.crop_um if config.unit == "cell" else None,
        "mpp": config.slide_mpp,
        "pooling": config.pooling,
        "seed": config.seed if choice.random else None,
        "cytofm": __version__,
        "layout": FEATURES_LAYOUT,
    }
    name = schema.node_name(choice.label).replace(" ", "-")
    return f"{name}-{digest(settings)}.safetensors"


def _compute(
    plan: Plan, choice: Choice, progress: Progress, note: Note
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    config, points = plan.config, plan.points
    encoder = choice.load(device=config.device, seed=config.seed, pooling=config.pooling)
    for line in getattr(encoder, "notes", ()):
        note(line)
    how: dict[str, Any] = {
        "slides": config.slides,
        "device": config.device,
        "batch_size": config.batch_size,
        "threads": config.threads or cpu_count(),
        "report": lambda done, total: progress(choice.label, done, total),
    }
    if config.unit == "tile":
        values = features.tile_features(points, plan.sources, encoder, **how)
    else:
        crop_um = config.crop_um or encoder.spec.cell_um or CELL_UM
        check_scale(encoder.spec, crop_um, note)
        how |= {"crop_um": crop_um, "mpp": config.slide_mpp}
        values = features.cell_features(points, plan.sources, encoder, **how)
    spec = encoder.spec
    return values, {"dim": spec.dim, "crop_um": how.get("crop_um"), **spec.facts()}


INTERVAL = (
    "95 %, over groups: score intervals, widened as folds were pooled; of the average precision "
    "percentile bootstrap, {replicates} replicates"
)


def _judge_all(
    plan: Plan, folder: Path, progress: Progress, note: Note, stop: StopFlag
) -> tuple[dict[str, Any], Answers, dict[str, NDArray[np.int64]]]:
    config, points = plan.config, plan.points

    tell = stopping(progress, stop)

    group_N = np.unique(points.groups, return_inverse=True)[1].astype(np.int64)
    n_folds = config.folds or judge.default_folds(points.groups)
    folds: dict[str, NDArray[np.int64]] = {}
    truths: dict[str, judge.Truth] = {}
    for task in plan.tasks:
        fold_N = probe.grouped_folds(task.y_N, group_N[task.rows_N], n_folds, config.seed)
        tested_N = is_judged(points, task, config.judged)
        folds[task.name] = np.where(tested_N, fold_N, -1)
        truths[task.name] = judge.Truth(
            task.y_N[tested_N],
            tuple(points.groups[i] for i in task.rows_N[tested_N]),
            retraining(len(np.unique(fold_N))),
        )
    metrics = _head(plan, folds)
    answers: Answers = {}
    for choice in plan.choices:
        tell(choice.label, 0, len(points))
        values_ND, facts = features_of(plan, choice, folder, tell, note)
        metrics["encoders"][choice.label] = choice.identity() | facts
        for task in plan.tasks:
            tell(choice.label, len(points), len(points))
            metrics_of, said = _judge_task(plan, task, values_ND, group_N, folds[task.name], truths)
            metrics["tasks"][task.name]["encoders"][choice.label] = metrics_of
            for name in metrics["probes"]:
                answers[choice.label, task.name, name] = said[name]
    metrics["comparisons"] = [
        pair.record()
        for pair in judge.compare(answers, truths, swaps=config.replicates, seed=config.seed)
    ]
    return metrics, answers, folds


def _judge_task(
    plan: Plan,
    task: Task,
    values_ND: NDArray[np.float32],
    group_N: NDArray[np.int64],
    fold_N: NDArray[np.int64],
    truths: Mapping[str, judge.Truth],
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Return the metrics of one encoder on one task, and its answers by probe, where judged."""
    config = plan.config
    x_ND, y_N, of_group = values_ND[task.rows_N], task.y_N, group_N[task.rows_N]
    said: dict[str, NDArray[np.float64]] = {}
    for kind in (
        probe.linear(inner_folds=config.inner_folds, balanced=config.balanced, seed=config.seed),
        probe.knn(config.k, temperature=config.temperature, balanced=config.balanced),
    ):
        said |= probe.out_of_fold(x_ND, y_N, of_group, fold_N, kind)
    tested_N = fold_N >= 0
    said = {name: p_NC[tested_N] for name, p_NC in said.items()}
    truth = truths[task.name]
    weight_RG = judge.group_weights(truth, config.replicates, config.seed)
    judged: dict[str, Any] = {}
    for name, p_NC in said.items():
        estimates = judge.judge(truth, p_NC, weight_RG)
        judged[name] = {key: value.record() for key, value in estimates.items()}
        judged[name]["groups"] = judge.per_group(truth.y_N, p_NC, truth.groups)
    few = probe.few_shot(
        x_ND, y_N, fold_N, shots=config.shots, draws_R=config.draws, seed=config.seed
    )
    shots = {
        str(n): {
            key: value.record()
            for key, value in judge.over_draws(truth.y_N, p_RNC[:, tested_N]).items()
        }
        for n, p_RNC in few.items()
    }
    return {"probes": judged, "few_shot": shots}, said


def _head(plan: Plan, folds: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
    config, points = plan.config, plan.points
    k = 20 if 20 in config.k else config.k[0]
    return {
        "unit": config.unit,
        "crop_um": config.crop_um if config.unit == "cell" else None,
        "instances": len(points),
        "slides": len(set(points.slides)),
        "groups": len(set(points.groups)),
        "labels": count_labels(points.labels),
        "points_without_pixels": plan.unread,
        "slides_not_given": plan.unknown,
        "judged": None if config.judged is None else list(config.judged),
        "interval": INTERVAL.format(replicates=config.replicates),
        "draws": config.draws,
        "probes": ["linear", f"knn{k}"],
        "encoders": {},
        "notes": [*plan_notes(plan), *cautions(plan, folds)],
        "tasks": {
            task.name: {
                "classes": list(task.classes),
                "counts": task.counts,
                "left_out": task.left_out,
                "folds": len(set(folds[task.name].tolist()) - {-1}),
                "encoders": {},
            }
            for task in plan.tasks
        },
    }
