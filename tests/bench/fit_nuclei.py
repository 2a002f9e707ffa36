"""Fit what ranks outlines and what makes probabilities of them; print the constants.

    python tests/bench/fit_nuclei.py [--write FILE]

Marks: the CRIC fields. Score: pairs of rival outlines (`classical.rivals`) near a mark, of which
one has its centroid within 2 µm of it and the other lies 1.25 µm or more farther off; logistic
regression on the difference of their features, each mark with the same weight, one of an
abnormal nucleus (not NILM) with four times that, for there are five times fewer; and pairs of
rival outlines of simulated nuclei (`simulated_nuclei.py`, seed 1) of which one overlaps the
nucleus (IoU) by 0.15 or more above the other, all of these together with the share `SIMULATED` of
the weight: there are hardly any large nuclei among the marks. Probability:
logistic regression of "is the detection of a mark" (one to one within 3.75 µm) on the terms of
`ranking.terms`, over all strong outlines that win against their rivals. Leukocytes are not
marked in the collection, so it is the probability of a nucleus that a cytologist marked.

Printed first: what each group of fields gives with constants fitted on the other groups.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import numpy as np
import shapely
import simulated_nuclei
from detect_sets import CRIC_MPP, DATA, MATCH_UM, NEAR_UM, cric_marks, matches, rgb, rows
from scipy.optimize import minimize

from cytofm_cli.nuclei import ranking
from cytofm_cli.nuclei.detectors import classical
from cytofm_cli.nuclei.detectors.classical import ClassicalConfig
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.nuclei.stain import PAP, optical_density

CENTRED_UM, APART_UM = 2.0, 1.25
ABNORMAL_WEIGHT = 4.0
SIMULATED = 0.5  # of the weight of all pairs
SIMULATED_FROM = (("giant", 1), ("pap", 1), ("giemsa", 1))  # preset, seed
LEAST_IOU, IOU_APART = 0.5, 0.15
DETECTIONS = (130, 150)  # a field, on average


class Field:
    """One field: marks, outlines, rivals, features."""

    def __init__(self, name: str, group: str, marks: list[tuple[float, float, str]]) -> None:
        self.group = group
        self.xy_um = np.array([mark[:2] for mark in marks]) * CRIC_MPP
        self.abnormal = np.array([mark[2] != "NILM" for mark in marks])
        image = rgb(DATA / "cric" / "images" / name)
        density = optical_density(resample_area(image, classical.WORKING_MPP / CRIC_MPP))
        darkness = PAP.darkness(density)
        self.evidence = classical.candidates(darkness, ClassicalConfig().min_radius_um)
        outlines = self.evidence.outlines
        self.centre_um = outlines.centroid() * classical.WORKING_MPP
        self.rivals = classical.rivals(outlines)
        self.features = ranking.features(self.evidence).astype(np.float64)
        self.colour = classical.colours(density, darkness, outlines, PAP)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return differences of features, better minus worse, and weights."""
        i, j = self.rivals
        gap = np.linalg.norm(self.xy_um[:, None] - self.centre_um, axis=2)
        mark = np.minimum(gap[:, i], gap[:, j]).argmin(0)
        gap_i, gap_j = gap[mark, i], gap[mark, j]
        tells = (np.minimum(gap_i, gap_j) < CENTRED_UM) & (abs(gap_i - gap_j) > APART_UM)
        i, j, mark, first = i[tells], j[tells], mark[tells], (gap_i < gap_j)[tells]
        better, worse = np.where(first, i, j), np.where(first, j, i)
        count = np.bincount(mark, minlength=len(self.xy_um))[mark]
        weight = np.where(self.abnormal[mark], ABNORMAL_WEIGHT, 1) / count
        return self.features[better] - self.features[worse], weight

    def settle(self, score: np.ndarray) -> None:
        """Keep the better of rivals, and tell which are marked."""
        value = (self.features @ score).astype(np.float32)
        rows = ranking.best_of_overlapping(self.evidence.outlines, value, self.rivals)
        strong = ranking.is_strong(self.evidence.take(rows), self.colour[rows])
        self.kept = rows[strong]
        kept = self.evidence.take(self.kept)
        self.terms = ranking.terms(kept, value[self.kept]).astype(np.float64)
        self.is_marked = np.zeros(len(self.kept))
        pairs = matches(self.xy_um, self.centre_um[self.kept], MATCH_UM)
        self.is_marked[[j for _, j in pairs]] = 1


