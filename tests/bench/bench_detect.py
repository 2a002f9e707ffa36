"""Recall, number and speed of the classical detector of nuclei.

    python tests/bench/bench_detect.py [--min-probability P] [--skip-speed] [--fields CRIC]

Recall: marked epithelial nuclei of simulated fields, or with --fields of the CRIC fields (both
0.25 µm/px), that have a detection of their own within 15 px, matched one to one (minimum total
distance). Detections are counted over the whole field, neutrophils included, which are not marked.

What constants fitted on other groups give: `fit_nuclei.py`. The other sets: `detect_sets.py`.

Blood smears (`chula_rbc12`, only with --fields): detections a field, at 0.1 µm/px (nominal) and
at 0.18 µm/px, where red cells measure their 7.5 µm. White cells are not labelled there, so there
is no recall.

Speed: CPU seconds of this process for 512-px tiles cut from the fields, one thread.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import simulated_fields
from PIL import Image
from scipy.optimize import linear_sum_assignment

from cytofm_cli.nuclei.detectors.classical import ClassicalConfig, ClassicalDetector

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
GROUPS = tuple(f"g{i}" for i in range(1, 9))
CRIC_MPP = 0.25
MATCH_PX = 15


def matched(marked: np.ndarray, found: np.ndarray) -> int:
    """Return how many marked points have a detection of their own within `MATCH_PX`."""
    if not len(marked) or not len(found):
        return 0
    distance = np.linalg.norm(marked[:, None] - found[None], axis=2)
    cost = np.where(distance <= MATCH_PX, distance - 1000, 0)
    i, j = linear_sum_assignment(cost)
    return int((distance[i, j] <= MATCH_PX).sum())


def read_rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def read_cric(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the marked points and the group of every field."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with (folder / "points.csv").open() as handle:
        for row in csv.DictReader(handle):
            points[row["image"]].append((float(row["x"]), float(row["y"])))
    with (folder / "images.csv").open() as handle:
        group_of = {row["image"]: row["group"] for row in csv.DictReader(handle)}
    return {name: np.array(points[name]) for name in group_of}, group_of


def cric(detector: ClassicalDetector, folder: Path, groups: tuple[str, ...]) -> None:
    points, group_of = read_cric(folder)
    names = [name for name, group in group_of.items() if group in groups]
    hits = marked = 0
    counts, recalls = [], []
    for name in names:
        table = detector.detect(read_rgb(folder / "images" / name), CRIC_MPP)
        n = matched(points[name], table.xy_px0)
        hits, marked = hits + n, marked + len(points[name])
        counts.append(len(table))
        if len(points[name]):
            recalls.append(n / len(points[name]))
    print(
        f"{'+'.join(groups):12s} {len(names):3d} fields  recall {hits / marked:.3f} "
        f"(mean over fields {statistics.mean(recalls):.3f})  detections a field: mean "
        f"{statistics.mean(counts):.0f}, median {statistics.median(counts):.0f}, "
        f"largest {max(counts)}"
    )


def chula(detector: ClassicalDetector) -> None:
    paths = sorted((DATA / "chula_rbc12" / "Dataset").iterdir())
    for mpp in (0.1, 0.18):
        counts = [len(detector.detect(read_rgb(path), mpp)) for path in paths]
        print(
            f"chula_rbc12 at {mpp} µm/px  {len(paths)} fields  detections a field: mean "
            f"{statistics.mean(counts):.2f}, median {statistics.median(counts):.0f}, "
            f"largest {max(counts)}; fields without any {sum(c == 0 for c in counts)}"
        )


def speed(detector: ClassicalDetector, folder: Path) -> None:
    tiles = []
    for path in sorted((folder / "images").iterdir())[::9]:
        image = read_rgb(path)
        tiles += [image[y : y + 512, x : x + 512] for y in (0, 400) for x in (0, 512)]
    runs = []
    for _ in range(3):
        start = time.process_time()
        for tile in tiles:
            detector.detect(tile, CRIC_MPP)
        runs.append(len(tiles) / (time.process_time() - start))
    print(f"{statistics.median(runs):.1f} 512-px tiles a CPU second ({len(tiles)} tiles, 3 runs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--min-probability", type=float, default=None)
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    args = parser.parse_args()
    fields = simulated_fields.fields_of(args.fields)
    given = {} if args.min_probability is None else {"min_probability": args.min_probability}
    detector = ClassicalDetector(ClassicalConfig(**given))
    for groups in (GROUPS, *[(group,) for group in GROUPS]):
        cric(detector, fields, groups)
    if args.fields is not None:
        chula(detector)
    if not args.skip_speed:
        speed(detector, fields)


if __name__ == "__main__":
    main()
