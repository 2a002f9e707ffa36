"""Judge every finished encoder on patients that none has seen; a file a run in results/.

    python judge.py [--only NAME ...]

Features are frozen. Cells: linear and k-NN probe. Bags: ABMIL and the maximum over instance
scores, beside the bags' control. What does not come from pretraining is judged alike: hand-made
features, `cytofm-tiny`, and the same network with random weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from arms import STUDY, all_runs
from places import RESULTS, WORK, cytofm
from pretrain import encoder_of

from cytofm_cli.stats.metrics import auc

JUDGED: Final = WORK / "data" / "judged"
CROP_UM: Final = STUDY["judge"]["crop_um"]
PROBES: Final = ("linear", "knn20")


@dataclass(frozen=True)
class Encoder:
    """What is judged.

    Attributes:
        name: of the result.
        words: how `cytofm` is told.
        stored: what its embeddings are called in stores.
        about: arm, seed and budget, where there are such.
    """

    name: str
    words: tuple[str, ...]
    stored: str
    about: dict[str, Any]


def encoders() -> Iterator[Encoder]:
    """Yield the baselines, then every finished run."""
    for name in ("handcrafted", "cytofm-tiny"):
        yield Encoder(name, ("--encoder", name), name, {"arm": name})
    network = STUDY["pretrain"]["encoder"]
    words = ("--encoder", network, "--random-weights")
    yield Encoder("random", words, f"{network}-random0", {"arm": "random"})
    for run in all_runs():
        if encoder_of(run).exists():
            about = {"arm": run.arm, "seed": run.seed, "budget": run.budget, "steps": run.steps}
            yield Encoder(run.name, ("--encoder", str(encoder_of(run))), run.name, about)


def probe(encoder: Encoder, name: str, folder: Path) -> dict[str, Any]:
    """Return, a probe each, the AUC with its interval, and that within each group that has one."""
    table = JUDGED / f"{name}.csv"
    words = ["evaluate", "probe", JUDGED / name, "--points", table, "--groups", table,
             *encoder.words, "--crop-um", CROP_UM[name], "--k", 20, "--threads", 1,
             *STUDY["judge"].get(name, []), "-o", folder / name, "--quiet"]  # fmt: skip
    cytofm(words, folder / "log")
    (task,) = json.loads((folder / name / "metrics.json").read_text())["tasks"].values()
    (judged,) = task["encoders"].values()
    scores = probabilities(folder / name / "predictions.csv")
    return {
        kind: {
            **{key: judged["probes"][kind]["auc"][key] for key in ("value", "low", "high")},
            "within": within_groups(scores[kind]) if len(task["classes"]) == 2 else None,
        }
        for kind in PROBES
    }


def probabilities(path: Path) -> dict[str, list[tuple[str, bool, float]]]:
    """Return group, truth and probability of the last class of each cell, by probe."""
    scores: dict[str, list[tuple[str, bool, float]]] = defaultdict(list)
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        column = [name for name in reader.fieldnames or () if name.startswith("prob_")][-1]
        for row in reader:
            truth = row["label"] == column.removeprefix("prob_")
            scores[row["probe"]].append((row["group"], truth, float(row[column])))
    return scores


def within_groups(scores: list[tuple[str, bool, float]]) -> dict[str, float]:
    """Return the AUC within each group that has cells of both classes: its stain cancels."""
    by_group: dict[str, list[tuple[bool, float]]] = defaultdict(list)
    for group, truth, score in scores:
        by_group[group].append((truth, score))
    aucs = {
        group: float(auc(np.array([t for t, _ in some], int), np.array([s for _, s in some])))
        for group, some in sorted(by_group.items())
        if len({t for t, _ in some}) == 2
    }
    return {group: round(value, 5) for group, value in aucs.items() if math.isfinite(value)}


def bags(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Return, by task and head, the AUC with its interval and the score of each bag."""
    stores, crop_um = JUDGED / "malaria_nih", CROP_UM["malaria_nih"]
    words = ["embed", stores, "--unit", "cell", "--cell-um", crop_um, *encoder.words]
    cytofm([*words, "--threads", 1, "--quiet"], folder / "log")
    judged: dict[str, Any] = defaultdict(dict)
    for task in STUDY["judge"]["bags"]:
        labels = JUDGED / f"needle{task[-1]}_labels.csv"
        for head in STUDY["judge"]["heads"]:
            out = folder / f"{task}-{head}"
            words = ["mil", "train", "--bags", stores, "--bag-table", JUDGED / f"{task}_bags.csv",
                     "--labels", labels, "--unit", "cell", "--encoder", encoder.stored,
                     "--method", head, "--lr", STUDY["rates"][head], "--seeds",
                     STUDY["judge"]["seeds"], "-o", out, "--quiet"]  # fmt: skip
            cytofm(words, folder / "log")
            pooled = json.loads((out / "metrics.json").read_text())["auc"]
            judged[task][head] = {
                **{key: pooled[key] for key in ("value", "low", "high")},
                "patients": by_patient(out / "predictions.csv", labels),
            }
    return judged


def by_patient(path: Path, labels: Path) -> dict[str, list[float]]:
    """Return the scores of each patient's bag without and of that with parasites, of all seeds."""
    with labels.open(newline="") as stream:
        place_of = {row["slide_id"]: (row["group"], row["label"]) for row in csv.DictReader(stream)}
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            scores[place_of[row["slide_id"]]].append(float(row["prob_parasites"]))
    patients = sorted({patient for patient, _ in scores})
    return {
        patient: [
            round(sum(scores[patient, label]) / len(scores[patient, label]), 5)
            for label in ("none", "parasites")
        ]
        for patient in patients
    }


def judge(encoder: Encoder) -> None:
    """Write the result of one encoder, unless it is there."""
    path = RESULTS / f"{encoder.name}.json"
    if path.exists():
        return
    folder = WORK / "judged" / encoder.name
    result = {
        **encoder.about,
        "cells": {name: probe(encoder, name, folder) for name in CROP_UM},
        "bags": bags(encoder, folder),
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(encoder.name, flush=True)


def main() -> None:
    """Judge what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of results")
    only = parser.parse_args().only
    for encoder in encoders():
        if not only or encoder.name in only:
            judge(encoder)


if __name__ == "__main__":
    main()