def simulated_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Return differences of features, better minus worse, and weights, of simulated nuclei."""
    parts = []
    for preset, seed in SIMULATED_FROM:
        of = [slide_pairs(slide) for slide in simulated_nuclei.slides(preset, seed)]
        x, weight = (np.concatenate(column) for column in zip(*of, strict=True))
        parts.append((x, weight / weight.sum()))
    x, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    return x, weight


def slide_pairs(slide: simulated_nuclei.Slide) -> tuple[np.ndarray, np.ndarray]:
    factor = classical.WORKING_MPP / slide.mpp
    found = classical.choose_stain(ClassicalConfig(), [slide.image], slide.mpp, None)
    density = optical_density(resample_area(slide.image, factor))
    evidence = classical.candidates(found.darkness(density), ClassicalConfig().min_radius_um)
    x = ranking.features(evidence).astype(np.float64)
    i, j = classical.rivals(evidence.outlines)
    nuclei = [ring for ring, own in zip(slide.rings, slide.marked, strict=True) if own]
    own, iou = best_overlap(evidence.outlines.points() * factor, nuclei)
    tells = (own[i] == own[j]) & (own[i] >= 0) & (np.maximum(iou[i], iou[j]) > LEAST_IOU)
    tells &= abs(iou[i] - iou[j]) > IOU_APART
    i, j = i[tells], j[tells]
    better, worse = np.where(iou[i] > iou[j], i, j), np.where(iou[i] > iou[j], j, i)
    count = np.bincount(own[i], minlength=len(nuclei))[own[i]]
    area = np.array([shapely.Polygon(ring).area for ring in nuclei])[own[i]] * slide.mpp**2
    return x[better] - x[worse], area / count


def best_overlap(points: np.ndarray, nuclei: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the nucleus that each outline shares most with, -1 for none, and their IoU."""
    outlines = shapely.make_valid(shapely.polygons(points))
    shapes = shapely.make_valid(np.array([shapely.Polygon(ring) for ring in nuclei]))
    row, nucleus = shapely.STRtree(shapes).query(outlines)
    both = shapely.area(shapely.intersection(outlines[row], shapes[nucleus]))
    own, iou = np.full(len(points), -1), np.zeros(len(points))
    order = np.argsort(both, kind="stable")  # the last that is written is the largest
    row, nucleus, both = row[order], nucleus[order], both[order]
    own[row] = nucleus
    iou[row] = both / (shapely.area(outlines[row]) + shapely.area(shapes[nucleus]) - both)
    return own, iou


def fit_score(fields: list[Field], simulated: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    parts = [field.pairs() for field in fields]
    x, weight = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    scale = np.concatenate([field.features for field in fields]).std(0)
    share = np.array([1 - SIMULATED, SIMULATED])
    weight = np.concatenate(
        [w / w.sum() * part for w, part in zip((weight, simulated[1]), share, strict=True)]
    )
    x = np.concatenate([x, simulated[0]]) / scale

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ b
        slope = x.T @ (weight / (1 + np.exp(z)))
        return float(weight @ np.logaddexp(0, -z) + 5e-4 * b @ b), -slope + 1e-3 * b

    return minimize(loss, np.zeros(x.shape[1]), jac=True).x / scale


def fit_probability(fields: list[Field]) -> np.ndarray:
    x = np.concatenate([field.terms for field in fields])
    y = np.concatenate([field.is_marked for field in fields])
    colour = np.concatenate([field.colour[field.kept] for field in fields]).astype(np.float64)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        p = np.clip(ranking.probability(x, colour, b), 1e-9, 1 - 1e-9)
        value = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) + 1e-4 * b @ b
        inner = p / np.maximum(colour, 1e-9)
        slope = x.T @ ((p - y) / (1 - p) * (1 - inner)) / len(y) + 2e-4 * b
        return float(value), slope

    return minimize(loss, np.zeros(x.shape[1]), jac=True).x


def chance(field: Field, weights: np.ndarray) -> np.ndarray:
    return ranking.probability(field.terms, field.colour[field.kept], weights)


