"""Histograms of a stack of images, one each, and what is read off them.

Letters: B images, N pixels of one, K bins.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Features = dict[str, NDArray[np.float64]]  # (B,) each
Counts = NDArray[np.int64]

_PERCENTS: Final = (1, 25, 50, 75, 99)
STATISTICS: Final = ("mean", "std", "skew", *(f"p{p}" for p in _PERCENTS))


def count(bins_BN: NDArray[Any], n_bins: int) -> Counts:
    """Count, for each image, how many of its pixels fall into each of its bins.

    Args:
        bins_BN: unsigned integers below n_bins, (B, ...).
        n_bins: K.

    Returns:
        int64 (B, K).
    """
    # A call each: bins of one range after the other would have to be made and read as int64.
    rows = bins_BN.reshape(len(bins_BN), -1)
    return np.stack([np.bincount(row, minlength=n_bins) for row in rows])


def statistics(counts_BK: Counts, *, low: float, step: float) -> Features:
    """Return mean, spread, skewness and percentiles of values counted in bins, 0 of none."""
    total = counts_BK.sum(1)
    some = np.maximum(total, 1)
    values = low + step * np.arange(counts_BK.shape[1])
    mean = np.einsum("bk,k->b", counts_BK, values) / some
    offsets = values - mean[:, None]
    squares = offsets * offsets
    squares *= counts_BK
    std = np.sqrt(squares.sum(1) / some)
    wide = std > step / 100
    cubes = np.einsum("bk,bk->b", squares, offsets) / some
    skew = np.where(wide, cubes / np.where(wide, std, 1.0) ** 3, 0.0)
    numbers = (mean, std, skew, *(low + step * _reach(counts_BK, total)))
    return {
        key: np.where(total > 0, value, 0.0) for key, value in zip(STATISTICS, numbers, strict=True)
    }


def _reach(counts_BK: Counts, total_B: Counts) -> Counts:
    """Return the bins at which counts reach the percents of their total, (percents, B)."""
    n, n_bins = counts_BK.shape
    before = np.cumsum(total_B) - total_B
    wanted = np.ceil(np.array(_PERCENTS)[:, None] / 100 * total_B).astype(np.int64)
    place = np.searchsorted(np.cumsum(counts_BK.ravel()), before + wanted)
    within: Counts = place - np.arange(n) * n_bins
    return within


def otsu(counts_BK: Counts) -> NDArray[np.int64]:
    """Return the bins that split histograms with the largest variance between the parts, (B,)."""
    below = np.cumsum(counts_BK, axis=1, dtype=np.float64)
    moment = np.cumsum(counts_BK * np.arange(counts_BK.shape[1]), axis=1, dtype=np.float64)
    product = below * (below[:, -1:] - below)
    spread = (moment[:, -1:] * below - below[:, -1:] * moment) ** 2
    between = np.divide(spread, product, out=np.zeros_like(spread), where=product > 0)
    split: Counts = np.argmax(between, axis=1)
    return split
