"""Training a cell classifier: points → features (kept) → classifiers → judged, in one RUN folder.

Legend: N cells, C classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.cells import judging, run_folder
from cytofm_cli.cells.config import CellsConfig
from cytofm_cli.cells.fit import Crossed, cross_fit
from cytofm_cli.cells.plan import Plan, make_plan
from cytofm_cli.cells.run_folder import CARD, FEATURES, METRICS, PREDICTIONS, Card
from cytofm_cli.encoders.base import CELL_UM
from cytofm_cli.evaluate import probe
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.notes import cautions
from cytofm_cli.evaluate.run import features_of
from cytofm_cli.runs.folder import CONFIG, RunReport, holding
from cytofm_cli.runs.record import to_text
from cytofm_cli.stats.score_intervals import retraining
from cytofm_cli.table_text import TableWriter
from cytofm_cli.work.files import output_errors, real_place, write_text
from cytofm_cli.work.signals import StopFlag, catch_signals, stopping

if TYPE_CHECKING:
    from cytofm_cli.cells.lora_folds import TunedFolds
    from cytofm_cli.encoders.torch_encoder import TorchEncoder

Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
INTERVAL = "95 %, over groups: score intervals, widened as folds were pooled"


def train_run(
    config: CellsConfig,
    sources: Sequence[Source],
    labels: Path | None,
    choice: Choice,
    out: Path,
    *,
    groups: Path | None = None,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> RunReport:
    """Train and judge a classifier, and write a RUN.

    config.toml, model.safetensors, model.json, predictions.csv (held out), metrics.json, of lora
    adapters.safetensors. Features are kept in the RUN: one that was stopped, or has another model,
    computes none again; of lora the folds that were finished.

    Args:
        config: settings.
        sources: slides or stores.
        labels: table of labelled points; None: what stores of images of cells hold.
        choice: encoder.
        out: RUN folder.
        groups: table of groups.
        overwrite: make a RUN anew that was made with other settings.
        progress: called with (what, done, of how many).
        note: called with what the user should know.

    Raises:
        ConfigMismatchError: `out` was made with other settings, or is something else.
        LabelError, InputError, WeightsError: see `make_plan` and `Choice.load`.
        StoppedError: a signal asked to stop.
    """
    plan = make_plan(config, sources, labels, choice, groups=groups)
    encoder = _trainable(plan) if config.model == "lora" else None
    out = real_place(out)
    with output_errors(out):
        if not run_folder.may_write(out, plan.record, overwrite=overwrite):
            return RunReport(out, run_folder.RUN.read_json(out, METRICS), skipped=True)
        for line in plan.notes:
            note(line)
        with holding(out):
            (out / FEATURES).mkdir(parents=True, exist_ok=True)
            with catch_signals() as stop:
                values_ND, facts = _features(plan, out, progress, note, stop)
                crossed, tuned = _fit(plan, encoder, values_ND, out / FEATURES, progress, stop)
            for unfinished in (METRICS, CARD):  # what was there is a RUN no more
                (out / unfinished).unlink(missing_ok=True)
            write_text(out / CONFIG, to_text(plan.record))
            sha256 = run_folder.save_model(out, crossed.folds, crossed.whole)
            adapters = None if tuned is None else _save_adapters(out, plan, tuned)
            run_folder.save_card(out, _card(plan, crossed, facts, sha256, adapters))
            metrics, said_N, kept_N = _metrics(plan, crossed, facts)
            if adapters is not None:
                metrics["epochs"] = adapters["epochs"]
            table = predictions_csv(plan, crossed, said_N, kept_N)
            write_text(out / PREDICTIONS, table)
            whole = json.dumps(metrics, indent=1, ensure_ascii=False, allow_nan=False)
            write_text(out / METRICS, whole)
            if tuned is not None:
                _forget(out / FEATURES)
    return RunReport(out, metrics, skipped=False)


def _features(
    plan: Plan, out: Path, progress: Progress, note: Note, stop: StopFlag
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the features of the cells that take part, and how the encoder sees a crop."""

    tell = stopping(progress, stop)

    values_ND, facts = features_of(plan.crops, plan.choice, out / FEATURES, tell, note)
    return values_ND[plan.task.rows_N], facts


def _trainable(plan: Plan) -> TorchEncoder:
    from cytofm_cli.cells.lora_folds import trainable  # loads torch, which others may not need

    return trainable(plan)


def _fit(
    plan: Plan,
    encoder: TorchEncoder | None,
    values_ND: NDArray[np.float32],
    folder: Path,
    progress: Progress,
    stop: StopFlag,
) -> tuple[Crossed, TunedFolds | None]:
    """Fit all classifiers, and of lora the encoder's updates."""

    say = stopping(progress, stop)

    if encoder is not None:
        from cytofm_cli.cells.lora_folds import tune_folds

        tuned = tune_folds(plan, encoder, values_ND, folder, say)
        return tuned.crossed, tuned

    def tell(done: int, total: int) -> None:
        say(plan.config.model, done, total)

    y_N, n_classes = plan.task.y_N, len(plan.task.classes)
    of = (plan.config, values_ND, y_N, plan.group_N, plan.fold_N, n_classes)
    return cross_fit(*of, tell=tell), None


def _save_adapters(out: Path, plan: Plan, tuned: TunedFolds) -> dict[str, Any]:
    from cytofm_cli.cells.lora import scale_of

    sha256 = run_folder.save_adapters(out, tuned.adapters)
    return {"scale": scale_of(plan.config), "epochs": list(tuned.epochs), "sha256": sha256}


def _forget(folder: Path) -> None:
    from cytofm_cli.cells.lora_folds import forget

    forget(folder)


