"""Numbers of the study from results/*.json: means, paired differences, intervals, tests.

Legend: G patients.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

Result = dict[str, Any]
PatientAuc = Mapping[str, float]
_FLIPS: Final = 20_000


@dataclass(frozen=True)
class Gap:
    """A paired difference.

    Attributes:
        value: mean over patients.
        low, high: its 95 % t interval.
        p: two-sided, by flipping the signs of patients.
    """

    value: float
    low: float
    high: float
    p: float


def read_results(folder: Path) -> list[Result]:
    """Read all results."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def read_heads(folder: Path) -> dict[str, Result]:
    """Read the tables of heads: by task, encoder and head an AUC with its interval."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def chosen(results: Sequence[Result], arm: str, budget: float = 1.0) -> list[Result]:
    """Return the results of an arm, a seed each."""
    some = [r for r in results if r["arm"] == arm and r.get("budget", 1.0) == budget]
    return sorted(some, key=lambda result: result.get("seed", 0))


def within(results: Sequence[Result], collection: str, probe: str) -> dict[str, float]:
    """Return each patient's AUC, the mean over seeds."""
    values: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for patient, value in result["cells"][collection][probe]["within"].items():
            values[patient].append(value)
    return {patient: float(np.mean(some)) for patient, some in values.items()}


def needle(results: Sequence[Result], task: str, head: str) -> dict[str, float]:
    """Return, a patient each, whether the bag with the parasite scores higher: 1, 0, a half.

    A patient's two bags differ by that cell, so that stain cancels. The mean over patients is the
    AUC within patients; of several seeds each counts.
    """
    wins: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for patient, (without, with_parasite) in result["bags"][task][head]["patients"].items():
            gap = with_parasite - without
            wins[patient].append(0.5 if gap == 0 else float(gap > 0))
    return {patient: float(np.mean(some)) for patient, some in wins.items()}


def mean_interval(values: PatientAuc) -> tuple[float, float, float]:
    """Return the mean over patients and its 95 % t interval, cut at 0 and 1."""
    value_G = np.array(list(values.values()))
    mean = float(value_G.mean())
    if len(value_G) < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf(0.975, len(value_G) - 1) * value_G.std(ddof=1) / math.sqrt(len(value_G))
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def compare(first: PatientAuc, second: PatientAuc, seed: int = 0) -> Gap:
    """Compare two arms on the same patients (second - first)."""
    gap_G = np.array([second[patient] - first[patient] for patient in sorted(first)])
    mean, sd, n = float(gap_G.mean()), float(gap_G.std(ddof=1)), len(gap_G)
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    sign_RG = np.random.default_rng(seed).choice([-1.0, 1.0], (_FLIPS, n))
    as_large = int((np.abs(sign_RG @ gap_G / n) >= abs(mean) - 1e-12).sum())
    return Gap(mean, mean - half, mean + half, (as_large + 1) / (_FLIPS + 1))


def sign_test(gaps: Sequence[float]) -> float:
    """Return the two-sided p that so many of the differences have one sign."""
    ups, downs = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    return 1.0 if not ups + downs else float(stats.binomtest(ups, ups + downs).pvalue)


def holm(p_of: Mapping[str, float]) -> dict[str, float]:
    """Correct p values for being several (Holm 1979)."""
    adjusted, largest = {}, 0.0
    ordered = sorted(p_of, key=lambda name: p_of[name])
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_of[name]))
        adjusted[name] = largest
    return adjusted
