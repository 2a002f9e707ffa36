"""Run a whole MIL experiment: all folds and seeds, resumable, visible only when complete.

Legend: S slides, C classes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytofm_cli import __version__
from cytofm_cli.errors import (
    ConfigMismatchError,
    InputError,
    OutputError,
    UsageError,
    WeightsError,
)
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil import run_folder, summary
from cytofm_cli.mil.bags import Bag, check_bags, fingerprint, load_bags
from cytofm_cli.mil.bags import notes as bag_notes
from cytofm_cli.mil.cache import bag_file
from cytofm_cli.mil.config import MilConfig, MilSettings, check_classes
from cytofm_cli.mil.labels import Cohort, build_cohort, read_labels
from cytofm_cli.mil.origin import Origin
from cytofm_cli.mil.run_folder import (
    CELLS,
    CONFIG,
    DECISIONS,
    LOG,
    METRICS,
    MODELS,
    PREDICTIONS,
    SPLITS,
    read_config,
    read_metrics,
)
from cytofm_cli.mil.tune import Candidate, make_candidates
from cytofm_cli.runs.record import changes, to_text
from cytofm_cli.stats import folds as splits
from cytofm_cli.stats.classes import is_bethesda
from cytofm_cli.stats.folds import Fold
from cytofm_cli.words import named
from cytofm_cli.work.claim import claim
from cytofm_cli.work.device import find_device
from cytofm_cli.work.files import output_errors, remove_partials, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals

if TYPE_CHECKING:
    from cytofm_cli.mil.train import Passing

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunReport:
    """A finished run.

    Attributes:
        path: the RUN folder.
        metrics: content of metrics.json.
        skipped: it was there already, made with the same settings.
    """

    path: Path
    metrics: dict[str, Any]
    skipped: bool


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that is fixed before the first model is trained.

    Attributes:
        config: the settings.
        recipe: `Recipe`, resolved.
        head: settings of the head, resolved.
        cohort: bags and labels.
        folds: outer folds.
        candidates: settings to choose from in each fold; one if there is no search.
        origin: what the bags are made from.
        record: sections of config.toml.
        notes: what a reader must know of cohort and bags.
    """

    config: MilConfig
    recipe: Any
    head: dict[str, Any]
    cohort: Cohort
    folds: list[Fold]
    candidates: list[Candidate]
    origin: Origin
    record: dict[str, dict[str, Any]]
    notes: list[str]


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
    out = out.absolute()
    staging = out.parent / f".{out.name}.partial"
    with catch_signals() as stop, bag_file(out) as cache:
        plan = make_plan(config, bags, labels, head or {}, tune=tune, cache=cache)
        if started is not None:
            started(plan)
        with output_errors(out):
            if out.exists() and not _may_write(out, plan, overwrite=overwrite):
                return RunReport(out, read_metrics(out), skipped=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            with claim(out.parent / f".{out.name}.claim"):
                _prepare(staging, plan)
                _run_cells(plan, staging, progress, stop, passing)
                found = _finish(plan, staging)
                if out.exists():
                    shutil.rmtree(out)
                staging.replace(out)
    return RunReport(out, found, skipped=False)


def make_plan(
    config: MilConfig,
    bags: Path | Sequence[Bag],
    labels: Path,
    head: Mapping[str, Any],
    *,
    tune: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
) -> Plan:
    """Load, check and decide everything before training; touches no file of the run.

    Arguments are those of `train_run`, and `cache`, the file for the features.
    """
    from cytofm_cli.mil.base import preset_settings

    config = replace(config, device=str(find_device(config.device)))  # `auto` is no record
    recipe_preset, head_preset = preset_settings(config.method, config.preset)
    recipe_settings = {**recipe_preset, **config.recipe_overrides()}
    head_settings = {**head_preset, **head}
    tune = tune or {}
    twice = [key for key in tune if key in head or key in config.recipe_overrides()]
    if twice:
        raise UsageError(f"{twice[0]} is both set and tuned.", hint="leave one of the two out")
    table = read_labels(labels, label_column=config.label, group_column=config.group)
    if isinstance(bags, Path):
        bags = load_bags(bags, config.encoder, config.unit, cache)
    else:
        check_bags(bags)
    cohort = build_cohort(
        bags,
        table,
        classes=config.classes,
        positive=config.positive,
        allow_missing=config.allow_missing,
    )
    check_classes(config, len(cohort.classes))
    origin, mixed = origins.common(cohort.bags, allow_mixed=config.allow_mixed)
    search = partial(
        make_candidates,
        config.method,
        recipe_settings,
        head_settings,
        n_features=_width(cohort),
        n_classes=len(cohort.classes),
    )
    (base,), candidates = search({}), search(tune)
    folds = make_folds(config, cohort)
    record = _record(config, base, cohort, folds, origin.encoder)
    record[origins.SECTION] = {**origin.record(), "mixed": mixed or None}
    if tune:
        record["tune"] = {k: list(dict.fromkeys(c.settings[k] for c in candidates)) for k in tune}
    notes = [
        *summary.cohort_notes(cohort, splits.tested(folds)),
        *bag_notes(cohort.bags),
        *origins.notes(cohort.bags, mixed),
    ]
    if config.splits is not None and (other := splits.unused(config.splits, cohort.slide_ids)):
        notes.append(f"{config.splits}: {len(other)} slide(s) not of this cohort: {named(other)}")
    return Plan(config, base.recipe, base.head, cohort, folds, candidates, origin, record, notes)


def make_folds(config: MilSettings, cohort: Cohort) -> list[Fold]:
    """Make the outer folds that the settings ask for."""
    y, groups = cohort.y_N, cohort.groups
    if config.splits is not None:
        folds = splits.read_csv(config.splits, cohort.slide_ids, groups, y)
        splits.check_classes(folds, y, cohort.classes, config.splits)
        return folds
    protocol = config.protocol
    if protocol == "auto":
        protocol = "cv" if cohort.splits is None else "column"
    if protocol == "column":
        if cohort.splits is None:
            raise InputError("the table of labels has no `split` column.", hint="`--protocol cv`")
        return splits.from_column(
            cohort.splits, y, groups, inner_folds=config.inner_folds, seed=config.seed
        )
    shared = {"inner_folds": config.inner_folds, "repeats": config.repeats, "seed": config.seed}
    if protocol == "holdout":
        return splits.holdout(y, groups, test_fraction=config.test_fraction, **shared)
    return splits.cross_validation(y, groups, folds=config.folds, classes=cohort.classes, **shared)


def _width(cohort: Cohort) -> int:
    return int(cohort.bags[0].features_ND.shape[1])


def _record(
    config: MilConfig, base: Candidate, cohort: Cohort, folds: Sequence[Fold], encoder: str
) -> dict[str, dict[str, Any]]:
    from cytofm_cli.config import as_record, digest
    from cytofm_cli.registry import mil_methods

    mil = as_record(config, results_only=True)
    mil["encoder"] = encoder or None  # named or found: the same run
    # What counts is what the folds, groups and classes are, not which option they came from.
    for implied in ("splits", "group", "positive"):
        mil.pop(implied)
    layout = splits.to_csv(folds, cohort.slide_ids, cohort.groups)
    gap = mil_methods.load(config.method).make.gap if config.preset == "official" else ""
    return {
        "mil": mil,
        "recipe": as_record(base.recipe),
        config.method: base.head,
        "task": {
            "classes": list(cohort.classes),
            "positive": cohort.classes[-1] if len(cohort.classes) == 2 else None,
            "slides": len(cohort.bags),
            "groups": len(set(cohort.groups)),
            "folds": len(folds),
            "features": _width(cohort),
            "encoder": encoder,
            "labels_digest": digest(
                {b: int(y) for b, y in zip(cohort.slide_ids, cohort.y_N, strict=True)}
            ),
            "bags_digest": fingerprint(cohort.bags),
            "splits_digest": digest({"splits": layout}),
            "differs_from_official": gap or None,
            "cytofm": __version__,
        },
    }


def _may_write(out: Path, plan: Plan, *, overwrite: bool) -> bool:
    """Tell whether a RUN must be made although `out` exists; False: it is done already."""
    if not out.is_dir():
        raise OutputError(f"{out}: is a file, no folder.", hint="choose another -o")
    if not (run_folder.is_run(out) or (out / METRICS).is_file()):
        if any(out.iterdir()):
            raise ConfigMismatchError(
                f"{out}: exists and is not a RUN of `cytofm mil train`.", hint="choose another -o"
            )
        return True
    if overwrite:
        return True
    if not run_folder.is_run(out):
        raise ConfigMismatchError(
            f"{out}: its {CONFIG} is gone or damaged, so what it was made with is not known.",
            hint="`--overwrite` trains it anew; or choose another -o",
        )
    if changed := _changes(out, plan):
        raise ConfigMismatchError(
            f"{out}: was made with other settings ({'; '.join(changed)}).",
            hint="`--overwrite` replaces it; or choose another -o",
        )
    if exchanged := run_folder.changed(out):
        raise WeightsError(
            f"{out}: holds other files than were trained: {'; '.join(exchanged)}.",
            hint="put the right ones back, or train it anew with `--overwrite`",
        )
    return bool(run_folder.lost(out))


# What decides the folds, and nothing else.
_ABOUT_FOLDS = ("protocol", "folds", "inner_folds", "repeats", "test_fraction")


def _changes(run: Path, plan: Plan) -> list[str]:
    found = read_config(run)
    # A RUN of a version that did not record the origin: the digest of the bags tells enough.
    known = {k: v for k, v in plan.record.items() if k in found or k != origins.SECTION}
    if found.get("task", {}).get("splits_digest") == plan.record["task"]["splits_digest"]:
        # The same folds, by whatever words they were drawn.
        found, known = (
            {**of, "mil": {k: v for k, v in of["mil"].items() if k not in _ABOUT_FOLDS}}
            for of in (found, known)
        )
    return changes(found, known)


def _prepare(staging: Path, plan: Plan) -> None:
    """Make the staging folder, or keep what an interrupted run with the same settings left."""
    if staging.exists():
        try:
            same = not changes(read_config(staging), plan.record)
        except InputError:
            same = False
        if not same:
            shutil.rmtree(staging)
    for folder in (MODELS, CELLS):
        (staging / folder).mkdir(parents=True, exist_ok=True)
        remove_partials(staging / folder)
    remove_partials(staging)
    layout = splits.to_csv(plan.folds, plan.cohort.slide_ids, plan.cohort.groups)
    write_text(staging / SPLITS, layout)
    write_text(staging / CONFIG, to_text(plan.record))


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
    found = _metrics_record(plan, cells, decisions)
    if len(plan.candidates) > 1:
        found["tuned"] = [fold_choice(plan, staging, fold) for fold in range(len(plan.folds))]
    write_text(staging / PREDICTIONS, summary.predictions_csv(models, decisions, cohort))
    write_text(staging / DECISIONS, _json([d.__dict__ for d in decisions]))
    lines = [
        json.dumps({"fold": cell.fold, "seed": cell.seed, "best_epoch": cell.best_epoch, **row})
        for cell in cells
        for row in cell.history
    ]
    stamp = json.dumps({"event": "finished", "utc": datetime.now(UTC).isoformat("T", "seconds")})
    write_text(staging / LOG, "\n".join([*lines, stamp]) + "\n")
    write_text(staging / run_folder.MANIFEST, run_folder.manifest_text(staging))
    write_text(staging / METRICS, _json(found))
    shutil.rmtree(staging / CELLS)
    return found


def _metrics_record(
    plan: Plan,
    cells: Sequence[summary.CellResult],
    decisions: Sequence[summary.Decision],
) -> dict[str, Any]:
    cohort, config = plan.cohort, plan.config
    n, c = len(cohort.y_N), len(cohort.classes)
    plain = [summary.Decision(1.0, d.threshold) for d in decisions]
    models = [cell for cell in cells if cell.seed >= 0]
    retrained = [cell for cell in cells if cell.seed < 0]
    ordinal = plan.recipe.bag_loss == "ordinal" or (c > 2 and is_bethesda(cohort.classes))
    pooled = summary.pool(models, decisions, c, n)
    raw = summary.pool(models, plain, c, n)
    found = summary.judge(pooled, raw, cohort, config, ordinal=ordinal)
    cautions = summary.interval_notes(found, config.bootstrap)
    found |= {
        "method": config.method,
        "preset": config.preset,
        "encoder": plan.origin.encoder,
        "unit": config.unit,
        **summary.facts(cohort, pooled.index),
        "threshold": summary.threshold(decisions, cohort, config),
        "folds": len(plan.folds),
        "seeds": config.seeds,
        "interval": f"95 %, percentile bootstrap over groups, {config.bootstrap} replicates",
        "what": "out-of-fold; the mean probability of the models that never saw the slide",
        **summary.spread(models, decisions, cohort),
        "notes": [*plan.notes, *cautions],
    }
    if retrained:
        single = summary.pool(retrained, decisions, c, n)
        found["retrained"] = summary.judge(
            single, summary.pool(retrained, plain, c, n), cohort, config, ordinal=ordinal
        )
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
