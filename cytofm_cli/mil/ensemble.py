"""Two ways to bring a cross-validation to slides from elsewhere, compared on them.

The mean probability of all its models (folds × seeds), against one model that is trained on the
whole cohort for as many epochs as theirs took in the median. Phikon-v2 (arXiv:2409.09173) reports
+1.75 points of AUC for the mean; inside of a cross-validation the comparison would leak.

Legend: S slides, C classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from cytofm_cli.config import digest
from cytofm_cli.errors import InputError, LabelError
from cytofm_cli.mil.artefacts import ModelCard, save_model
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.mil.config import MilConfig
from cytofm_cli.mil.labels import Cohort, build_cohort, read_labels
from cytofm_cli.mil.plan import Plan, make_plan
from cytofm_cli.mil.run_folder import LOG, read_metrics, run_digest
from cytofm_cli.mil.score import load_run, score_bag
from cytofm_cli.mil.train import Labelled, fit, predict_logits
from cytofm_cli.mil.tune import with_candidate
from cytofm_cli.stats.compare import Answers, Comparison, compare_runs
from cytofm_cli.stats.score_intervals import macro_auc_interval
from cytofm_cli.store.records import NEW
from cytofm_cli.table_text import TableWriter
from cytofm_cli.work.files import read_plain, write_json, write_text

MEAN, ONE = "mean of all models", "one model on everything"
RESULT, MODEL, PREDICTIONS = "ensemble.json", "whole.safetensors", "predictions.csv"
WHOLE: Final = -2  # seed of the card of a model that was trained on the whole cohort


def outside_cohort(config: MilConfig, bags: Path, labels: Path, classes: Sequence[str]) -> Cohort:
    """Read the slides that none of the models knows.

    Args:
        config: of the runs.
        bags: folder of stores or bag files.
        labels: table of their labels; slides without a label are left out.
        classes: of the runs.

    Raises:
        InputError, LabelError: see `load_bags`, `build_cohort`; another class.
    """
    table = read_labels(labels, label_column=config.label, group_column=config.group)
    if other := sorted(set(table.labels) - set(classes)):
        raise LabelError(f"{labels}: class {other[0]!r} is not one of {', '.join(classes)}.")
    return build_cohort(
        load_bags(bags, config.encoder, config.unit, table=config.bag_table),
        table,
        classes=classes,
        allow_missing=True,
    )


def against_one(
    config: MilConfig,
    bags: Path,
    labels: Path,
    run: Path,
    outside: Path,
    outside_labels: Path,
    out: Path,
    *,
    tune: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Compare both ways on slides from elsewhere, and write what came of it.

    Args:
        config: of the RUN.
        bags: that it learnt from.
        labels: of these.
        run: the finished RUN.
        outside: folder of the other slides' stores or bag files; may be `bags`.
        outside_labels: of these.
        out: folder for `ensemble.json`, `predictions.csv` and the one model.
        tune: settings that the RUN chose from; the one model takes what most folds chose.

    Returns:
        content of ensemble.json: AUCs with intervals, and the paired difference.

    Raises:
        InputError, LabelError: the slides cannot be used, or the RUN knows some.
    """
    plan = make_plan(config, bags, labels, {}, tune=tune)
    cohort = outside_cohort(config, outside, outside_labels, plan.cohort.classes)
    facts = {
        "run": run_digest(run),
        "slides": digest(
            {"ids": cohort.slide_ids, "groups": cohort.groups, "y": cohort.y_N.tolist()}
        ),
    }
    known = _finished(out / RESULT, facts)
    if known is not None:
        return known
    mean_SC, n_models = _mean(run, cohort, config.device)
    epochs = _epochs(run)
    one_SC = _whole(plan, run, cohort, epochs, out)
    answers = [_answers(name, cohort, p_SC) for name, p_SC in ((ONE, one_SC), (MEAN, mean_SC))]
    (comparison,) = compare_runs(answers, swaps=config.bootstrap, seed=config.seed)
    record = _record(comparison, answers, cohort) | {
        "averaged": "probabilities, each model's at the temperature of its fold",
        "models": n_models,
        "epochs_of_one": epochs,
        **facts,
    }
    write_text(out / PREDICTIONS, _csv(answers, cohort))
    write_json(out / RESULT, record)
    return record


def _finished(path: Path, facts: Mapping[str, str]) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(read_plain(path))
    except (OSError, ValueError):
        return None
    return record if all(record.get(key) == value for key, value in facts.items()) else None


