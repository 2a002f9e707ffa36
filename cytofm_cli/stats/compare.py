"""Compare the answers of runs on the same slides: paired tests, corrected for their number.

Legend: S slides, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.stats import cautions as intervals
from cytofm_cli.stats import intervals as statistics
from cytofm_cli.stats import metrics
from cytofm_cli.stats.intervals import Difference
from cytofm_cli.stats.paired import auc_difference
from cytofm_cli.stats.score_intervals import retraining
from cytofm_cli.words import named

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """Out-of-fold answers of one run, sorted by slide id.

    Attributes:
        name: of the run.
        slide_ids: tested slides.
        y_S: class indices.
        p_SC: mean probability over the models that never saw the slide.
        groups: patient of each slide.
        classes: class names.
        parts: fold of each slide in each column of splits.csv, to see whether two runs share them.
    """

    name: str
    slide_ids: tuple[str, ...]
    y_S: NDArray[np.int64]
    p_SC: Floats
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def retrained(self) -> float:
        """How much the answers depend on each other; see `score_intervals.retraining`."""
        return retraining(len(set(self.parts)))

    @property
    def auc(self) -> float:
        """Return the AUC of the pooled answers."""
        return float(metrics.macro_auc(self.y_S, self.p_SC))


@dataclass(frozen=True)
class Comparison:
    """Two runs, second minus first.

    Attributes:
        first: name of the one run.
        second: name of the other.
        auc: of both.
        difference: of the AUCs, with its interval and the p-value of swapping answers.
        p_adjusted: p-value after Holm's correction over all pairs.
    """

    first: str
    second: str
    auc: tuple[float, float]
    difference: Difference
    p_adjusted: float

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "auc": list(self.auc),
            "difference": _numbers(self.difference),
            "p_adjusted": self.p_adjusted,
        }


def compare_runs(
    answers: Sequence[Answers], *, swaps: int = 2000, seed: int = 0
) -> list[Comparison]:
    """Compare every pair of runs.

    Args:
        answers: of two runs or more.
        swaps: how many the test draws where there are more than it can try.
        seed: of those.

    Raises:
        UsageError: fewer than two runs, or equal names.
        InputError: other slides, classes, labels or groups.
    """
    _check_same_task(answers)
    pairs = list(combinations(answers, 2))
    differences = [
        auc_difference(
            first.y_S,
            first.p_SC,
            second.p_SC,
            first.groups,
            retrained=max(first.retrained, second.retrained),
            swaps=swaps,
            seed=seed,
        )
        for first, second in pairs
    ]
    adjusted = statistics.holm([difference.p for difference in differences])
    return [
        Comparison(
            first=first.name,
            second=second.name,
            auc=(first.auc, second.auc),
            difference=difference,
            p_adjusted=p_adjusted,
        )
        for (first, second), difference, p_adjusted in zip(
            pairs, differences, adjusted, strict=True
        )
    ]


def cautions(answers: Answers) -> list[str]:
    """Say what a reader of intervals and tests between runs on these slides must know."""
    by_class = intervals.class_groups(answers.y_S, answers.groups, answers.classes)
    return intervals.cautions(by_class, len(set(answers.groups)))


def share_splits(answers: Sequence[Answers]) -> bool:
    """Tell whether all runs tested the same slides together."""
    return len({run.parts for run in answers}) == 1


def _check_same_task(answers: Sequence[Answers]) -> None:
    if len(answers) < 2:
        raise UsageError(
            f"comparing needs two runs or more, here {len(answers)}.",
            hint="`cytofm mil compare RUN RUN`",
        )
    names = [run.name for run in answers]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise UsageError(f"two runs are called {named(doubled)}.", hint="rename one folder")
    first = answers[0]
    for other in answers[1:]:
        apart = set(first.slide_ids) ^ set(other.slide_ids)
        if apart:
            raise InputError(
                f"{first.name} and {other.name} tested different slides "
                f"({len(apart)}: {named(apart)}).",
                hint="train the second with `--splits` of the first",
            )
        _refuse_other(
            "classes (the positive or worst last)",
            (first.name, ", ".join(first.classes)),
            (other.name, ", ".join(other.classes)),
        )
        labels = [[run.classes[y] for y in run.y_S.tolist()] for run in (first, other)]
        for what, ours, theirs in (
            ("labels", *labels),
            ("groups", first.groups, other.groups),
        ):
            for slide, a, b in zip(first.slide_ids, ours, theirs, strict=True):
                _refuse_other(f"{what}, {slide}", (first.name, a), (other.name, b))


def _refuse_other(what: str, first: tuple[str, str], second: tuple[str, str]) -> None:
    if first[1] != second[1]:
        raise InputError(
            f"{first[0]} and {second[0]} learnt different {what}: {first[1]} and {second[1]}.",
            hint="train both on one table of labels",
        )


def _numbers(difference: Difference) -> dict[str, float | None]:
    return {
        key: float(value) if np.isfinite(value) else None
        for key, value in difference.__dict__.items()
    }
