"""Parts of equal make-up: units that stay together, shared out so that classes are balanced.

Legend: U units that stay together, C classes, P parts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESTARTS = 4
SWAP_LIMIT = 100  # beyond this many units, single moves balance well enough
Ints = NDArray[np.int64]


def balanced_parts(
    counts_UC: Ints, target_P: NDArray[np.float64], rng: np.random.Generator
) -> Ints:
    """Assign units to parts so that each part gets its share of every class.

    Greedy from the largest unit, then single moves and swaps while they help; the best of a
    few random orders. The cost is the squared deviation of each class's share (and of the
    size) from the target, and a class that a part lacks weighs more than any deviation.

    Args:
        counts_UC: slides of each class in each unit.
        target_P: share of each part; sums to 1.
        rng: decides order and ties.

    Returns:
        int64 (U,), the part of each unit.
    """
    share_UC = np.concatenate([counts_UC, counts_UC.sum(1, keepdims=True)], 1).astype(np.float64)
    share_UC /= np.maximum(share_UC.sum(0), 1)
    tries = [_one_assignment(share_UC, target_P, rng) for _ in range(RESTARTS)]
    return min(tries, key=lambda trial: trial[0])[1]


def _cost(have_PC: NDArray[np.float64], target_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cost over the last two axes."""
    deviation = ((have_PC - target_P[:, None]) ** 2).sum((-2, -1))
    missing = (have_PC < 1e-12).sum((-2, -1))
    return np.asarray(deviation + 10.0 * missing)


def _one_assignment(
    share_UC: NDArray[np.float64], target_P: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, Ints]:
    n_units, n_parts = len(share_UC), len(target_P)
    order = np.argsort(-share_UC.max(1) * rng.uniform(0.7, 1.3, n_units), kind="stable")
    part_U = np.zeros(n_units, dtype=np.int64)
    have_PC = np.zeros((n_parts, share_UC.shape[1]))
    into_PPC = np.eye(n_parts)[:, :, None]  # candidate p: the unit goes into part p
    tie_P = rng.uniform(0, 1e-9, n_parts)
    for unit in order:
        cost_P = _cost(have_PC + into_PPC * share_UC[unit], target_P) + tie_P
        part_U[unit] = int(cost_P.argmin())
        have_PC[part_U[unit]] += share_UC[unit]
    best = float(_cost(have_PC, target_P))
    for _ in range(10):
        before = best
        best = _improve(share_UC, target_P, part_U, have_PC, best)
        if best >= before - 1e-12:
            break
    return best, part_U


def _improve(
    share_UC: NDArray[np.float64],
    target_P: NDArray[np.float64],
    part_U: Ints,
    have_PC: NDArray[np.float64],
    best: float,
) -> float:
    """Apply helpful moves and swaps in place; return the new cost."""
    n_units, n_parts = len(part_U), len(target_P)

    def attempt(changes: tuple[tuple[int, int], ...]) -> bool:
        nonlocal best
        trial = have_PC.copy()
        for unit, part in changes:
            trial[part_U[unit]] -= share_UC[unit]
            trial[part] += share_UC[unit]
        cost = float(_cost(trial, target_P))
        if cost >= best - 1e-12:
            return False
        best, have_PC[:] = cost, trial
        for unit, part in changes:
            part_U[unit] = part
        return True

    for unit in range(n_units):
        for part in range(n_parts):
            if part != part_U[unit]:
                attempt(((unit, part),))
    if n_units <= SWAP_LIMIT:
        for a in range(n_units):
            for b in range(a + 1, n_units):
                if part_U[a] != part_U[b]:
                    attempt(((a, int(part_U[b])), (b, int(part_U[a]))))
    return best
