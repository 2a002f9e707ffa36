"""Fit what tells red cells from nuclei (`cytofm_cli.nuclei.red_cells`); print the constants.

    python tests/bench/fit_red_cells.py [--write FILE]

Nuclei: outlines of marked nuclei of CRIC, of white cells (wbc_jtsc, blood_boxes), of grown
parasites (malaria_iml) and of simulated slides. Red cells: outlines in boxed red cells without a
parasite (malaria_iml, blood_boxes), in chula_rbc12 and between nuclei of simulated smears.
Outlines are those that win against rivals. Each source has a weight, shared by its outlines. Each
source of red cells is left out once first: how many of its red cells, and of all nuclei, are then
above a half.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import detect_sets
import numpy as np
import simulated_nuclei
from detect_sets import DATA, boxes_of, cric_marks, holds, matches, rgb, rows
from fit_nuclei import literal
from scipy.optimize import minimize

from cytofm_cli.nuclei import ranking, red_cells
from cytofm_cli.nuclei.detectors import classical
from cytofm_cli.nuclei.detectors.classical import WORKING_MPP, ClassicalConfig
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.nuclei.stain import optical_density

Samples = Iterator[tuple[str, str, np.ndarray]]  # source, kind, features of outlines

WEIGHT = {"cric": 4.0, "simulated": 1.0, "white": 1.0, "parasite": 0.5, "red cells": 5.0}
GROWN = ("gametocyte", "trophozoite", "schizont")
SEED = 1
RED, GREEN = (red_cells.FEATURES.index(name) for name in ("red", "green"))
FAR_UM = 8.0  # from every true nucleus


def outlines_of(image: np.ndarray, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Return centre, px of the image, and features of the outlines that win; none in one hue."""
    none = np.empty((0, 2)), np.empty((0, len(red_cells.FEATURES)))
    found = classical.choose_stain(ClassicalConfig(), [image], mpp, None)
    if found.level is not None or found.name == "fluorescence":
        return none
    density = optical_density(resample_area(image, WORKING_MPP / mpp))
    evidence = classical.candidates(found.darkness(density), ClassicalConfig().min_radius_um)
    kept = ranking.best_of_overlapping(
        evidence.outlines, ranking.score(evidence), classical.rivals(evidence.outlines)
    )
    evidence = evidence.take(kept)
    strong = ranking.is_strong(evidence, np.ones(len(kept), np.float32))
    outlines = evidence.outlines.take(strong)
    centre = outlines.centroid() * WORKING_MPP / mpp
    return centre, red_cells.features(density, outlines, WORKING_MPP)


def of_cric() -> Samples:
    for name, marks in cric_marks().items():
        centre, x = outlines_of(rgb(DATA / "cric" / "images" / name), detect_sets.CRIC_MPP)
        xy = np.array([mark[:2] for mark in marks])
        pairs = matches(xy, centre, detect_sets.MATCH_UM / detect_sets.CRIC_MPP)
        for source, own in (("cric NILM", True), ("cric abnormal", False)):
            yield source, "cric", x[[j for i, j in pairs if (marks[i][2] == "NILM") == own]]


def of_simulated() -> Samples:
    for preset in ("pap", "giemsa", "giant", "blood"):
        for slide in simulated_nuclei.slides(preset, SEED):
            centre, x = outlines_of(slide.image, slide.mpp)
            true = np.array([ring.mean(0) for ring in slide.rings]).reshape(-1, 2)
            pairs = matches(true, centre, detect_sets.MATCH_UM / slide.mpp)
            yield preset, "simulated", x[[j for _, j in pairs]]
            # Nine in ten of the rest are red cells, but for blue cytoplasm, which absorbs red most.
            if preset in ("giemsa", "blood"):
                far = np.linalg.norm(true[:, None] - centre, axis=2).min(0) > FAR_UM / slide.mpp
                yield preset, "red cells", x[far & (x[:, RED] < x[:, GREEN])]


