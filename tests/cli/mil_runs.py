"""Bags whose answer is known, and runs on them, for the tests of `cytofm mil`."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import torch


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def train(here, bags: Path, *more: object):
    labels, run = bags.parent / "labels.csv", bags.parent / "run"
    words = ("mil", "train", "--bags", bags, "--labels", labels, "-o", run)
    return here(*words, "--folds", 3, "--seeds", 1, "--epochs", 30, *more)


def copies(stores: Path, folder: Path, names: str) -> Path:
    """Copy every store once a letter, write labels.csv beside them; return their folder."""
    for copy in names:
        for path in stores.glob("*.zarr"):
            shutil.copytree(path, folder / "stores" / f"{path.stem}-{copy}.zarr")
    ids = sorted(path.stem for path in (folder / "stores").glob("*.zarr"))
    rows = [f"{slide},{'ab'[n % 2]},g{n}" for n, slide in enumerate(ids)]
    (folder / "labels.csv").write_text("slide_id,label,group\n" + "\n".join(rows) + "\n")
    return folder / "stores"


def write_bag(path: Path, values: np.ndarray) -> None:
    torch.save(torch.from_numpy(values), path)


def plain(n: int = 5, width: int = 8) -> np.ndarray:
    return np.ones((n, width), np.float32)
