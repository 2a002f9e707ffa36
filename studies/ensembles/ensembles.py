"""Mean of all models, or one model on everything, on patients that no model has seen?

    python ensembles.py [--only TASK ...]     # goes on where it was stopped; docs/mil-benchmark.md

Bags of malaria cells that differ by one cell, and Pap fields with a lesion of low grade or worse;
stores of the study beside this one (`../cyto_ssl`, made by its data.py). Of malaria two thirds of
the patients train and a third judges; of the fields four groups train (those whose nuclei
`cytofm-tiny` saw without labels) and four judge. Stores, copied, and RUNs lie in ENSEMBLES_WORK.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cyto_ssl"))

from data import DATA, PARTS, Row, read, write  # noqa: E402
from judge import CROP_UM  # noqa: E402
from places import COLLECTIONS, ROOT, cytofm  # noqa: E402

WORK: Final = Path(os.environ.get("ENSEMBLES_WORK", ROOT / "build" / "ensembles")).resolve()
LOG: Final = WORK / "log"
ENCODERS: Final = ("handcrafted", "cytofm-tiny")
METHODS: Final = ("abmil", "max_score")
SEEDS: Final = 2
FOLDS: Final = {"needle1": 5, "lsil_plus": 3}  # three groups of fields have lesions
# Collection of each task, and the part of it that trains: it has the more patients or groups.
TASKS: Final = {"needle1": ("malaria_nih", "judged"), "lsil_plus": ("cric", "pretrain")}


def labels(task: str) -> Iterator[Row]:
    """Yield slide_id, label and group of a task's slides or bags."""
    if task == "needle1":
        yield from read(COLLECTIONS / "malaria_nih" / "needle1_labels.csv")
        return
    for row in read(COLLECTIONS / "cric" / "images.csv"):
        name = Path(row["image"]).stem
        yield {"slide_id": name, "label": row["lsil_plus"], "group": row["group"]}


def stores(collection: str) -> Path:
    """Copy the stores of both parts into one folder and embed their cells."""
    folder = WORK / "stores" / collection
    for part in PARTS:
        for path in (DATA / part / collection).glob("*.zarr"):
            if not (folder / path.name).exists():
                shutil.copytree(path, folder / path.name)
    for encoder in ENCODERS:
        words = ["embed", folder, "--unit", "cell", "--cell-um", CROP_UM[collection]]
        cytofm([*words, "--encoder", encoder, "--threads", 1, "--quiet"], LOG)
    return folder


def tables(task: str) -> tuple[Path, Path]:
    """Write the labels of the slides that train, and of the others."""
    collection, trains = TASKS[task]
    there = {path.stem for path in (DATA / trains / collection).glob("*.zarr")}
    inside, outside = WORK / f"{task}_inside.csv", WORK / f"{task}_outside.csv"
    rows = list(labels(task))
    chosen = [(row["group"] if task == "needle1" else row["slide_id"]) in there for row in rows]
    columns = ("slide_id", "label", "group")
    write(inside, [row for row, own in zip(rows, chosen, strict=True) if own], columns)
    write(outside, [row for row, own in zip(rows, chosen, strict=True) if not own], columns)
    return inside, outside


def run(task: str) -> None:
    """Train folds × seeds, and one model more, and compare both outside."""
    folder = stores(TASKS[task][0])
    inside, outside = tables(task)
    bags = ["--bag-table", COLLECTIONS / "malaria_nih" / "needle1_bags.csv"]
    data = ["--bags", folder, *(bags if task == "needle1" else []), "--unit", "cell"]
    sides = ["--labels", inside, "--allow-missing", "--ensemble", "--outside-labels", outside]
    heads = ["--encoder", ",".join(ENCODERS), "--method", ",".join(METHODS)]
    models = ["--seeds", SEEDS, "--folds", FOLDS[task], "--workers", 1]
    words = ["mil", "benchmark", *data, *sides, *heads, *models, "-o", WORK / task]
    cytofm(words, LOG)


def main() -> None:
    """Go through the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of tasks")
    only = parser.parse_args().only
    for task in TASKS:
        if not only or task in only:
            run(task)


if __name__ == "__main__":
    main()
