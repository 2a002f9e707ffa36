"""How real do simulated fields look, in numbers: two folders of fields, figure by figure.

    python tests/bench/bench_realism.py SIMULATED REAL [--points CSV CSV] [--mpp 0.25] [--json OUT]
        [--images CSV --groups g1 g3]

Both folders hold fields that cytofm reads (JPEG, PNG, TIFF, OME-TIFF). `--points` names the marked
nuclei of the simulated and of the real fields: columns `image` or `slide_id`, and `x_nucleus`,
`y_nucleus` or `x`, `y`; rows with `marked` = 0 are left out. `--groups` takes only real fields of
these groups, as the column `group` of `--images` has them: what was tuned on some is judged on
others, and the floor is those others against these.

The last column is the floor: real fields against real ones, every other one against the rest. What
is written there is what two halves of reality differ by. Distances are Wasserstein's (optical
density, µm²); a difference is set against the spread over real fields (sd). The classifier is
logistic regression on hand-made features of 64-px tiles, folds by field; 0.5 is indistinguishable
to it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import realism
from realism import CHANNELS, Field
from scipy.stats import wasserstein_distance

from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
Points = dict[str, list[tuple[float, float]]]
Row = tuple[str, float, float, float, float]  # name, simulated, real, distance, floor


def read_points(path: Path | None) -> Points:
    """Return marked points by the stem of the field's name."""
    points: Points = defaultdict(list)
    if path is not None:
        with path.open(newline="") as handle:
            for row in csv.DictReader(handle):
                if row.get("marked", "1") != "0":
                    name = Path(row.get("image") or row["slide_id"]).name
                    end = "_nucleus" if row.get("x_nucleus") else ""
                    xy = float(row[f"x{end}"]), float(row[f"y{end}"])
                    points[name.split(".")[0]].append(xy)
    return points


def by_groups(images: Path, groups: list[str]) -> tuple[set[str], set[str]]:
    """Return the names of the images of some groups, and of all others."""
    with images.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    chosen = {row["image"] for row in rows if row["group"] in groups}
    return chosen, {row["image"] for row in rows} - chosen


def read_fields(
    folder: Path, points: Points, mpp: float, limit: int, only: set[str] | None = None
) -> list[Field]:
    """Measure the fields of a folder, the largest 2048 px square of each from its corner."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    paths = [path for path in paths if only is None or path.name in only]
    fields = []
    for path in paths[:limit]:
        with open_slide(str(path)) as slide:
            w, h = slide.info.levels[0].size_px
            rgb = slide.read(0, Box(0, 0, min(w, 2048), min(h, 2048)))
        marked = np.array(points.get(path.name.split(".")[0], []), float).reshape(-1, 2)
        marked = marked[(marked < (rgb.shape[1], rgb.shape[0])).all(axis=1)]
        fields.append(realism.measure(path.name, rgb, marked, ClassicalDetector(), mpp))
    return fields


def rows(
    first: list[Field], second: list[Field], halves: tuple[list[Field], list[Field]]
) -> list[Row]:
    """Return the figures of two sets, their distance, and the floor."""
    out: list[Row] = []
    for part in ("all", "background", "foreground"):
        for c, channel in enumerate(CHANNELS):
            out.append(
                (
                    f"optical density, {part}, {channel}",
                    *(_mean_density(fields, part, c) for fields in (first, second)),
                    _apart(first, second, part, c),
                    _apart(*halves, part, c),
                )
            )
    for name in _names(first + second, "nuclei"):
        values = [_values(fields, name) for fields in (first, second, *halves)]
        if all(len(v) for v in values):
            out.append(
                (
                    name,
                    float(np.median(values[0])),
                    float(np.median(values[1])),
                    float(wasserstein_distance(values[0], values[1])),
                    float(wasserstein_distance(values[2], values[3])),
                )
            )
    return out


def numbers(
    first: list[Field], second: list[Field], halves: tuple[list[Field], list[Field]]
) -> list[Row]:
    """Return single figures a field: means, and differences in sd over the second set."""
    out: list[Row] = []
    for name in _names(first + second, "numbers"):
        sets = [
            [f.numbers[name] for f in fs if name in f.numbers] for fs in (first, second, *halves)
        ]
        if all(sets):
            sd = max(float(np.std(sets[1])), 1e-9)
            mean = [float(np.mean(values)) for values in sets]
            out.append((name, mean[0], mean[1], (mean[0] - mean[1]) / sd, (mean[2] - mean[3]) / sd))
    return out


def _names(fields: list[Field], kind: str) -> list[str]:
    return list(dict.fromkeys(name for field in fields for name in getattr(field, kind)))


def _values(fields: list[Field], name: str) -> list[float]:
    return [value for field in fields for value in field.nuclei[name]]


def _counts(fields: list[Field], part: str, channel: int) -> np.ndarray:
    return np.sum([field.histograms[part][channel] for field in fields], axis=0)


def _apart(first: list[Field], second: list[Field], part: str, channel: int) -> float:
    return realism.wasserstein(_counts(first, part, channel), _counts(second, part, channel))


def _mean_density(fields: list[Field], part: str, channel: int) -> float:
    counts = _counts(fields, part, channel)
    middle = (realism.HISTOGRAM[1:] + realism.HISTOGRAM[:-1]) / 2
    return float((counts * middle).sum() / max(counts.sum(), 1))


def show(title: str, unit: str, table: list[Row]) -> None:
    print(f"\n| {title} | simulated | real | {unit} | real against real |\n|---|---|---|---|---|")
    for name, simulated, real, apart, floor in table:
        print(f"| {name} | {simulated:.3g} | {real:.3g} | {apart:.3f} | {floor:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("simulated", type=Path)
    parser.add_argument("real", type=Path)
    parser.add_argument("--points", type=Path, nargs=2, default=(None, None))
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--limit", type=int, default=1000, help="fields a folder")
    parser.add_argument("--images", type=Path, help="table of the real fields: image, group")
    parser.add_argument("--groups", nargs="+", default=[], help="of the real fields")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if bool(args.images) != bool(args.groups):
        parser.error("--images and --groups go together")
    first = read_fields(args.simulated, read_points(args.points[0]), args.mpp, args.limit)
    chosen, others = by_groups(args.images, args.groups) if args.groups else (None, None)
    real_points = read_points(args.points[1])
    second = read_fields(args.real, real_points, args.mpp, args.limit, chosen)
    halves = second[::2], second[1::2]
    if others:
        halves = read_fields(args.real, real_points, args.mpp, args.limit, others), second
    distances, figures = rows(first, second, halves), numbers(first, second, halves)
    print(f"{len(first)} simulated fields, {len(second)} real ones")
    show("distributions (mean or median)", "distance", distances)
    show("figures a field", "difference, sd", figures)
    auc, by_weight, by_auc = realism.classify(first, second)
    floor = realism.classify(*halves)[0]
    print(f"\nClassifier of 64-px tiles: AUC {auc:.3f}; real against real {floor:.3f}.")
    print("Largest weights: " + "; ".join(f"{n} {w:+.2f}" for n, w in by_weight) + ".")
    print("AUC alone: " + "; ".join(f"{n} {a:.2f}" for n, a in by_auc) + ".")
    if args.json:
        keys = ("name", "simulated", "real", "apart", "floor")
        result = {
            "distributions": [dict(zip(keys, row, strict=True)) for row in distances],
            "figures": [dict(zip(keys, row, strict=True)) for row in figures],
            "classifier": {"auc": auc, "floor": floor, "weights": by_weight, "alone": by_auc},
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
