"""How far the features of the same places agree under two conditions.

PLISM's two numbers (Filiot et al. 2025, arXiv:2501.16239): the cosine of a place with itself, and
how often it is found again among all places. Either alone misleads: features that say nothing
have a cosine of 1, so the cosine of different places and the chance level stand beside them.

Equal to plism-benchmark where norms are below 256 and no two rows nearly the same; there its half
precision overflows, or the place itself is taken for its neighbour. Here rows are scaled to length
1 first, in double precision, cosines are single precision, and a row is left out of its own
neighbours by its number.
Legend: N places, M = 2N rows (first the one condition, then the other), D features, R rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError

Floats = NDArray[np.float32]
Features = NDArray[np.floating[Any]]

KS: Final = (1, 3, 5, 10)
TIE: Final = 1e-6  # cosines nearer than this are the same: single precision tells no better
_CHUNK_VALUES: Final = 16_000_000  # cosines held at a time, 64 MB
_HIGH: Final = 0.9
_SURE: Final = 3.0  # standard deviations above chance


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two conditions of the same places.

    Attributes:
        places: how many.
        cosine: mean over places of the cosine of a place under both conditions.
        apart: mean cosine of a place under one condition with the other places under the other.
        top: by k, how often a place is among its k nearest of both conditions, in [0, 1].
        chance: by k, what that is for features that say nothing.
    """

    places: int
    cosine: float
    apart: float
    top: dict[int, float]
    chance: dict[int, float]

    @property
    def collapsed(self) -> bool:
        """Whether features hardly move, but also hardly tell one place from another."""
        usable = [k for k in self.top if self.chance[k] <= 0.1]
        k = max(usable, default=min(self.top))
        chance = self.chance[k]
        sure = chance + _SURE * float(np.sqrt(chance * (1 - chance) / (2 * self.places)))
        return self.cosine >= _HIGH and self.top[k] <= sure

    def record(self) -> dict[str, Any]:
        """Return plain JSON values."""
        top, chance = ({str(k): v for k, v in of.items()} for of in (self.top, self.chance))
        said = {"places": self.places, "cosine": self.cosine, "apart": self.apart}
        return {**said, "top": top, "chance": chance, "collapsed": self.collapsed}


def agreement(
    first_ND: Features, second_ND: Features, *, ks: Sequence[int] = KS, rows: int | None = None
) -> Agreement:
    """Compare features of the same places, row by row the same place.

    Args:
        first_ND: under the one condition, any norm and precision.
        second_ND: under the other.
        ks: numbers of neighbours.
        rows: rows compared at a time; changes the memory, no number.

    Raises:
        InputError: of different shape, fewer than two places, or values that are not finite.
    """
    check(first_ND, second_ND)
    first, second = unit(first_ND), unit(second_ND)
    n = len(first)
    cosine_N = np.einsum("nd,nd->n", first, second, dtype=np.float64)
    total = first.sum(0, dtype=np.float64) @ second.sum(0, dtype=np.float64)
    return Agreement(
        places=n,
        cosine=float(cosine_N.mean()),
        apart=float((total - cosine_N.sum()) / (n * (n - 1))),
        top=top_k(first, second, ks, rows=rows),
        chance={k: chance(k, n) for k in ks},
    )


def check(first_ND: Features, second_ND: Features) -> None:
    """Refuse what cannot be compared; see `agreement`."""
    if first_ND.ndim != 2 or second_ND.ndim != 2 or first_ND.shape != second_ND.shape:
        raise InputError(
            f"features of {first_ND.shape} and {second_ND.shape} are not of the same places.",
            hint="the same number of places and of features under both conditions",
        )
    if len(first_ND) < 2:
        raise InputError(
            f"{len(first_ND)} place(s): top-k needs at least two to tell apart.",
            hint="give more tiles or cells",
        )
    for values in (first_ND, second_ND):
        if bad := int((~np.isfinite(values)).any(1).sum()):
            raise InputError(
                f"NaN or infinite features of {bad} of {len(values)} places.",
                hint="check the weights",
            )


def unit(x_ND: Features) -> Floats:
    """Scale rows to length 1 in double precision; a row of zeros stays."""
    x = x_ND.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1.0), dtype=np.float32)


def chance(k: int, places: int) -> float:
    """Return the top-k accuracy of features that say nothing: k of the 2N - 1 other rows."""
    return min(1.0, k / (2 * places - 1))


def top_k(
    first_ND: Floats, second_ND: Floats, ks: Sequence[int], *, rows: int | None = None
) -> dict[int, float]:
    """Return how often a place is among its k nearest, the mean of both directions.

    Of rows that are as near as the place, as many count as fall among the k nearest on average:
    with features that are all the same that is chance.

    Args:
        first_ND: of length 1, under the one condition.
        second_ND: under the other.
        ks: numbers of neighbours.
        rows: rows compared at a time.
    """
    both_MD = np.concatenate([first_ND, second_ND])
    n, m = len(first_ND), len(both_MD)
    step = rows or max(1, _CHUNK_VALUES // m)
    nearer_M, same_M = np.empty(m, np.int64), np.empty(m, np.int64)
    for start in range(0, m, step):
        row_R = np.arange(start, min(start + step, m))
        cosine_RM = both_MD[row_R] @ both_MD.T
        at_R = np.arange(len(row_R))
        cosine_RM -= cosine_RM[at_R, (row_R + n) % m][:, None]
        cosine_RM[at_R, row_R] = -np.inf
        nearer_M[row_R] = (cosine_RM > TIE).sum(1)
        same_M[row_R] = (np.abs(cosine_RM) <= TIE).sum(1)
    return {k: float(np.clip((k - nearer_M) / same_M, 0.0, 1.0).mean()) for k in ks}
