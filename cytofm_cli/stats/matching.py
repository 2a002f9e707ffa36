"""Points matched one to one: what was found, and what is there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Ints = NDArray[np.int64]


def match_points(
    first_F2: NDArray[np.float64], second_S2: NDArray[np.float64], distance: float
) -> Ints:
    """Pair points of two sets, each at most once, no pair farther apart than a distance.

    As many pairs as there can be; of all such pairings the one of the least total distance.

    Args:
        first_F2: (F, 2) places.
        second_S2: (S, 2) places, in the same unit.
        distance: how far apart the two of a pair may be, this included.

    Returns:
        int64 (pairs, 2): index in the first set, index in the second; sorted.
    """
    none = np.empty((0, 2), np.int64)
    if not len(first_F2) or not len(second_S2):
        return none
    near = cKDTree(first_F2).query_ball_tree(cKDTree(second_S2), distance)
    f_E = np.repeat(np.arange(len(near)), [len(some) for some in near])
    s_E = np.array([s for some in near for s in some], np.int64)
    if not len(f_E):
        return none
    # What no chain of near pairs connects cannot compete: each such part is solved by itself.
    n = len(first_F2) + len(second_S2)
    edges = coo_array((np.ones(len(f_E)), (f_E, s_E + len(first_F2))), shape=(n, n))
    part_E = connected_components(edges, directed=False)[1][f_E]
    order = np.argsort(part_E, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(part_E[order])) + 1)
    pairs = [_match_part(f_E[part], s_E[part], first_F2, second_S2, distance) for part in parts]
    matched = np.concatenate(pairs)
    return np.asarray(matched[np.lexsort((matched[:, 1], matched[:, 0]))], np.int64)


def _match_part(
    f_E: Ints,
    s_E: Ints,
    first_F2: NDArray[np.float64],
    second_S2: NDArray[np.float64],
    distance: float,
) -> Ints:
    """Match the points of one connected part, given its near pairs."""
    f_A, s_B = np.unique(f_E), np.unique(s_E)
    away_AB = np.linalg.norm(first_F2[f_A, None] - second_S2[None, s_B], axis=2)
    allowed_AB = np.zeros(away_AB.shape, bool)
    allowed_AB[np.searchsorted(f_A, f_E), np.searchsorted(s_B, s_E)] = True
    # One pair more outweighs all that the distances of the others can add up to.
    bonus = 2 * distance * min(away_AB.shape) + 1
    a, b = linear_sum_assignment(np.where(allowed_AB, away_AB - bonus, 0))
    kept = allowed_AB[a, b]
    return np.stack([f_A[a[kept]], s_B[b[kept]]], axis=1)
