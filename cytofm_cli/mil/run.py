"""Run a whole MIL experiment: all folds and seeds, resumable, visible only when complete.

Legend: S slides, C classes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli.mil import summary
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.cache import bag_file
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.plan import Plan, make_plan
from cytofm_cli.mil.run_folder import (
    CELLS,
    DECISIONS,
    LOG,
    MANIFEST,
    METRICS,
    MODELS,
    PREDICTIONS,
    SPLITS,
    manifest_text,
    may_write,
    read_metrics,
)
from cytofm_cli.mil.splits import to_csv
from cytofm_cli.runs import folder
from cytofm_cli.runs.folder import CONFIG, RunReport
from cytofm_cli.runs.provenance import utc_now
from cytofm_cli.runs.record import to_text
from cytofm_cli.stats.classes import is_bethesda
from cytofm_cli.stats.judge import Decision
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals

if TYPE_CHECKING:
    from cytofm_cli.mil.train import Passing

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


def train_run(
    config: MilConfig,
    bags: Path | Sequence[Bag],
    labels: Path,
    out: Path,
    *,
    head: Mapping[str, Any] | None = None,
    tune: Mapping[str, Sequence[str]] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    passing: Passing | None = None,
    started: Callable[[Plan], None] | None = None,
) -> RunReport:
    """Train, judge and write a RUN.

    A killed run leaves a hidden staging folder beside `out`; the same command again goes on
    from the last finished model and ends with the same bytes.

    Args:
        config: settings.
        bags: folder of stores or bag files, or loaded bags.
        labels: table of labels.
        out: RUN folder to make.
        head: settings of the head that differ from the preset.
        tune: values to try for settings of recipe or head; each fold chooses on its training part.
        overwrite: replace a RUN made with other settings.
        progress: called with (models done, of how many, what the last one was).
        passing: called after every epoch of a model that is trained in this process.
        started: called with the plan before anything is trained or found done.

    Raises:
        ConfigMismatchError: `out` was made with other settings.
        WeightsError: a model of the RUN `out` was exchanged. One that lost files is made again.
        InputError, LabelError: see `load_bags`, `build_cohort`, `cross_validation`.
        OutputError: `out` cannot be written.
        StoppedError: a signal asked to stop; finished models are kept.
    """
    out = real_place(out)
    with catch_signals() as stop, bag_file(out) as cache:
        plan = make_plan(config, bags, labels, head or {}, tune=tune, cache=cache)
        if started is not None:
            started(plan)
        with output_errors(out):
            if not may_write(out, plan.record, overwrite=overwrite):
                return RunReport(out, read_metrics(out), skipped=True)
            with folder.holding(out):
                staging = _prepare(plan, out)
                _run_cells(plan, staging, progress, stop, passing)
                metrics = _finish(plan, staging)
                folder.publish(staging, out)
    return RunReport(out, metrics, skipped=False)


def _prepare(plan: Plan, out: Path) -> Path:
    """Return the staging folder with what is known before training."""
    staging = folder.staging_of(out, plan.record)
    for name in (MODELS, CELLS):
        (staging / name).mkdir(exist_ok=True)
    layout = to_csv(plan.folds, plan.cohort.slide_ids, plan.cohort.groups)
    write_text(staging / SPLITS, layout)
    write_text(staging / CONFIG, to_text(plan.record))
    return staging


def _run_cells(
    plan: Plan,
    staging: Path,
    progress: Progress | None,
    stop: StopFlag,
    passing: Passing | None,
) -> None:
    from cytofm_cli.mil.cells import run_cells

    run_cells(plan, staging, progress or (lambda done, total, name: None), stop, passing)


def _finish(plan: Plan, staging: Path) -> dict[str, Any]:
    from cytofm_cli.mil.cells import all_cells, fold_choice, read_cell

    cohort, config = plan.cohort, plan.config
    cells = [read_cell(staging, cell) for cell in all_cells(plan)]
    models = [cell for cell in cells if cell.seed >= 0]
    decisions = [
        summary.fold_decision([c for c in models if c.fold == f], cohort.y_N, config)
        for f in range(len(plan.folds))
    ]
    record = _metrics_record(plan, cells, decisions)
    if len(plan.candidates) > 1:
        record["tuned"] = [fold_choice(plan, staging, fold) for fold in range(len(plan.folds))]
    write_text(staging / PREDICTIONS, summary.predictions_csv(models, decisions, cohort))
    write_text(staging / DECISIONS, _json([d.__dict__ for d in decisions]))
    lines = [
        json.dumps({"fold": cell.fold, "seed": cell.seed, "best_epoch": cell.best_epoch, **row})
        for cell in cells
        for row in cell.history
    ]
    stamp = json.dumps({"event": "finished", "utc": utc_now()})
    write_text(staging / LOG, "\n".join([*lines, stamp]) + "\n")
    write_text(staging / MANIFEST, manifest_text(staging))
    write_text(staging / METRICS, _json(record))
    shutil.rmtree(staging / CELLS)
    return record


_INTERVAL = (
    "95 %, over groups: score intervals of AUCs and shares, widened where folds were pooled; "
    "others percentile bootstrap, {replicates} replicates"
)


def _metrics_record(
    plan: Plan,
    cells: Sequence[summary.CellResult],
    decisions: Sequence[Decision],
) -> dict[str, Any]:
    cohort, config = plan.cohort, plan.config
    n, c = len(cohort.y_N), len(cohort.classes)
    plain = [Decision(1.0, d.threshold) for d in decisions]
    models = [cell for cell in cells if cell.seed >= 0]
    retrained = [cell for cell in cells if cell.seed < 0]
    ordinal = plan.recipe.bag_loss == "ordinal" or (c > 2 and is_bethesda(cohort.classes))
    pooled = summary.pool(models, decisions, c, n)
    raw = summary.pool(models, plain, c, n)
    folds = len(plan.folds)
    record = summary.judge(pooled, raw, cohort, config, ordinal=ordinal, folds=folds)
    cautions = summary.interval_notes(record, config.bootstrap)
    record |= {
        "method": config.method,
        "preset": config.preset,
        "encoder": plan.origin.encoder,
        "unit": config.unit,
        **summary.facts(cohort, pooled.index),
        "threshold": summary.threshold(decisions, cohort, config),
        "folds": len(plan.folds),
        "seeds": config.seeds,
        "interval": _INTERVAL.format(replicates=config.bootstrap),
        "what": "out-of-fold; the mean probability of the models that never saw the slide",
        **summary.spread(models, decisions, cohort),
        "notes": [*plan.notes, *cautions],
    }
    if retrained:
        single = summary.pool(retrained, decisions, c, n)
        record["retrained"] = summary.judge(
            single,
            summary.pool(retrained, plain, c, n),
            cohort,
            config,
            ordinal=ordinal,
            folds=folds,
        )
    return record


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