def of_white_cells() -> Samples:
    for row in rows(DATA / "wbc_jtsc" / "cells.csv"):
        centre, x = outlines_of(
            rgb(DATA / "wbc_jtsc" / "images" / row["file"]), detect_sets.WBC_MPP
        )
        middle = np.linalg.norm(centre - 60, axis=1) < 25
        yield "jtsc", "white", x[middle]


def of_boxes(folder: str, sub: str) -> Samples:
    boxes = boxes_of(folder)
    for row in rows(DATA / folder / "images.csv"):
        source = row.get("source", "malaria")
        mpp = detect_sets.BLOOD_MPP.get(source, detect_sets.MALARIA_MPP)
        centre, x = outlines_of(rgb(DATA / folder / sub / row["image"]), mpp)
        of = {k: holds(v, centre).any(0) for k, v in boxes.get(row["image"], {}).items()}
        none = np.zeros(len(x), bool)
        red = of.pop("rbc", none)
        grown = np.logical_or.reduce([of.get(kind, none) for kind in GROWN])
        white = of.get("wbc", none)
        other = np.logical_or.reduce([none, *of.values()])
        yield source, "red cells", x[red & ~other]
        yield source, "parasite", x[grown & ~white]
        yield source, "white", x[white]


def of_chula(mpp: float) -> Samples:
    for path in sorted((DATA / "chula_rbc12" / "Dataset").iterdir()):
        yield f"chula {mpp}", "red cells", outlines_of(rgb(path), mpp)[1]


SOURCES: tuple[Callable[[], Samples], ...] = (
    of_cric,
    of_simulated,
    of_white_cells,
    partial(of_boxes, "malaria_iml", "fields"),
    partial(of_boxes, "blood_boxes", "images"),
    partial(of_chula, 0.1),
    partial(of_chula, 0.18),
)


def fit(of: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Return the weights, by logistic regression with equal weight for each source of a kind."""
    n_sources = defaultdict(int)
    for _, kind in of:
        n_sources[kind] += 1
    x = np.concatenate(list(of.values()))
    y = np.concatenate([np.full(len(v), kind != "red cells") for (_, kind), v in of.items()])
    weight = np.concatenate(
        [np.full(len(v), WEIGHT[k] / n_sources[k] / max(1, len(v))) for (_, k), v in of.items()]
    )
    weight /= weight.sum()
    scale = np.maximum(x.std(0), 1e-6)
    scale[0] = 1
    x, sign = x / scale, np.where(y, 1, -1)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        z = sign * (x @ b)
        slope = -x.T @ (weight * sign / (1 + np.exp(np.clip(z, -50, 50))))
        return float(weight @ np.logaddexp(0, -z) + 1e-4 * b @ b), slope + 2e-4 * b

    return minimize(loss, np.zeros(x.shape[1]), jac=True).x / scale


def share(x: np.ndarray, weights: np.ndarray) -> float:
    return float((x @ weights > 0).mean()) if len(x) else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put the constants into this file")
    args = parser.parse_args()
    parts: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for source, kind, x in itertools.chain.from_iterable(make() for make in SOURCES):
        parts[source, kind].append(x)
    of = {key: np.concatenate(some).astype(np.float64) for key, some in parts.items()}
    of = {key: x for key, x in of.items() if len(x)}
    for source in [s for s, kind in of if kind == "red cells"]:
        others = {key: x for key, x in of.items() if key != (source, "red cells")}
        weights = fit(others)
        nuclei = {
            key: round(share(x, weights), 3) for key, x in of.items() if key[1] != "red cells"
        }
        red = of[source, "red cells"]
        print(f"{source} left out: {share(red, weights):.3f} of {len(red)}; nuclei {nuclei}")
    weights = fit(of)
    for key, x in of.items():
        print(f"{key}: {len(x)}, above a half {share(x, weights):.3f}")
    line = literal("WEIGHTS", weights, red_cells.FEATURES)
    print(line)
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        form = r"^WEIGHTS: Final = np\.(zeros\(.*?\)|array\(.*?^\))\n"
        args.write.write_text(re.sub(form, line, text, flags=re.M | re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
