"""Robustness of frozen features: of registered slides, or of one's own cells and tiles perturbed.

Definitions are those of PLISM (`agreement`). Pairs of slides are compared each by itself, and
summed up by group; perturbations are compared on all places together, and summed up by kind.
Legend: N places, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import __version__
from cytofm_cli.config import as_record, digest
from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.evaluate import condition_tables
from cytofm_cli.evaluate.agreement import agreement
from cytofm_cli.evaluate.choice import Choice
from cytofm_cli.evaluate.condition_config import RobustnessConfig
from cytofm_cli.evaluate.condition_folder import ROBUSTNESS, Results, make_run
from cytofm_cli.evaluate.conditions import Conditions, Note, Places, Progress
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.perturbation_names import DEFAULT, UNCHANGED, parse_all
from cytofm_cli.evaluate.places import (
    Pair,
    check_pairs,
    find_places,
    read_pairs,
    some,
    stored_features,
)
from cytofm_cli.runs.folder import RunReport
from cytofm_cli.runs.record import Record
from cytofm_cli.words import plain_name
from cytofm_cli.work.signals import stopping

ALL: Final = "all"
# The groups of PLISM, by which its leaderboard goes.
PLISM: Final = ("inter-scanner", "inter-staining", "both")
_LEADERBOARD_K: Final = 10


@dataclass(frozen=True, eq=False)
class Plan:
    """What is fixed before the first pixel is read.

    Attributes:
        config: settings.
        places: cells or tiles.
        pairs: of slides; empty: perturbations.
        choices: encoders.
        record: sections of config.toml.
    """

    config: RobustnessConfig
    places: Places
    pairs: list[Pair]
    choices: list[Choice]
    record: Record


def make_plan(
    config: RobustnessConfig,
    sources: Sequence[Source],
    choices: Sequence[Choice],
    *,
    points: Path | None = None,
    pairs: Path | None = None,
) -> Plan:
    """Read and check everything but pixels.

    Args:
        config: settings.
        sources: slides or stores.
        choices: encoders.
        points: table of cells; None: nuclei or tiles of the stores.
        pairs: table of pairs of slides; None: perturbations.

    Raises:
        UsageError, InputError: see `read_pairs`, `find_places`, `check_pairs`; or one place.
    """
    of_slides: list[Pair] = []
    if pairs is not None:
        if config.perturb != DEFAULT:
            raise UsageError(
                "pairs of slides are compared as they are, and perturbations are named.",
                hint="--pairs, or --perturb",
            )
        of_slides = read_pairs(pairs, {source.slide_id for source in sources})
        wanted = {slide for pair in of_slides for slide in (pair.first, pair.second)}
        sources = [source for source in sources if source.slide_id in wanted]
    found, used = find_places(config, sources, points)
    check_pairs(of_slides, found)
    chosen = some(found, config.max_places, config.seed, of_each_slide=pairs is not None)
    fewest = min(len(chosen.of_slide(slide)) for slide in set(chosen.slides))
    if (fewest if of_slides else len(chosen)) < 2:
        raise InputError(
            "one place: whether it is found again among others cannot be said.",
            hint=f"give more {config.unit}s",
        )
    places = Places(chosen, used, config.unit, config.seed, config)
    record = _record(config, places, of_slides, choices)
    return Plan(config, places, of_slides, list(choices), record)


def _record(
    config: RobustnessConfig, places: Places, pairs: Sequence[Pair], choices: Sequence[Choice]
) -> Record:
    said = as_record(config, results_only=True)
    if pairs:
        said["perturb"] = []  # none is made
    return {
        "robustness": said,
        "data": {
            "encoders": [f"{choice.label} {digest(choice.identity())}" for choice in choices],
            "places": len(places.points),
            "slides": len(set(places.points.slides)),
            "pairs": digest({"of": [[p.first, p.second, p.group] for p in pairs]}),
            **places.marks(),
            "cytofm": __version__,
        },
    }


def robustness_run(
    plan: Plan,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> RunReport:
    """Judge encoders and write a RUN: config.toml, metrics.json, table.md, cosine.svg, topK.svg.

    Features are kept in the RUN, a file a condition; embeddings of the stores are taken where
    pairs of slides have them.

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

    def judge(folder: Path, stop: Any) -> Results:
        tell = stopping(progress, stop)

        metrics = _head(plan)
        for choice in plan.choices:
            tell(choice.label, 0, len(plan.places.points))
            conditions = Conditions(plan.places, choice, folder, tell, note)
            rows, facts = (
                _of_pairs(plan, choice, conditions)
                if plan.pairs
                else _of_perturbations(plan, conditions)
            )
            metrics["encoders"][choice.label] = choice.identity() | facts
            metrics["comparisons"] += [{"encoder": choice.label, **row} for row in rows]
            summary = summarise(rows)
            metrics["groups"][choice.label] = summary
            metrics["leaderboard"][choice.label] = leaderboard(summary)
        metrics["notes"] = condition_tables.collapse_notes(metrics)
        return metrics, condition_tables.robustness_files(metrics)

    report = make_run(ROBUSTNESS, out, plan.record, judge, overwrite=overwrite)
    for line in report.metrics["notes"]:
        note(line)
    return report


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Sum comparisons up by group, and all of them.

    Args:
        rows: records of `Agreement` with their `group`.

    Returns:
        by group and metric (`cosine`, `apart`, `top1`, `chance1`, …): mean, std (of the pairs
        there are, not an estimate of others), median, q25, q75 and the number of pairs.
    """
    groups = dict.fromkeys(str(row["group"]) for row in rows if row["group"])
    summary = {group: _spread([row for row in rows if row["group"] == group]) for group in groups}
    return summary | {ALL: _spread(rows)}


def leaderboard(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float | None:
    """Return PLISM's number: mean of the medians of cosine (all) and of top-10 of three groups.

    None where a group is missing, or top-10 was not asked for.
    """
    by_name = {plain_name(name): of for name, of in summary.items()}
    top = f"top{_LEADERBOARD_K}"
    groups = [by_name.get(plain_name(name), {}) for name in PLISM]
    if any(top not in of for of in groups):
        return None
    medians = [summary[ALL]["cosine"]["median"], *(of[top]["median"] for of in groups)]
    return float(np.mean(medians))


def _of_pairs(
    plan: Plan, choice: Choice, conditions: Conditions
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    points = plan.places.points
    values_ND = stored_features(plan.config, points, plan.places.sources, choice)
    facts: dict[str, Any] = {"features": "of the stores"}
    if values_ND is None:
        values_ND = conditions.features(None)
        facts = conditions.facts
    rows = []
    for pair in plan.pairs:
        first, second = (values_ND[points.of_slide(slide)] for slide in (pair.first, pair.second))
        said = {"first": pair.first, "second": pair.second, "group": pair.group}
        rows.append(said | agreement(first, second, ks=plan.config.k).record())
    return rows, {"dim": values_ND.shape[1], **facts}


def _of_perturbations(
    plan: Plan, conditions: Conditions
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    unchanged_ND: NDArray[np.float32] = conditions.features(None)
    rows = []
    for how in parse_all(plan.config.perturb):
        compared = agreement(unchanged_ND, conditions.features(how), ks=plan.config.k)
        said = {"first": UNCHANGED, "second": how.name, "group": how.kind}
        rows.append(said | compared.record())
    return rows, conditions.facts


def _spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    values = {name: [row[name] for row in rows] for name in ("cosine", "apart")}
    for k in rows[0]["top"]:
        values[f"top{k}"] = [row["top"][k] for row in rows]
        values[f"chance{k}"] = [row["chance"][k] for row in rows]
    spread = {}
    for name, of in values.items():
        q25, median, q75 = np.quantile(of, [0.25, 0.5, 0.75]).tolist()
        spread[name] = {
            "mean": float(np.mean(of)),
            "std": float(np.std(of)),
            "median": median,
            "q25": q25,
            "q75": q75,
            "pairs": len(of),
        }
    return spread


def _head(plan: Plan) -> dict[str, Any]:
    config, points = plan.config, plan.places.points
    return {
        "kind": "pairs" if plan.pairs else "perturbations",
        "unit": config.unit,
        "places": len(points),
        "slides": len(set(points.slides)),
        "k": list(config.k),
        "encoders": {},
        "comparisons": [],
        "groups": {},
        "leaderboard": {},
    }
