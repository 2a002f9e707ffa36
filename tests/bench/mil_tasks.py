"""Bags whose label rests on one known thing: what can a MIL head see?

Every patient has a negative and a positive bag and an offset of its own; instances are Gaussian,
marked ones are shifted along a direction that no single feature shows. With D = 64 features of
spread 1 an offset of spread 0.3 leaves the mean over 24 instances along the direction of one
marked one, 6 away, an AUC of 0.69.

needle: one marked instance, or none.
share: 15 to 30 % of the instances are marked (shift 4), or 35 to 50 %.
count: none to two marked instances, or three to five.
pair: two marked instances in every bag, of the same type (either), or one of each.
Legend: N instances, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.mil.bag import Bag

D = 64
OFFSET = 0.3  # spread of the patients' offsets; that of the instances is 1
FAR, NEAR = 6.0, 4.0  # shift of marked instances
Marks = Callable[[np.random.Generator, int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Task:
    """Bags, their labels and patients, and what is best known of each bag.

    Attributes:
        bags: negative and positive bag of each patient, in turn.
        y_S: 0 or 1 for each bag.
        groups: the patient of each bag.
        oracles: a score for each bag by someone who knows the directions, by its name: the mean
            and the maximum along the first, the number of instances beyond half of the shift, and
            the lesser of the maxima along both.
    """

    bags: list[Bag]
    y_S: NDArray[np.int64]
    groups: list[str]
    oracles: dict[str, NDArray[np.float64]]


def _needle(rng: np.random.Generator, y: int, n: int) -> tuple[int, int]:
    return y, 0


def _share(rng: np.random.Generator, y: int, n: int) -> tuple[int, int]:
    low = (0.15, 0.35)[y]
    return round(n * rng.uniform(low, low + 0.15)), 0


def _count(rng: np.random.Generator, y: int, n: int) -> tuple[int, int]:
    return int(rng.integers(3)) + 3 * y, 0


def _pair(rng: np.random.Generator, y: int, n: int) -> tuple[int, int]:
    return (1, 1) if y else ((2, 0), (0, 2))[int(rng.integers(2))]


MARKS: dict[str, Marks] = {"needle": _needle, "share": _share, "count": _count, "pair": _pair}


def make_task(name: str, *, size: int = 24, patients: int = 100, seed: int = 0) -> Task:
    """Draw the bags of a task.

    Args:
        name: one of `MARKS`.
        size: instances a bag, N; at least 12.
        patients: each has two bags.
        seed: equal seeds give equal bags.
    """
    rng = np.random.default_rng([seed, list(MARKS).index(name)])
    directions_2D = np.linalg.qr(rng.normal(size=(D, 2)))[0].T
    shift = NEAR if name == "share" else FAR
    bags, labels, groups, seen = [], [], [], []
    for patient in range(patients):
        offset_D = OFFSET * rng.normal(size=D)
        for y in (0, 1):
            x_ND = rng.standard_normal((size, D), dtype=np.float32) + offset_D
            first, second = MARKS[name](rng, y, size)
            x_ND[:first] += shift * directions_2D[0]
            x_ND[first : first + second] += shift * directions_2D[1]
            rng.shuffle(x_ND)
            along_2N = directions_2D @ x_ND.T
            seen.append(_oracles(along_2N, shift))
            bags.append(Bag(f"p{patient:03d}{'ab'[y]}", x_ND.astype(np.float32)))
            labels.append(y)
            groups.append(f"p{patient:03d}")
    oracles = {key: np.array([row[key] for row in seen]) for key in seen[0]}
    return Task(bags, np.array(labels), groups, oracles)


def _oracles(along_2N: NDArray[np.float64], shift: float) -> dict[str, float]:
    best_2 = along_2N.max(1)
    return {
        "mean": float(along_2N[0].mean()),
        "max": float(best_2[0]),
        "count": float((along_2N[0] > shift / 2).sum()),
        "both": float(best_2.min()),
    }
