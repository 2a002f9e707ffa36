"""Random numbers that depend on where and what they are for, never on what was drawn before."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# What a stream is for; part of its key.
COHORT: Final = 1
PATIENT: Final = 2
BLOCK: Final = 3
ISLANDS: Final = 4
CLUMPS: Final = 5

# SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): increment and the constants of its mixer.
_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return the generator of a key: the same one wherever and whenever it is asked for.

    Args:
        seed: of the cohort, not negative.
        key: what it is for, not negative: purpose, slide, block.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


def normals(key: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a standard normal for each node (i, j) of an endless grid.

    Args:
        key: of the grid, below 2**64.
        i, j: nodes, not negative, of equal shape.
    """
    state = _mixed(np.full(i.shape, key, np.uint64))
    state = _mixed(state ^ i.astype(np.uint64))
    state = _mixed(state ^ j.astype(np.uint64))
    # Box and Muller (1958); 53 bits each, the first one never 0.
    u = ((state >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    v = (_mixed(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v), np.float64)


def smooth(
    key: int, scale: float, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return smooth noise at the points of a raster: standard normal at every point.

    Value noise (normals on a grid, joined by smoothstep weights), divided by the root of the sum
    of the squared weights: its variance is 1 between nodes, too.

    Args:
        key: of the noise.
        scale: distance of nodes, in the unit of `x` and `y`.
        x: columns (w,), not negative.
        y: rows (h,), not negative.

    Returns:
        float64 (h, w).
    """
    (i_w, u_w), (j_h, v_h) = (_nodes(axis / scale) for axis in (x, y))
    total = np.zeros((len(y), len(x)))
    power = np.zeros_like(total)
    for right in (0, 1):
        for down in (0, 1):
            w_w = u_w if right else 1 - u_w
            w_h = v_h if down else 1 - v_h
            weight = w_h[:, None] * w_w[None, :]
            i_hw = np.broadcast_to(i_w[None, :] + right, total.shape)
            j_hw = np.broadcast_to(j_h[:, None] + down, total.shape)
            total += weight * normals(key, i_hw, j_hw)
            power += weight**2
    return np.asarray(total / np.sqrt(power), np.float64)


def _nodes(t: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    floor = np.floor(t)
    part = t - floor
    return floor.astype(np.int64), part * part * (3 - 2 * part)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):  # it is modulo 2**64 by design
        state = state + _GAMMA
        state = (state ^ (state >> np.uint64(30))) * _MIX[0]
        state = (state ^ (state >> np.uint64(27))) * _MIX[1]
    return state ^ (state >> np.uint64(31))
