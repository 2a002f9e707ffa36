"""How often intervals hold the truth and tests reject what is equal: docs/statistics.md.

    python tests/bench/bench_intervals.py [--simulations 1000] [--json FILE]

Binormal scores of patients; the plain bootstrap over groups beside. Seconds to minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cytofm_cli.stats import intervals, metrics
from cytofm_cli.stats.paired import auc_difference
from cytofm_cli.stats.score_intervals import auc_interval, retraining, share_interval

Floats = NDArray[np.float64]
GROUPS = (8, 20, 60, 100)
FOLDS = 5


@dataclass(frozen=True)
class Case:
    """One kind of cohort: slides a patient, how alike they are, share of positives, AUC."""

    slides: int
    alike: float
    positive: float
    auc: float


CASES = [
    Case(slides, alike, positive, auc)
    for slides, alike in ((1, 0.0), (3, 0.5), (5, 0.8))
    for positive in (0.15, 0.5)
    for auc in (0.5, 0.8, 0.95)
]


def cohorts(case: Case, n_groups: int, n: int, models: int = 1) -> Iterator[tuple]:
    """Yield labels, scores of models that are equally good, and groups; both classes occur."""
    rng = np.random.default_rng(1)
    shift = math.sqrt(2) * float(norm.ppf(case.auc))
    group_N = np.repeat(np.arange(n_groups), case.slides)
    names = [str(g) for g in group_N]

    def noise() -> Floats:
        of_group = math.sqrt(case.alike) * rng.normal(size=n_groups)[group_N]
        return of_group + math.sqrt(1 - case.alike) * rng.normal(size=len(group_N))

    for _ in range(n):
        y_N = (rng.random(n_groups) < case.positive).astype(np.int64)[group_N]
        if len(np.unique(y_N)) < 2:
            continue
        shared = noise()
        scores = [shift * y_N + (shared + noise()) / math.sqrt(2) for _ in range(models)]
        yield y_N, scores if models > 1 else [shift * y_N + shared], names


def auc_row(case: Case, n_groups: int, n: int) -> dict[str, float]:
    """Return the share of intervals that hold the AUC: ours and the bootstrap's."""
    held, drawn, width = [], [], []
    for y_N, (score_N,), groups in cohorts(case, n_groups, n):
        ours = auc_interval(y_N, score_N, groups)
        held.append(ours.low - 1e-9 <= case.auc <= ours.high + 1e-9)
        width.append(ours.high - ours.low)
        weight_RN = intervals.group_weights(groups, 400, 0)
        boot = intervals.bootstrap(partial(metrics.auc, y_N, score_N), weight_RN)
        drawn.append(boot.low <= case.auc <= boot.high)
    return {
        "score": float(np.mean(held)),
        "bootstrap": float(np.mean(drawn)),
        "width": float(np.mean(width)),
    }


def share_row(share: float, slides: int, alike: float, n_groups: int, n: int) -> float:
    """Return the share of intervals that hold a share of slides."""
    rng = np.random.default_rng(2)
    names = [str(g) for g in np.repeat(np.arange(n_groups), slides)]
    held = []
    for _ in range(n):
        of_group = np.full(n_groups, share)
        if alike:
            scale = (1 - alike) / alike
            of_group = rng.beta(share * scale, (1 - share) * scale, n_groups)
        hit_N = (rng.random((n_groups, slides)) < of_group[:, None]).ravel()
        found = share_interval(hit_N, names)
        held.append(found.low <= share <= found.high)
    return float(np.mean(held))


def pair_row(case: Case, n_groups: int, n: int) -> dict[str, float]:
    """Return how often equal models differ at 5 %, and how often the interval holds 0."""
    rejected, held = [], []
    for y_N, pair, groups in cohorts(case, n_groups, n, models=2):
        both = [np.stack([-score_N, score_N], 1) for score_N in pair]
        found = auc_difference(y_N, *both, groups, swaps=500)
        rejected.append(found.p < 0.05)
        held.append(found.low <= 0 <= found.high)
    return {"rejected": float(np.mean(rejected)), "held": float(np.mean(held))}


