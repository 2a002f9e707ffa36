"""Does a student lose to its own teacher? Train students of frozen teachers and judge them.

    python distil.py [--only NAME ...]   # goes on where it was stopped
    python distil.py --table            # the tables of docs/distillation.md

Data, network, views and judge are those of the study beside it (`../cyto_ssl`, whose README says
where its stores and runs are looked for). Students learn from its patients of pretraining and are
judged on the others. Results lie in results/, files in DISTIL_WORK.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cyto_ssl"))

from arms import STUDY  # noqa: E402
from data import read, write  # noqa: E402
from judge import CROP_UM, JUDGED, probabilities, within_groups  # noqa: E402
from outcomes import mean_interval  # noqa: E402
from places import ROOT  # noqa: E402
from places import WORK as STUDY_WORK  # noqa: E402
from pretrain import stores  # noqa: E402

from cytofm_cli.api.pretrain import pretrain_encoder  # noqa: E402
from cytofm_cli.api.probe import probe  # noqa: E402
from cytofm_cli.config import resolve  # noqa: E402
from cytofm_cli.evaluate.config import ProbeConfig  # noqa: E402
from cytofm_cli.pretrain.config import PretrainConfig, PretrainViews, views_of  # noqa: E402
from cytofm_cli.stats.paired import Difference, auc_difference  # noqa: E402
from cytofm_cli.stats.score_intervals import retraining  # noqa: E402

ASKED: Final[dict[str, Any]] = tomllib.loads((HERE / "students.toml").read_text(encoding="utf-8"))
WORK: Final = Path(os.environ.get("DISTIL_WORK", ROOT / "build" / "distil")).resolve()
RESULTS: Final = HERE / "results"
COLLECTIONS: Final = ("malaria_nih", "sipakmed")
PROBES: Final = ("linear", "knn20")
EVERY: Final = {"malaria_nih": 3, "sipakmed": 1}  # of the judged cells
FOLDS: Final = 5  # of `evaluate probe`, with more than ten groups


# --- teachers


def teacher_words() -> dict[str, str]:
    """Return, by name, how `--set teacher=` is told; write the files that are not there."""
    from teacher_files import with_heads, with_random_weights

    run = STUDY_WORK / "runs" / ASKED["run"]["teacher"]
    heads, floor = (
        WORK / "teachers" / "dino-heads.safetensors",
        WORK / "teachers" / "random.safetensors",
    )
    if not heads.exists():
        with_heads(run, heads)
    if not floor.exists():
        with_random_weights(floor, STUDY["views"]["global_px"])
    own = {"dino": str(run / "encoder.safetensors"), "dino-heads": str(heads)}
    return own | {"random": str(floor), "cytofm-tiny": "cytofm-tiny", "handcrafted": "handcrafted"}


# --- students


def slug(name: str) -> str:
    """Return what a student's files are called."""
    return name.replace(" ", "-")


def train(name: str, teacher: str) -> Path:
    """Train a student, or go on with it, and return its file."""
    run, method = ASKED["run"], ASKED["students"][name][1]
    pretrain = {**STUDY["pretrain"], **STUDY["plain"], "method": method, "name": slug(name)}
    config = PretrainConfig(**pretrain | {key: run[key] for key in ("steps", "batch", "seed")})
    views = resolve(PretrainViews, "views", {**STUDY["views"], **ASKED["views"].get(method, {})})
    report = pretrain_encoder(
        [str(path) for path in stores()],
        WORK / "runs" / slug(name),
        config,
        views=views_of(method, views, config.encoder),
        method_settings={**ASKED["method"][method], "teacher": teacher},
    )
    return report.encoder


# --- judging


