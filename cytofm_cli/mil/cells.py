"""The models of a run: one cell is one fold and seed, trained alone, in any process.

A cell's JSON file appears after its model file: what has one is finished.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.mil.artefacts import ModelCard, save_model
from cytofm_cli.mil.optim import warm_up
from cytofm_cli.mil.plan import Plan
from cytofm_cli.mil.run_folder import CELLS, MODELS
from cytofm_cli.mil.summary import CellResult
from cytofm_cli.mil.train import Fitted, Labelled, Passing, fit, predict_logits
from cytofm_cli.mil.tune import InnerAnswer, choose, inner_split, with_candidate
from cytofm_cli.work.cpus import cpu_count
from cytofm_cli.work.files import write_json
from cytofm_cli.work.pool import in_processes
from cytofm_cli.work.signals import StopFlag

log = logging.getLogger(__name__)
# A worker process costs some seconds of imports: only longer work is spread.
WORTH_A_POOL_S = 20.0
RETRAINED = -1
NO_TRIAL = -1


class Cell(NamedTuple):
    """One model to train.

    Attributes:
        fold: number of the outer fold.
        turn: 0, 1, … among the fold's models; -1 for the one trained on all of the fold.
        candidate: number of the settings that are tried in inner fold `turn`; -1: no trial.
    """

    fold: int
    turn: int
    candidate: int = NO_TRIAL

    @property
    def name(self) -> str:
        """Return the name of its files."""
        if self.candidate != NO_TRIAL:
            return f"fold{self.fold}_try{self.candidate}_inner{self.turn}"
        turn = "retrained" if self.turn == RETRAINED else f"seed{self.turn}"
        return f"fold{self.fold}_{turn}"


def all_cells(plan: Plan) -> list[Cell]:
    """List the models of a run in order; retrained ones last, they need the others."""
    folds = range(len(plan.folds))
    cells = [Cell(fold, turn) for fold in folds for turn in range(plan.config.seeds)]
    return cells + ([Cell(fold, RETRAINED) for fold in folds] if plan.config.retrain else [])


def all_trials(plan: Plan) -> list[Cell]:
    """List the models that choose the settings of each fold; none without a search."""
    return [
        Cell(fold, turn, candidate)
        for fold in range(len(plan.folds))
        for candidate in range(len(plan.candidates) if len(plan.candidates) > 1 else 0)
        for turn in range(plan.folds[fold].n_validation)
    ]


def run_cells(
    plan: Plan,
    staging: Path,
    progress: Callable[[int, int, str], None],
    stop: StopFlag,
    passing: Passing | None = None,
) -> None:
    """Train every cell that is not finished, in processes if that is worth it.

    `progress` and `passing` are those of `cytofm_cli.mil.run.train_run`.

    Raises:
        StoppedError: `stop` was set; finished cells are kept.
    """
    models, trials = all_cells(plan), all_trials(plan)
    cells = [*trials, *models]
    done = sum(_is_done(staging, cell) for cell in cells)
    if done < len(cells):
        warm_up()  # else the first cell looks slow, and a pool worth its start
    for stage in (trials, [c for c in models if c.turn >= 0], [c for c in models if c.turn < 0]):
        todo = [cell for cell in stage if not _is_done(staging, cell)]
        while todo:
            start = time.monotonic()
            cell = todo.pop(0)
            loss = run_cell(plan, staging, cell, stop, passing)
            done += 1
            progress(done, len(cells), _told(cell, loss))
            workers = min(plan.config.workers or cpu_count(), len(todo))
            left_s = (time.monotonic() - start) * len(todo)
            asked = plan.config.workers > 1
            on_cpu = plan.config.device == "cpu"
            if workers > 1 and (asked or (left_s > WORTH_A_POOL_S and on_cpu)):
                work = in_processes(_work, todo, workers, stop, _start_worker, plan, staging)
                with closing(work) as finished:
                    for other, loss in finished:
                        done += 1
                        progress(done, len(cells), _told(other, loss))
                todo = []


def run_cell(
    plan: Plan, staging: Path, cell: Cell, stop: StopFlag, passing: Passing | None = None
) -> float:
    """Train one cell and write its model and its JSON.

    Returns:
        the loss of its last pass.

    Raises:
        StoppedError: `stop` was set; nothing of this cell is kept.
    """
    if cell.candidate != NO_TRIAL:
        return _run_trial(plan, staging, cell, stop, passing)
    if len(plan.candidates) > 1:
        plan = with_candidate(
            plan, plan.candidates[fold_choice(plan, staging, cell.fold)["chosen"]]
        )
    config, fold = plan.config, plan.folds[cell.fold]
    test = fold.test()
    validation = np.zeros(0, dtype=np.int64)
    if cell.turn == RETRAINED:
        train = fold.development()
        epochs = [
            read_cell(staging, Cell(cell.fold, turn)).best_epoch for turn in range(config.seeds)
        ]
        last = replace(plan.recipe, epochs=int(np.median(epochs)) + 1, select="last", patience=0)
        plan = replace(plan, recipe=last)
    else:
        train, validation = fold.train_validation(cell.turn)
    seeds = (config.seed, cell.fold, cell.turn + 1)
    fitted = _fit(plan, train, validation, seeds, stop, passing)
    seed = RETRAINED if cell.turn == RETRAINED else config.seed + cell.turn
    save_model(_model(staging, cell), fitted.model, _card(plan, cell, seed))
    logits = [_logits(plan, fitted.model, index) for index in (validation, test)]
    record = {
        "fold": cell.fold,
        "seed": seed,
        "validation": validation.tolist(),
        "validation_logits_SC": logits[0].tolist(),
        "test": test.tolist(),
        "test_logits_SC": logits[1].tolist(),
        "best_epoch": fitted.best_epoch,
        "history": [_finite(row) for row in fitted.history],
    }
    _write(staging, cell, record)
    return fitted.history[-1]["loss"]


def _card(plan: Plan, cell: Cell, seed: int) -> ModelCard:
    return ModelCard(
        method=plan.config.method,
        head=plan.head,
        n_features=int(plan.cohort.bags[0].features_ND.shape[1]),
        classes=plan.cohort.classes,
        encoder=plan.origin.encoder,
        unit=plan.config.unit,
        standardise=plan.recipe.standardise,
        fold=cell.fold,
        seed=seed,
        vpu=plan.recipe.vpu,
    )


def fold_choice(plan: Plan, staging: Path, fold: int) -> dict[str, Any]:
    """Read the trials of a fold and choose; see `cytofm_cli.mil.tune.choose`."""
    answers = []
    for cell in all_trials(plan):
        if cell.fold == fold:
            record = json.loads(_file(staging, cell).read_text(encoding="utf-8"))
            index = np.array(record["judged"], dtype=np.int64)
            logits_SC = np.array(record["judged_logits_SC"], dtype=np.float64)
            answers.append(InnerAnswer(cell.candidate, index, logits_SC))
    return {"fold": fold, **choose(plan.candidates, answers, plan.cohort.y_N)}


def _told(cell: Cell, loss: float) -> str:
    return f"{cell.name}, loss {loss:.3g}"


def _run_trial(
    plan: Plan, staging: Path, cell: Cell, stop: StopFlag, passing: Passing | None
) -> float:
    plan = with_candidate(plan, plan.candidates[cell.candidate])
    train, choosing, judged = inner_split(plan.folds[cell.fold], cell.turn)
    # All candidates share the seed: what they differ by is the settings.
    seeds = (plan.config.seed, cell.fold, cell.turn + 1, 1)
    fitted = _fit(plan, train, choosing, seeds, stop, passing)
    logits_SC = _logits(plan, fitted.model, judged)
    _write(staging, cell, {"judged": judged.tolist(), "judged_logits_SC": logits_SC.tolist()})
    return fitted.history[-1]["loss"]


def _fit(
    plan: Plan,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    seeds: tuple[int, ...],
    stop: StopFlag,
    passing: Passing | None,
) -> Fitted:
    return fit(
        plan.config.method,
        plan.head,
        plan.recipe,
        _labelled(plan, train),
        _labelled(plan, validation) if len(validation) else None,
        len(plan.cohort.classes),
        seeds=seeds,
        device=plan.config.device,
        stop=stop,
        passing=passing,
    )


def _write(staging: Path, cell: Cell, record: dict[str, Any]) -> None:
    write_json(_file(staging, cell), record)


def read_cell(staging: Path, cell: Cell) -> CellResult:
    """Read what a finished cell found."""
    record = json.loads(_file(staging, cell).read_text(encoding="utf-8"))
    n_classes = len(record["test_logits_SC"][0])
    for key in ("validation", "test"):
        record[key] = np.array(record[key], dtype=np.int64)
        logits = np.array(record[f"{key}_logits_SC"], dtype=np.float64)
        record[f"{key}_logits_SC"] = logits.reshape(-1, n_classes)
    return CellResult(**record)


def _file(staging: Path, cell: Cell) -> Path:
    return staging / CELLS / f"{cell.name}.json"


def _model(staging: Path, cell: Cell) -> Path:
    return staging / MODELS / f"{cell.name}.safetensors"


def _is_done(staging: Path, cell: Cell) -> bool:
    trained = cell.candidate == NO_TRIAL
    return _file(staging, cell).is_file() and (not trained or _model(staging, cell).is_file())


def _labelled(plan: Plan, index: NDArray[np.int64]) -> Labelled:
    return Labelled([plan.cohort.bags[i] for i in index.tolist()], plan.cohort.y_N[index])


def _logits(plan: Plan, model: Any, index: NDArray[np.int64]) -> NDArray[np.float64]:
    bags = [plan.cohort.bags[i] for i in index.tolist()]
    if not bags:
        return np.zeros((0, len(plan.cohort.classes)))
    return predict_logits(model, bags, plan.config.device)


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in row.items()}


_plan: tuple[Plan, Path] | None = None  # of a worker process


def _start_worker(plan: Plan, staging: Path) -> None:
    global _plan  # noqa: PLW0603 - the bags travel to a worker once, not with every cell
    _plan = (plan, staging)


def _work(cell: Cell) -> float:
    if _plan is None:
        raise RuntimeError("worker was not started")
    return run_cell(*_plan, cell, StopFlag())  # the parent ends this process by SIGTERM
