"""How near two sets of images are, in features of one encoder: NumPy, float64, no random numbers.

| measure | source |
|---|---|
| Fréchet distance | Heusel et al., NeurIPS 2017 |
| precision and recall | Kynkäänniemi et al., NeurIPS 2019 |
| density and coverage | Naeem et al., ICML 2020 |

Letters: N real images, M made ones, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError, UsageError

Features = NDArray[np.floating[Any]]
_ROWS = 1024  # of a block of distances


def frechet(real_ND: Features, made_MD: Features) -> float:
    """Return ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½), of sample covariances; at least 0.

    The trace of the root is the sum of the singular values of the product of two centred
    matrices, so that no root of a product of covariances, which need not be symmetric, is taken:
    with Σ = Xᵀ X, tr (Σ₁ Σ₂)^½ = ‖X₁ X₂ᵀ‖_*, the nuclear norm.

    Raises:
        UsageError: fewer than two rows, or other features.
    """
    real, made = _checked(real_ND, made_MD, least=2)
    gap = real.mean(0) - made.mean(0)
    roots = [_root(x) for x in (real, made)]
    trace = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(gap @ gap) + trace - 2 * shared)


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How two sets overlap, by balls to the k-th neighbour of one's own set.

    Attributes:
        precision: share of made images inside some real one's ball.
        recall: share of real images inside some made one's ball.
        density: real balls that a made image is in, mean, over k; 1 where all is alike.
        coverage: share of real images whose ball holds a made one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real_ND: Features, made_MD: Features, *, k: int = 3, density_k: int = 5) -> Manifold:
    """Return precision, recall (k neighbours), density and coverage (density_k neighbours).

    Raises:
        UsageError: not more rows than neighbours.
    """
    real, made = _checked(real_ND, made_MD, least=max(k, density_k) + 1)
    across_NM = distances(real, made)
    own_N, wide_N = radii(real, k), radii(real, density_k)
    own_M = radii(made, k)
    inside_NM = across_NM <= own_N[:, None]
    wide_NM = across_NM <= wide_N[:, None]
    return Manifold(
        precision=float(inside_NM.any(0).mean()),
        recall=float((across_NM <= own_M[None, :]).any(1).mean()),
        density=float(wide_NM.sum(0).mean() / density_k),
        coverage=float(wide_NM.any(1).mean()),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """How near made images are to real ones, beside how near real ones of other groups are.

    Attributes:
        cosine_M: of each made image with its nearest real one.
        row_M: which that is.
        real_N: of each real image with its nearest real one of another group.
        copies: share of made images that are nearer to a real one than 99 of 100 real ones are
            to another group's: 0.01 where nothing is memorised.
    """

    cosine_M: NDArray[np.float64]
    row_M: NDArray[np.intp]
    real_N: NDArray[np.float64]
    copies: float


def nearest(real_ND: Features, made_MD: Features, group_N: NDArray[Any]) -> Nearest:
    """Return the nearest real image of each made one, by cosine.

    Args:
        real_ND: of the images that the generator was trained on.
        made_MD: of made ones.
        group_N: the slide or patient of each real one.

    Raises:
        InputError: real images of a single group: nothing tells what is near.
    """
    real, made = (_unit(x) for x in _checked(real_ND, made_MD, least=1))
    group_N = np.asarray(group_N)
    if len(np.unique(group_N)) < 2:
        raise InputError(
            "real images of a single slide: nothing tells how near two of different slides are.",
            hint="name stores of several slides",
        )
    across_MN = made @ real.T
    among_NN = np.where(group_N[:, None] == group_N[None, :], -np.inf, real @ real.T)
    best_M, best_N = across_MN.max(1), among_NN.max(1)
    bar = float(np.quantile(best_N, 0.99))
    return Nearest(
        cosine_M=best_M,
        row_M=across_MN.argmax(1),
        real_N=best_N,
        copies=float((best_M > bar).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How well made images are what was asked for.

    Attributes:
        cosine: of each image's vector with its condition, mean.
        retrieval: share of images whose own condition is the nearest of all; chance is 1 / n.
        chance: that.
        n: conditions.
    """

    cosine: float
    retrieval: float
    chance: float
    n: int


def fidelity(asked_MD: Features, made_MD: Features) -> Fidelity:
    """Compare the vectors of made images with the conditions, row by row.

    Raises:
        UsageError: not as many.
    """
    asked, made = (_unit(x) for x in _checked(asked_MD, made_MD, least=1))
    if len(asked) != len(made):
        raise UsageError(f"{len(made)} images for {len(asked)} conditions.")
    across = made @ asked.T
    own = np.diagonal(across)
    hits = (across.argmax(1) == np.arange(len(made))).mean()
    return Fidelity(
        cosine=float(own.mean()), retrieval=float(hits), chance=1 / len(made), n=len(made)
    )


def distances(left_ND: Features, right_MD: Features) -> NDArray[np.float64]:
    """Return Euclidean distances, float64 (N, M), in blocks of rows."""
    left, right = np.asarray(left_ND, np.float64), np.asarray(right_MD, np.float64)
    out = np.empty((len(left), len(right)))
    for first in range(0, len(left), _ROWS):
        some = left[first : first + _ROWS]
        squares = (some**2).sum(1)[:, None] + (right**2).sum(1)[None, :] - 2 * some @ right.T
        out[first : first + _ROWS] = np.sqrt(np.maximum(squares, 0))
    return out


def radii(x_ND: Features, k: int) -> NDArray[np.float64]:
    """Return the distance of each row to its k-th nearest other row, (N,)."""
    within = distances(x_ND, x_ND)
    np.fill_diagonal(within, np.inf)
    nth: NDArray[np.float64] = np.partition(within, k - 1, axis=1)[:, k - 1]
    return nth


def _root(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return X with Xᵀ X the sample covariance: at most D rows."""
    centred: NDArray[np.float64] = (x_ND - x_ND.mean(0)) / np.sqrt(len(x_ND) - 1)
    if len(centred) <= centred.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"), np.float64)


def _unit(x_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
    return np.asarray(x_ND / lengths, np.float64)


def _checked(
    left: Features, right: Features, *, least: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both in float64.

    Raises:
        UsageError: other features, or too few rows.
        InputError: not finite.
    """
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UsageError(f"features of shapes {a.shape} and {b.shape} cannot be compared.")
    if min(len(a), len(b)) < least:
        raise UsageError(f"{min(len(a), len(b))} images are too few: at least {least}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("features that are not finite cannot be compared.")
    return a, b