def _card(
    plan: Plan,
    crossed: Crossed,
    facts: dict[str, Any],
    sha256: str,
    adapters: dict[str, Any] | None,
) -> Card:
    config, points, choice = plan.config, plan.points, plan.choice
    folds = dict(zip(points.groups, plan.fold_N.tolist(), strict=True))
    slides: dict[str, set[str]] = {}
    for slide, group in zip(points.slides, points.groups, strict=True):
        slides.setdefault(slide, set()).add(group)
    facts = dict(facts)
    return Card(
        model=config.model,
        classes=plan.task.classes,
        ordinal=config.ordinal,
        normal=plan.normal,
        encoder=_placed(choice),
        seed=config.seed,
        pooling=config.pooling,
        crop_um=facts.pop("crop_um", None) or config.crop_um or CELL_UM,
        facts=facts,
        temperature=crossed.temperature,
        temperatures=crossed.temperature_F,
        abstain=config.abstain,
        outlier=config.outlier,
        fold_of_group=dict(sorted(folds.items())),
        groups_of_slide={slide: tuple(sorted(of)) for slide, of in sorted(slides.items())},
        sha256=sha256,
        cytofm=__version__,
        adapters=adapters,
    )


def _placed(choice: Choice) -> dict[str, Any]:
    """Return an encoder's choice as JSON values; files by their whole paths."""
    told = dict(choice.__dict__)
    if Path(choice.word).is_file():
        told["word"] = str(Path(choice.word).absolute())
    told["weights"] = None if choice.weights is None else str(choice.weights.absolute())
    return told


def answers_of(
    outlier: float | None, p_NC: NDArray[np.floating[Any]], abstain: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the class of each cell, and which cells something is said of.

    Args:
        outlier: of one-class: the share of normal cells that must lie nearer; else None.
        p_NC: probabilities.
        abstain: say nothing below this.
    """
    if outlier is not None:
        return (p_NC[:, 1] >= outlier).astype(np.int64), np.ones(len(p_NC), bool)
    return p_NC.argmax(1).astype(np.int64), p_NC.max(1) >= abstain


def _metrics(
    plan: Plan, crossed: Crossed, facts: dict[str, Any]
) -> tuple[dict[str, Any], NDArray[np.int64], NDArray[np.bool_]]:
    config, task, points = plan.config, plan.task, plan.points
    one_class = config.model == "one-class"
    p_NC = crossed.probabilities()
    said_N, kept_N = answers_of(config.outlier if one_class else None, p_NC, config.abstain)
    balanced = config.class_weights == "balanced"
    weight_N = probe.class_weights(task.y_N, len(task.classes), balanced=balanced)[task.y_N]
    score_N = crossed.answer.score_M
    # Each fold has a temperature of its own, which would shuffle its cells among the others'.
    raw_NC = crossed.answer.probabilities()
    rank_NC = raw_NC if score_N is None else np.stack([-score_N, score_N], 1)
    judged = judging.Judged(
        *(task.y_N, said_N, p_NC, rank_NC, points.groups, weight_N),
        retraining(plan.n_folds),
    )
    metrics: dict[str, Any] = {
        "model": config.model,
        "encoder": {"label": plan.choice.label, **plan.choice.identity(), **facts},
        "task": task.name,
        "class_names": list(task.classes),
        "normal": list(plan.normal),
        "instances": len(task.rows_N),
        "slides": len(set(points.slides)),
        "groups": len(set(points.groups)),
        "folds": plan.n_folds,
        "left_out": task.left_out,
        "points_without_pixels": plan.crops.unread,
        "slides_not_given": plan.crops.unknown,
        "interval": INTERVAL,
        **judging.judge(judged, task.classes, ordinal=config.ordinal or bool(config.order)),
        "notes": [*plan.notes, *cautions(plan.crops, {task.name: plan.fold_N})],
    }
    if not one_class:
        metrics["calibration"] = {
            "temperature": crossed.temperature,
            "classes_weigh_alike": balanced,
            "before": judging.calibration(task.y_N, raw_NC, weight_N),
            "after": judging.calibration(task.y_N, p_NC, weight_N),
        }
        thresholds = (*judging.THRESHOLDS, config.abstain)
        metrics["coverage"] = judging.coverage(task.y_N, said_N, p_NC, thresholds)
        metrics["abstain"] = config.abstain
    return metrics, said_N, kept_N


def predictions_csv(
    plan: Plan, crossed: Crossed, said_N: NDArray[np.int64], kept_N: NDArray[np.bool_]
) -> str:
    """Write `slide_id,x,y,group,fold,label,predicted,abstained,prob_…[,score]`, held out."""
    points, classes, p_NC = plan.points, plan.task.classes, crossed.probabilities()
    score_N = crossed.answer.score_M
    text = io.StringIO()
    writer = TableWriter(text)
    head = ["slide_id", "x", "y", "group", "fold", "label", "predicted", "abstained"]
    last = [] if score_N is None else ["score"]
    writer.writerow([*head, *(f"prob_{name}" for name in classes), *last])
    for i, slide in enumerate(points.slides):
        x, y = points.xy_px0[i].tolist()
        place = [slide, f"{x:g}", f"{y:g}", points.groups[i], int(plan.fold_N[i])]
        said = [classes[plan.task.y_N[i]], classes[said_N[i]], int(not kept_N[i])]
        numbers = [*p_NC[i].tolist(), *([] if score_N is None else [float(score_N[i])])]
        writer.writerow([*place, *said, *(f"{number:.6g}" for number in numbers)])
    return text.getvalue()
