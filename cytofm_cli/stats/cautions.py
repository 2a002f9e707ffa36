"""What an interval is worth: from how many groups it comes, and where there is none.

Legend: N slides, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW_GROUPS = 10


def class_groups(
    y_N: NDArray[np.int64], groups: Sequence[str], classes: Sequence[str]
) -> dict[str, int]:
    """Count the groups that each class occurs in; `y_N` indexes `classes`."""
    having: list[set[str]] = [set() for _ in classes]
    for c, group in zip(y_N.tolist(), groups, strict=True):
        having[c].add(group)
    return {name: len(groups_of) for name, groups_of in zip(classes, having, strict=True)}


def cautions(by_class: Mapping[str, int], total: int, what: str = "groups") -> list[str]:
    """Say which classes rest on few groups.

    Args:
        by_class: how many groups each class occurs in.
        total: groups in all.
        what: what intervals are resampled over, in the plural.
    """
    few = {name: n for name, n in by_class.items() if n < FEW_GROUPS}
    if not few:
        return []
    counts = ", ".join(f"{n} of {total} {what} are {name!r}" for name, n in few.items())
    return [f"{counts}: whatever is said of so few may change with one more"]


def brief(by_class: Mapping[str, int], what: str = "groups") -> str | None:
    """Say in a few words that a class rests on few groups; None: none does."""
    fewest = min(by_class.values())
    return None if fewest >= FEW_GROUPS else f"only {fewest} {what} in the smaller class"


def is_usable(low: float | None, high: float | None) -> bool:
    """Tell whether an interval says anything: one without width does not.

    Where every replicate gives the same, as the AUC of a perfectly separated cohort does, the
    bootstrap does not know how far the truth may lie.
    """
    return low is None or high is None or low < high


def interval_text(low: float | None, high: float | None, form: str = ".3f") -> str:
    """Write an interval: `[0.812, 0.954]`, or that there is none."""
    if low is None or high is None:
        return "[–, –]"
    if not is_usable(low, high):
        return "[no interval]"
    return f"[{low:{form}}, {high:{form}}]"


def unusable(judged: Mapping[str, Any]) -> list[str]:
    """Say which metrics of a record have an interval without width."""
    names = [
        name
        for name, of in judged.items()
        if isinstance(of, Mapping) and "low" in of and not is_usable(of["low"], of["high"])
    ]
    if not names:
        return []
    return [
        f"no usable interval of {', '.join(names)}: every replicate gives the same, so how far "
        "the truth may lie is not known"
    ]


def left_out(dropped: Mapping[str, int], replicates: int) -> list[str]:
    """Say how many replicates of which metrics were undefined."""
    by_count: dict[int, list[str]] = {}
    for name, count in dropped.items():
        if count:
            by_count.setdefault(count, []).append(name)
    return [
        f"{count} of {replicates} replicates ({100 * count / replicates:.1f} %) lack what "
        f"{', '.join(names)} needs of each class, and were left out of its interval"
        for count, names in by_count.items()
    ]
