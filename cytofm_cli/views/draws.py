"""Random numbers by counter: a sample's draws depend on its key and on nothing else.

A key is a uint64 per sample. `fold` derives keys for its views and purposes, `uniform` reads
numbers off a key at counters 0, 1, 2, … So a sample gives the same views alone or in any
batch, in any order, in any worker, and a longer read has the shorter one as its prefix.
All draws are made on the host: a GPU only ever sees their results.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Keys = NDArray[np.uint64]


class Stream(IntEnum):
    """What a key is folded with, so that two purposes never read the same numbers."""

    KEEP = 0
    CUT = 1
    EDGE = 2
    NOISE = 3
    CLEAN = 4
    SIZE = 5
    CENTRE = 6
    PLACE = 7
    AUGMENT = 8
    MASK = 9
    VIEW = 1000  # + number of the view


_GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)


def sample_keys(seed: int, sample: ArrayLike) -> Keys:
    """Return one key per sample.

    Args:
        seed: the seed of the run.
        sample: integers that name the samples, any shape; in training a number that never
            repeats, such as `epoch * n_tiles + tile`.
    """
    root = _mix(np.array(seed & 0xFFFFFFFFFFFFFFFF, np.uint64) + _GAMMA)
    return fold(root, np.asarray(sample))


def fold(key: Keys, counter: ArrayLike) -> Keys:
    """Derive keys: one for every pair of `key` and `counter`, broadcast together."""
    count = np.asarray(counter).astype(np.uint64)
    with np.errstate(over="ignore"):
        return _mix(key ^ _mix((count + np.uint64(1)) * _GAMMA))


def uniform(key: Keys, n: int) -> NDArray[np.float64]:
    """Read `n` numbers in [0, 1) off every key: shape `key.shape + (n,)`."""
    with np.errstate(over="ignore"):
        bits = _mix(key[..., None] + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, stream: int) -> NDArray[np.int64]:
    """Return a fixed random permutation of 0 … n-1, the same on every machine."""
    with np.errstate(over="ignore"):
        hashed = _mix(np.arange(n, dtype=np.uint64) * _GAMMA + np.uint64(stream) * _M2)
    return np.argsort(hashed)  # the mixer is a bijection: no two are equal


def _mix(z: Keys) -> Keys:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * _M1
        z = (z ^ (z >> np.uint64(27))) * _M2
    return z ^ (z >> np.uint64(31))
