"""Blobs: maxima of the scale-normalised Laplacian of Gaussian (Lindeberg, IJCV 30:79, 1998)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def find_blobs(
    map_HW: Floats, radii_px: NDArray[np.floating], least: float
) -> tuple[Floats, Floats, Floats]:
    """Find bright blobs at every scale.

    Args:
        map_HW: float32.
        radii_px: radii of the blobs looked for.
        least: smallest answer.

    Returns:
        Centres (M, 2) as (x, y), radii (M,) and answers (M,), which are more than `least`.
    """
    found = []
    for radius in radii_px:
        answer = blob_answer(map_HW, float(radius))
        y, x = peaks(answer, float(radius), least)
        found.append(np.stack([x + 0.5, y + 0.5, np.full(len(x), radius), answer[y, x]], axis=1))
    table = np.concatenate(found).astype(np.float32)
    return table[:, :2], table[:, 2], table[:, 3]


def blob_answer(map_HW: Floats, radius_px: float) -> Floats:
    """Return −σ² ∇² of a map: a contrast, most at the centre of a disk of radius σ √2."""
    from scipy.ndimage import correlate1d

    gauss, second = _derivative_kernels(radius_px / np.sqrt(2))
    rows = correlate1d(map_HW, gauss, axis=0, mode="nearest")
    answer: Floats = correlate1d(rows, second, axis=1, mode="nearest")
    rows = correlate1d(map_HW, second, axis=0, mode="nearest")
    answer += correlate1d(rows, gauss, axis=1, mode="nearest")
    return answer


def peaks(
    answer_HW: Floats, radius_px: float, least: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns of the maxima of an answer that are more than `least`."""
    from scipy.ndimage import maximum_filter

    top = maximum_filter(answer_HW, size=max(3, int(0.7 * radius_px) | 1), mode="nearest")
    y, x = np.nonzero((answer_HW == top) & (answer_HW > least))
    return y, x


def _derivative_kernels(sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a Gaussian and −σ² times its second derivative, cut at 3 σ.

    The cut derivative is corrected to sum to 0: otherwise the answer would grow with the
    darkness of a flat area.
    """
    x = np.arange(-round(3 * sigma), round(3 * sigma) + 1)
    gauss = np.exp(-(x**2) / (2 * sigma**2))
    gauss /= gauss.sum()
    second = (1 - x**2 / sigma**2) * gauss
    return gauss, second - gauss * second.sum()
