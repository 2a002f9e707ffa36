"""What cytofm-tiny-2 was chosen by: probes of cells that may be learnt from, with their labels.

    python choose.py DATA COLLECTIONS [NAME=FILE …]

DATA is that of `make -C ../cyto_ssl data`: the part `pretrain`, of which no patient, block or group
judges. COLLECTIONS holds the tables of labels. Further encoders are joined with pixels as those
that ship are. Probes and folds are those of `cytofm evaluate probe`; AUC of linear and k-NN (20).

Letters: N cells, D features, S side of a crop.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.encoders.base import Encoder
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.pixel_statistics import measure
from cytofm_cli.encoders.torch_encoder import fit_square
from cytofm_cli.evaluate import probe
from cytofm_cli.nuclei.crops import CellCrops
from cytofm_cli.stats.metrics import macro_auc
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.field import open_field

CROP_UM: Final = {"malaria_nih": 20, "sipakmed": 20, "lbc_cdetector": 32, "cric": 20}
LEARNT: Final = ("malaria_nih", "cric")  # whose licences allow weights made from them
PIXELS_PX: Final = 64
Array = NDArray[np.float64]
Row = tuple[float, float, str, str]  # x, y, class, group
Cells = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]  # crops, class, group
Table = dict[str, Array]


def main() -> None:
    """Print a line a set of features."""
    torch.set_num_threads(1)
    data, collections = Path(sys.argv[1]) / "pretrain", Path(sys.argv[2])
    cells = {name: read(data, collections, name) for name in CROP_UM}
    pixels = balanced({name: statistics(of[0]) for name, of in cells.items()})
    hand = describe(load_encoder("handcrafted", device="cpu"), cells)
    show("handcrafted", hand, cells)
    show("handcrafted, whitened", whitened(hand), cells)
    show("pixels", pixels, cells)
    show("pixels, whitened", whitened(pixels), cells)
    show("pixels + handcrafted", joined(pixels, balanced(hand), 1), cells)
    for label, encoder in encoders(sys.argv[3:]):
        own = describe(encoder, cells)
        show(label, own, cells)
        show(f"{label}, whitened", whitened(own), cells)
        for weight in (0.5, 1.0):
            show(f"pixels + {weight:g} × {label}", joined(pixels, balanced(own), weight), cells)
        both = joined(balanced(whitened(pixels)), balanced(whitened(own)), 0.5)
        show(f"pixels + 0.5 × {label}, both whitened", both, cells)


def encoders(words: list[str]) -> Iterator[tuple[str, Encoder]]:
    """Open what ships, random weights, and the files that are named."""
    yield "cytofm-tiny", load_encoder("cytofm-tiny", device="cpu")
    yield "random", load_encoder("sr-vit-nano", random_weights=True, device="cpu")
    for word in words:
        name, _, file = word.partition("=")
        yield name, load_encoder(file, device="cpu", pooling="cls+mean")


def read(data: Path, collections: Path, name: str) -> Cells:
    """Cut the labelled cells of a collection."""
    of_slide = points(collections) if name == "cric" else listed(data, collections, name)
    crops, labels, groups = [], [], []
    for path in sorted((data / name).glob("*.zarr")):
        store, rows = open_store(path), of_slide[path.stem]
        if not rows:
            continue
        xy_N2 = np.array([row[:2] for row in rows], np.float32)
        if name != "cric":  # one cell a tile, in the order of the table
            xy_N2 = store.nuclei().xy_px0
        with open_field(store) as field:
            side = round(CROP_UM[name] / field.mpp)
            cut = CellCrops(field, xy_N2, side_px=side, fill=store.tile.fill)
            crops.append(cut.read_many(np.arange(len(rows))))
        labels += [row[2] for row in rows]
        groups += [row[3] for row in rows]
    classes, blocks = (np.unique(x, return_inverse=True)[1] for x in (labels, groups))
    return np.concatenate(crops), classes.astype(np.int64), blocks.astype(np.int64)


def table(path: Path) -> list[dict[str, str]]:
    """Read a table."""
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def listed(data: Path, collections: Path, name: str) -> dict[str, list[Row]]:
    """Return x, y (unused), class and group of the single cells of each store."""
    source = "crops.csv" if name == "lbc_cdetector" else "cells.csv"
    group_of = {row["file"]: row["group"] for row in table(collections / name / source)}
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in table(data / f"{name}_cells.csv"):
        rows[row["slide_id"]].append((0, 0, row["label"], group_of[row["file"]]))
    return rows


def points(collections: Path) -> dict[str, list[Row]]:
    """Return x, y, class and group of the marked nuclei of each field."""
    group_of = {row["image"]: row["group"] for row in table(collections / "cric" / "images.csv")}
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in table(collections / "cric" / "points.csv"):
        label = "NILM" if row["label"] == "NILM" else "abnormal"
        at = float(row["x"]), float(row["y"])
        rows[Path(row["image"]).stem].append((*at, label, group_of[row["image"]]))
    return rows


def statistics(crops_NSSC: NDArray[np.uint8]) -> Array:
    """Return the statistics of pixels, as the network measures them."""
    return _in_parts(crops_NSSC, lambda x: measure(_resized(x)).numpy())


def _resized(crops_NSSC: NDArray[np.uint8]) -> torch.Tensor:
    x_NCSS = torch.from_numpy(crops_NSSC).permute(0, 3, 1, 2)
    px = PIXELS_PX
    return fit_square(x_NCSS, resize_px=px, input_px=px, interpolation="bicubic").float() / 255


def describe(encoder: Encoder, cells: dict[str, Cells]) -> Table:
    """Return an encoder's vectors of all cells."""
    return {
        name: _in_parts(of[0], lambda x: encoder.encode(encoder.prepare(x)))
        for name, of in cells.items()
    }