def _mean(run: Path, cohort: Cohort, device: str) -> tuple[NDArray[np.float64], int]:
    """Return the mean probabilities of all models, (S, C), and how many they are.

    Raises:
        InputError: the RUN knows a slide, or its patient.
    """
    ensemble = load_run(run)
    scores = [score_bag(ensemble, bag, device=device) for bag in cohort.bags]
    known = [score.slide_id for score in scores if score.basis != NEW]
    if known:
        raise InputError(
            f"{run}: was trained on {len(known)} of the outside slides or on their patients, "
            f"{known[0]} among them.",
            hint="give slides of other patients",
        )
    return np.stack([score.p_C for score in scores]), len(ensemble.models)


def _epochs(run: Path) -> int:
    """Return how many epochs the models of a RUN took, in the median."""
    best: dict[tuple[int, int], int] = {}
    for line in read_plain(run / LOG).splitlines():
        row = json.loads(line)
        if row.get("seed", -1) >= 0:
            best[row["fold"], row["seed"]] = row["best_epoch"]
    return int(np.median(list(best.values()))) + 1


def _whole(plan: Plan, run: Path, cohort: Cohort, epochs: int, out: Path) -> NDArray[np.float64]:
    """Train the one model and return its probabilities, (S, C)."""
    config = plan.config
    chosen = [fold["chosen"] for fold in read_metrics(run).get("tuned", [{"chosen": 0}])]
    plan = with_candidate(plan, plan.candidates[max(set(chosen), key=chosen.count)])
    recipe = replace(plan.recipe, epochs=epochs, select="last", patience=0)
    fitted = fit(
        config.method,
        plan.head,
        recipe,
        Labelled(plan.cohort.bags, plan.cohort.y_N),
        None,
        len(plan.cohort.classes),
        seeds=(config.seed, len(plan.folds), 1),
        device=config.device,
    )
    card = ModelCard(
        method=config.method,
        head=plan.head,
        n_features=int(plan.cohort.bags[0].features_ND.shape[1]),
        classes=plan.cohort.classes,
        encoder=plan.origin.encoder,
        unit=config.unit,
        standardise=recipe.standardise,
        fold=0,
        seed=WHOLE,
        vpu=recipe.vpu,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_model(out / MODEL, fitted.model, card)
    p_SC: NDArray[np.float64] = softmax(
        predict_logits(fitted.model, cohort.bags, config.device).astype(np.float64), axis=1
    )
    return p_SC


def _answers(name: str, cohort: Cohort, p_SC: NDArray[np.float64]) -> Answers:
    ids = tuple(cohort.slide_ids)
    parts = ("outside",) * len(ids)  # one part: nothing was pooled over folds
    return Answers(name, ids, cohort.y_N, p_SC, tuple(cohort.groups), tuple(cohort.classes), parts)


def _record(comparison: Comparison, answers: Sequence[Answers], cohort: Cohort) -> dict[str, Any]:
    one, mean = (macro_auc_interval(a.y_S, a.p_SC, a.groups).record() for a in answers)
    return {
        "n_slides": len(cohort.slide_ids),
        "n_groups": len(set(cohort.groups)),
        "mean": mean,
        "one": one,
        "difference": comparison.record(),
    }


def _csv(answers: Sequence[Answers], cohort: Cohort) -> str:
    text = io.StringIO()
    writer = TableWriter(text)
    ways = ("one", "mean")
    names = [f"{way}_{c}" for way in ways for c in cohort.classes]
    writer.writerow(["slide_id", "group", "label", *names])
    for i, slide in enumerate(cohort.slide_ids):
        numbers = [f"{p:.6f}" for of_way in answers for p in of_way.p_SC[i]]
        label = cohort.classes[int(cohort.y_N[i])]
        writer.writerow([slide, cohort.groups[i], label, *numbers])
    return text.getvalue()


def markdown(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Return the table: a row a kind of bags and head; cells are AUCs with intervals."""
    lines = [
        f"| bags | head | {MEAN} | {ONE} | difference | p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (row, method), record in results.items():
        mean, one = (_shown(record[way]) for way in ("mean", "one"))
        gap = record["difference"]["difference"]
        shown = f"{gap['value']:+.3f} [{_number(gap['low'])}, {_number(gap['high'])}]"
        lines.append(f"| {row} | {method} | {mean} | {one} | {shown} | {gap['p']:.2g} |")
    return "\n".join(lines) + "\n"


def _shown(estimate: Mapping[str, float | None]) -> str:
    value, low, high = (_number(estimate[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