def pooled_row(
    effect: float, dims: int, n_slides: int, positive: float, n: int
) -> dict[str, float]:
    """Return the same of pooled answers of a cross-validated ridge regression."""
    rng = np.random.default_rng(3)
    y_N = (np.arange(n_slides) < round(positive * n_slides)).astype(np.int64)
    names = [str(i) for i in range(n_slides)]
    truth = _truth(effect, dims, y_N)
    held, rejected, aucs = [], [], []
    for _ in range(n):
        fold_N = np.empty(n_slides, dtype=int)
        for c in (0, 1):
            rows = rng.permutation(np.flatnonzero(y_N == c))
            fold_N[rows] = np.arange(len(rows)) % FOLDS
        pair = [_out_of_fold(_features(rng, effect, dims, y_N), y_N, fold_N) for _ in range(2)]
        how = {"retrained": retraining(FOLDS)}
        found = auc_interval(y_N, pair[0], names, **how)
        aucs.append(found.value)
        held.append(found.low <= truth <= found.high)
        both = [np.stack([-score_N, score_N], 1) for score_N in pair]
        rejected.append(auc_difference(y_N, *both, names, swaps=500, **how).p < 0.05)
    return {
        "truth": truth,
        "mean": float(np.mean(aucs)),
        "held": float(np.mean(held)),
        "rejected": float(np.mean(rejected)),
    }


def _features(rng: np.random.Generator, effect: float, dims: int, y_N: NDArray) -> Floats:
    x_ND = rng.normal(size=(len(y_N), dims))
    x_ND[:, 0] += effect * y_N
    return x_ND


def _weights(x_ND: Floats, y_N: NDArray) -> Floats:
    centred = x_ND - x_ND.mean(0)
    inner = centred.T @ centred + 5 * np.eye(x_ND.shape[1])
    return np.asarray(np.linalg.solve(inner, centred.T @ (y_N - y_N.mean())))


def _out_of_fold(x_ND: Floats, y_N: NDArray, fold_N: NDArray) -> Floats:
    score_N = np.empty(len(y_N))
    for fold in range(FOLDS):
        train_N = fold_N != fold
        weight_D = _weights(x_ND[train_N], y_N[train_N])
        score_N[~train_N] = (x_ND[~train_N] - x_ND[train_N].mean(0)) @ weight_D
    return score_N


def _truth(effect: float, dims: int, y_N: NDArray) -> float:
    """Return the mean AUC of models trained on as many slides as a fold's."""
    rng, aucs = np.random.default_rng(4), []
    kept = y_N[np.arange(len(y_N)) % FOLDS > 0]
    for _ in range(400):
        weight_D = _weights(_features(rng, effect, dims, kept), kept)
        aucs.append(norm.cdf(effect * weight_D[0] / math.sqrt(2) / np.linalg.norm(weight_D)))
    return float(np.mean(aucs))


def print_row(*cells: object) -> None:
    """Print one row of a Markdown table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def print_head(*cells: object) -> None:
    """Print the head of a Markdown table."""
    print()
    print_row(*cells)
    print_row(*["---"] * len(cells))


def print_aucs(n: int) -> list[dict]:
    """Print how AUCs and their differences fare; return the rows."""
    rows = []
    patients = [f"{g} patients" for g in GROUPS]
    print_head("slides a patient, alike", "positive", "AUC", *patients)
    for case in CASES:
        by_size = {g: auc_row(case, g, n) | pair_row(case, g, n // 2) for g in GROUPS}
        rows.append(case.__dict__ | {"groups": by_size})
        cells = [
            f"{row['score']:.2f} ({row['bootstrap']:.2f}); {row['held']:.2f}, {row['rejected']:.3f}"
            for row in by_size.values()
        ]
        print_row(f"{case.slides}, {case.alike}", case.positive, case.auc, *cells)
    return rows


def print_shares(n: int) -> list[dict]:
    """Print how shares fare; return the rows."""
    rows = []
    print_head("share", "slides a patient, alike", *(f"{g} patients" for g in GROUPS))
    for share in (0.5, 0.8, 0.95):
        for slides, alike in ((1, 0.0), (3, 0.3), (5, 0.6)):
            held = [share_row(share, slides, alike, g, n) for g in GROUPS]
            rows.append({"share": share, "slides": slides, "alike": alike, "held": held})
            print_row(share, f"{slides}, {alike}", *(f"{x:.2f}" for x in held))
    return rows


def print_pooled(n: int) -> list[dict]:
    """Print how pooled answers of a cross-validation fare; return the rows."""
    rows = []
    print_head("slides, positive", "features", "effect", "true AUC", "mean", "held", "rejected")
    for slides, positive in ((20, 0.5), (60, 0.15), (100, 0.5)):
        for dims in (4, 64):
            for effect in (0.0, 1.0, 2.5):
                row = pooled_row(effect, dims, slides, positive, n)
                rows.append({"slides": slides, "dims": dims, "effect": effect} | row)
                cells = [f"{row[key]:.3f}" for key in ("truth", "mean", "held", "rejected")]
                print_row(f"{slides}, {positive}", dims, effect, *cells)
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="intervals and tests, by simulation")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    n = args.simulations
    rows = [*print_aucs(n), *print_shares(n), *print_pooled(n // 2)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