def _in_parts(crops_NSSC: NDArray[np.uint8], say: Callable[[NDArray[np.uint8]], Any]) -> Array:
    parts = [say(crops_NSSC[at : at + 64]) for at in range(0, len(crops_NSSC), 64)]
    return np.asarray(np.concatenate(parts), np.float64)


def balanced(values: Table) -> Table:
    """Centre, and scale by one number so that variances sum to 1, on what may be learnt from."""
    learnt_ND = np.concatenate([values[name] for name in LEARNT])
    spread = np.sqrt(learnt_ND.var(0).sum())
    return {name: (x_ND - learnt_ND.mean(0)) / spread for name, x_ND in values.items()}


def whitened(values: Table, least: float = 0.05) -> Table:
    """Standardise and rotate until nothing is correlated; variances below `least` stay small."""
    learnt_ND = np.concatenate([values[name] for name in LEARNT])
    mean_D, std_D = learnt_ND.mean(0), learnt_ND.std(0) + 1e-6
    variance_D, axes_DD = np.linalg.eigh(np.cov(((learnt_ND - mean_D) / std_D).clip(-6, 6).T))
    way_DD = axes_DD / np.sqrt(variance_D.clip(0) + least * variance_D.mean())
    return {name: ((x_ND - mean_D) / std_D).clip(-6, 6) @ way_DD for name, x_ND in values.items()}


def joined(first: Table, second: Table, weight: float) -> Table:
    """Put two sets of features side by side."""
    return {name: np.concatenate([x_ND, weight * second[name]], 1) for name, x_ND in first.items()}


def show(label: str, values: Table, cells: dict[str, Cells]) -> None:
    """Print a row of the table in docs/cytofm-tiny.md."""
    said = []
    for name, x_ND in values.items():
        _, y_N, group_N = cells[name]
        fold_N = probe.grouped_folds(y_N, group_N, 5)
        aucs = [
            macro_auc(y_N, probe.out_of_fold(x_ND, y_N, group_N, fold_N, kind)[key])
            for kind, key in ((probe.linear(), "linear"), (probe.knn((20,)), "knn20"))
        ]
        said.append(" / ".join(f"{float(value):.3f}" for value in aucs))
    sys.stdout.write(f"| {label} | {' | '.join(said)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
