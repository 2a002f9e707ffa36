"""How many of the first cells of a gallery are marked abnormal, on the fields of CRIC Cervix.

    python tests/bench/bench_gallery.py WORK --fields ../shared/data/cric

Tiles, detects and embeds the fields into WORK once, trains a head on `--label` of whole fields,
scores them out of fold. A detection is right if it is matched one to one, within 15 px, with a
point of a class above NILM. Detections right of x = 1180, where nothing is marked, take no part.
Chance is
the share of right ones among all that take part.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cytofm_cli.report.chosen import StoreJob, rank
from cytofm_cli.report.config import GalleryConfig
from cytofm_cli.stats.matching import match_points
from cytofm_cli.store import io, schema

AT = (10, 50, 100)
MARKED_TO_PX = 1180
WITHIN_PX = 15
ORDERS = ("area_um2", "optical_density", "density_std", "probability", "outlier")


def cytofm(*words: object) -> None:
    """Run a command."""
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "-q", "--no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def prepare(fields: Path, work: Path, label: str) -> Path:
    """Make stores, a RUN and its attention; return the stores."""
    stores, run, labels = work / "stores", work / f"run-{label}", work / f"{label}.csv"
    work.mkdir(parents=True, exist_ok=True)
    cytofm("tile", fields / "images", "-o", stores, "--slide-mpp", 0.25, "--tile-px", 256)
    cytofm("detect", stores)
    cytofm("embed", stores, "--unit", "cell")
    rows = list(csv.DictReader((fields / "images.csv").read_text().splitlines()))
    lines = [
        f"{Path(r['image']).stem},{'no yes'.split()[int(r[label])]},{r['group']}" for r in rows
    ]
    labels.write_text("\n".join(["slide_id,label,group", *lines]) + "\n")
    cytofm(
        *("mil", "train", "--bags", stores, "--labels", labels, "--unit", "cell"),
        *("--classes", "no,yes", "--method", "abmil", "--seeds", 1, "-o", run),
    )
    cytofm("mil", "score", run, stores, "-o", work / f"scores-{label}.csv")
    return stores


def points_of(fields: Path) -> dict[str, list[tuple[float, float, str]]]:
    """Return the marked nuclei of each field."""
    points: dict[str, list[tuple[float, float, str]]] = {}
    for r in csv.DictReader((fields / "points.csv").read_text().splitlines()):
        points.setdefault(Path(r["image"]).stem, []).append(
            (float(r["x"]), float(r["y"]), r["label"])
        )
    return points


def truth_of(store: io.Store, points: list[tuple[float, float, str]]) -> np.ndarray:
    """Return of each nucleus 1 (marked abnormal), 0 (not), or -1 (takes no part)."""
    xy = store.nuclei_xy_px0().astype(np.float64)
    truth = np.zeros(len(xy), np.int64)
    marked = np.array([point[:2] for point in points]).reshape(-1, 2)
    for row, point in match_points(xy, marked, WITHIN_PX).tolist():
        truth[row] = points[point][2] != "NILM"
    truth[xy[:, 0] > MARKED_TO_PX] = -1
    return truth


def precision(
    stores: list[Path], truth: Mapping[str, np.ndarray], config: GalleryConfig
) -> dict[str, list[float]]:
    """Return by order the share of right ones among the first cells, as the gallery ranks them."""
    entries: dict[str, list[tuple[float, str, int]]] = {}
    for path in stores:
        ranked, _ = rank(StoreJob(path.stem, str(path), config))
        for (name, group), of in ranked.items():
            entries.setdefault(group or name, []).extend(
                (-value, path.stem, row)
                for value, row in zip(of.values_K.tolist(), of.rows_K.tolist(), strict=True)
                if truth[path.stem][row] >= 0
            )
    return {
        name: [float(np.mean([truth[s][r] for _, s, r in sorted(cells)[:k]])) for k in AT]
        for name, cells in entries.items()
    }


def main() -> None:
    """Print a table for each least confidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fields", type=Path, required=True, help="Folder of CRIC.")
    parser.add_argument("--label", default="lsil_plus", help="What the head learns of fields.")
    asked = parser.parse_args()
    paths = sorted(prepare(asked.fields, asked.work, asked.label).glob("*.zarr"))
    points = points_of(asked.fields)
    stores = {path.stem: io.open_store(path) for path in paths}
    truth = {name: truth_of(store, points.get(name, [])) for name, store in stores.items()}
    for least in (0.0, 0.2):
        parts = []
        for name, store in stores.items():
            sure = store.read(f"{schema.nuclei_step('classical')}/probability") >= least
            parts.append(truth[name][sure & (truth[name] >= 0)])
        joined = np.concatenate(parts)
        print(f"confidence from {least:g}: {len(joined)} nuclei, chance {joined.mean():.3f}")
        print("| order | " + " | ".join(f"first {k}" for k in AT) + " |\n|---|" + "---|" * len(AT))
        how = {"top": 10**6, "min_probability": least}
        of = precision(paths, truth, GalleryConfig(by=ORDERS, **how))
        head = GalleryConfig(by=("attention",), run=f"run-{asked.label}", **how)
        for order, shares in (of | precision(paths, truth, head)).items():
            print(f"| {order} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