def judge(name: str, encoder: str) -> None:
    """Write what the probes say of an encoder, unless it is there."""
    path = RESULTS / f"{slug(name)}.json"
    if path.exists():
        return
    result = {collection: probed(name, encoder, collection) for collection in COLLECTIONS}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def probed(name: str, encoder: str, collection: str) -> dict[str, Any]:
    """Return the AUC of each probe with its interval, and that within each patient."""
    out = WORK / "judged" / slug(name) / collection
    table = thinned(collection)
    config = ProbeConfig(
        crop_um=CROP_UM[collection], k=(20,), threads=1, shots=(1,), draws=2, replicates=100
    )  # few shots and their replicates are not looked at
    report = probe(str(JUDGED / collection), table, out, config, encoders=[encoder], groups=table)
    (task,) = report.metrics["tasks"].values()
    (judged,) = task["encoders"].values()
    scores = probabilities(out / "predictions.csv")
    return {
        kind: {
            **{key: judged["probes"][kind]["auc"][key] for key in ("value", "low", "high")},
            "within": within_groups(scores[kind]) if len(task["classes"]) == 2 else None,
        }
        for kind in PROBES
    }


def thinned(collection: str) -> Path:
    """Write every third of the study's malaria cells, all of the other cells."""
    rows = read(JUDGED / f"{collection}.csv")
    path = WORK / f"{collection}.csv"
    write(path, rows[:: EVERY[collection]], list(rows[0]))
    return path


def gap(first: str, second: str, collection: str, kind: str) -> Difference:
    """Return the difference of two AUCs on the same cells, over patients or blocks."""
    y_N, p_NC, groups = answers(first, collection, kind)
    _, q_NC, _ = answers(second, collection, kind)
    # p is not shown
    return auc_difference(y_N, p_NC, q_NC, groups, retrained=retraining(FOLDS), swaps=50)


def answers(name: str, collection: str, kind: str) -> tuple[Any, Any, tuple[str, ...]]:
    """Read classes (N,), probabilities (N, C) and groups of the judged cells."""
    path = WORK / "judged" / slug(name) / collection / "predictions.csv"
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        columns = [name for name in reader.fieldnames or () if name.startswith("prob_")]
        rows = [row for row in reader if row["probe"] == kind]
    classes = [column.removeprefix("prob_") for column in columns]
    y_N = np.array([classes.index(row["label"]) for row in rows])
    p_NC = np.array([[float(row[column]) for column in columns] for row in rows])
    return y_N, p_NC, tuple(row["group"] for row in rows)


def go_on(only: list[str] | None) -> None:
    """Train and judge what is not there."""
    of_teacher = teacher_words()
    for name, (teacher, _) in ASKED["students"].items():
        if not only or name in only:
            start = time.process_time()
            encoder = train(name, of_teacher[teacher])
            print(f"{name}: {time.process_time() - start:.0f} CPU s", flush=True)
            judge(name, str(encoder))
    for name, word in of_teacher.items():
        if name != "dino-heads" and (not only or f"teacher {name}" in only):
            judge(f"teacher {name}", word)


# --- tables


def table() -> Iterator[str]:
    """Yield the tables of the page."""
    names = [f"teacher {name}" for name in teacher_words() if name != "dino-heads"]
    names = [n for n in (*names, *ASKED["students"]) if (RESULTS / f"{slug(n)}.json").exists()]
    for collection in COLLECTIONS:
        yield f"\n{collection}\n\n| encoder | linear | less its teacher | k-NN | less its teacher |"
        yield "|---|---|---|---|---|"
        for name in names:
            result, cells = json.loads((RESULTS / f"{slug(name)}.json").read_text()), [name]
            for kind in PROBES:
                cells += [auc_text(result[collection][kind]), against(name, collection, kind)]
            yield "| " + " | ".join(cells) + " |"


def auc_text(judged: Mapping[str, Any]) -> str:
    """Write an AUC with its interval and, where there is one, the mean within patients."""
    text = f"{judged['value']:.3f} [{judged['low']:.3f}, {judged['high']:.3f}]"
    return text if judged["within"] is None else f"{text}; {mean_interval(judged['within'])[0]:.3f}"


def against(name: str, collection: str, kind: str) -> str:
    """Write by how much a student differs from its teacher."""
    if name.startswith("teacher "):
        return ""
    teacher = ASKED["students"][name][0].removesuffix("-heads")
    d = gap(f"teacher {teacher}", name, collection, kind)
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def main() -> None:
    """Go on, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of students, or 'teacher NAME'")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(table()))
    else:
        torch.set_num_threads(1)
        go_on(asked.only)


if __name__ == "__main__":
    main()
