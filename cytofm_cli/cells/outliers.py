"""One class alone: how far a cell lies from normal cells, or from most cells of its slide.

Legend: N cells, B of a bank, D features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.stats.covariance import shrunk_covariance

Floats = NDArray[np.float64]


def whitening(x_ND: Floats) -> Floats:
    """Return W, (D, D), so that ‖x W‖ is the Mahalanobis distance of a centred row."""
    covariance_DD, _ = shrunk_covariance(x_ND)
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    floor = 1e-9 * max(float(values_D.max()), 1e-12)
    return np.asarray(vectors_DD / np.sqrt(np.maximum(values_D, floor)))


def neighbour_distance(x_ND: Floats, bank_BD: NDArray[np.floating[Any]], k: int) -> Floats:
    """Return the Euclidean distance of each row to the k-th nearest of a bank, float64 (N,).

    Args:
        x_ND: rows.
        bank_BD: at least one row.
        k: from 1; of a smaller bank the farthest counts.
    """
    bank_BD = bank_BD.astype(np.float64)
    k = min(k, len(bank_BD))
    squares_NB = (x_ND**2).sum(1)[:, None] + (bank_BD**2).sum(1) - 2 * x_ND @ bank_BD.T
    return np.asarray(np.sqrt(np.maximum(np.partition(squares_NB, k - 1, 1)[:, k - 1], 0)))


def share_nearer(reference_N: Floats, distance_M: Floats) -> Floats:
    """Return how large a share of normal cells lies nearer than each distance; equals count half.

    One is added to the normal cells, so that no finite number of them makes a share 1.
    """
    ordered = np.sort(reference_N)
    below = np.searchsorted(ordered, distance_M, "left")
    below = below + np.searchsorted(ordered, distance_M, "right")
    return np.asarray(below / 2 / (len(ordered) + 1))


_FEWEST = 16
_PARTS = 5


def unlikeness(x_ND: Floats, *, share: float = 0.75) -> Floats:
    """Return how unlike the rest of its slide each cell is, without a label.

    Most cells of a slide are normal: the share of them that lies nearest to the median of every
    feature is taken for that. Mean and covariance (`shrunk_covariance`) of those in four fifths of
    the slide's cells judge the last fifth, in turns: cells are often fewer than features, and the
    distance of a cell from a covariance that it has shaped says little.

    Args:
        x_ND: features, one row a cell.
        share: of the cells that are taken for normal.

    Returns:
        float64 (N,): Mahalanobis distance over √D, so that a cell like the others has about 1;
        zeros for fewer than 16 cells, of which nothing can be said.
    """
    n, d = x_ND.shape
    distance_N = np.zeros(n)
    if n < _FEWEST:
        return distance_N
    spread_D = x_ND.std(0)
    z_ND = (x_ND - np.median(x_ND, 0)) / np.where(spread_D > 0, spread_D, 1.0)
    near_N = np.argsort(np.argsort((z_ND**2).sum(1), kind="stable")) < round(share * n)
    part_N = np.random.default_rng(0).permutation(n) % _PARTS
    for part in range(_PARTS):
        judged, normal_MD = part_N == part, z_ND[near_N & (part_N != part)]
        mean_D = normal_MD.mean(0)
        off_ND = (z_ND[judged] - mean_D) @ whitening(normal_MD - mean_D)
        distance_N[judged] = np.sqrt((off_ND**2).sum(1) / d)
    return distance_N