def held_out(fields: list[Field], simulated: tuple[np.ndarray, np.ndarray]) -> None:
    every: list[tuple[Field, np.ndarray]] = []
    for group in sorted({field.group for field in fields}):
        others = [field for field in fields if field.group != group]
        score = fit_score(others, simulated)
        for field in fields:
            field.settle(score)
        weights = fit_probability(others)
        every += [(field, chance(field, weights)) for field in fields if field.group == group]
        # Settled anew for the next group: what was held out is kept beside the field.
        for field in fields:
            if field.group == group:
                field.own = (field.kept.copy(), field.is_marked.copy())
    p = np.concatenate([chance for _, chance in every])
    y = np.concatenate([field.own[1] for field, _ in every])
    for most in DETECTIONS:
        ranked = np.append(np.sort(p)[::-1], 0)  # there may be fewer
        report(every, float(ranked[min(most * len(fields), len(p))]), most)
    edges = [0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.001]
    for low, high in itertools.pairwise(edges):
        here = (p >= low) & (p < high)
        print(
            f"probability {low:5.3f} to {high:5.3f}: {here.sum():6d}, said {p[here].mean():.3f}"
            f", marked {y[here].mean():.3f}"
        )


def report(every: list[tuple[Field, np.ndarray]], least: float, most: int) -> None:
    hits, marks, groups = [], [], []
    abnormal, near = [], []
    for field, p in every:
        centre = field.centre_um[field.own[0][p > least]]
        pairs = matches(field.xy_um, centre, MATCH_UM)
        hit = np.zeros(len(field.xy_um), bool)
        hit[[i for i, _ in pairs]] = True
        gap = np.linalg.norm(field.xy_um[:, None] - centre, axis=2)
        near.append((gap <= NEAR_UM).sum(1) >= 2)
        abnormal.append(field.abnormal)
        hits.append(hit)
        marks.append(len(hit))
        groups.append(field.group)
    hit, odd, two = (np.concatenate(part) for part in (hits, abnormal, near))
    by_field = np.array([(h.sum(), n) for h, n in zip(hits, marks, strict=True)])
    some = by_field[np.random.default_rng(0).integers(0, len(hits), (2000, len(hits)))].sum(1)
    low, high = np.percentile(some[:, 0] / some[:, 1], (2.5, 97.5))
    print(
        f"left out, {most} a field (probability > {least:.4f}): recall {hit.mean():.3f} "
        f"[{low:.3f}, {high:.3f}], abnormal {hit[odd].mean():.3f}; two or more within 7.5 µm "
        f"{two.mean():.3f}, abnormal {two[odd].mean():.3f}"
    )
    for group in sorted(set(groups)):
        own = [i for i, name in enumerate(groups) if name == group]
        n = sum(int((every[i][1] > least).sum()) for i in own)
        recall = np.concatenate([hits[i] for i in own]).mean()
        print(f"  {group}: recall {recall:.3f}, {n / len(own):.0f} detections a field")


def literal(name: str, values: np.ndarray, comments: tuple[str, ...] = ()) -> str:
    """Return the line of Python that sets an array."""
    items = [f"    {value:.4g}," for value in values]
    items = [f"{i}  # {c}" for i, c in zip(items, comments, strict=True)] if comments else items
    return (
        f"{name}: Final = np.array(\n    [\n"
        + "\n".join("    " + item for item in items)
        + "\n    ],\n    np.float32,\n)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put the constants into this file")
    args = parser.parse_args()
    group_of = {row["image"]: row["group"] for row in rows(DATA / "cric" / "images.csv")}
    fields = [Field(name, group_of[name], marks) for name, marks in cric_marks().items()]
    simulated = simulated_pairs()
    held_out(fields, simulated)
    score = fit_score(fields, simulated)
    for field in fields:
        field.settle(score)
    lines = {
        "SCORE": literal("SCORE", score, ranking.FEATURES),
        "PROBABILITY": literal("PROBABILITY", fit_probability(fields)),
    }
    print("\n".join(lines.values()))
    if args.write:
        text = args.write.read_text(encoding="utf-8")
        for name, line in lines.items():
            text = re.sub(
                rf"^{name}: Final = np\.(zeros\(.*?\)|array\(.*?^\))\n",
                line,
                text,
                flags=re.M | re.S,
            )
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
