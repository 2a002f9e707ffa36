"""The closed path of the largest gain over rays: dynamic programming on many outlines at once.

Letters: A angles, M outlines, K steps along a ray.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.opencv import opencv

Floats = NDArray[np.float32]

# Largest change of step from one ray to the next; 2 allows ellipses up to about 1.8 : 1.
MAX_JUMP: Final = 2
_WINDOW: Final = 2 * MAX_JUMP + 1


def closed_path(gain_AMK: Floats) -> NDArray[np.int64]:
    """Return the step on each ray of the closed path with the largest gain, int64 (A, M).

    Neighbouring rays differ by at most `MAX_JUMP` steps. One and a half turns are solved and the
    turn in the middle is kept, where both ends have settled; the first and last ray of it, which
    are neighbours, are a quarter turn from either end.
    """
    A, M, K = gain_AMK.shape
    if not M:
        return np.empty((A, 0), np.int64)
    settle = A // 4
    order = np.arange(-settle, A + settle) % A
    best_TMK = _sums(gain_AMK, order)
    last = best_TMK[-1, :, MAX_JUMP:-MAX_JUMP].argmax(1)
    flat_TX = best_TMK.reshape(len(order), -1)
    row_M = np.arange(M) * (K + 2 * MAX_JUMP)
    window = np.arange(_WINDOW)[:, None]
    path_AM = np.empty((A, M), np.int64)
    step = last
    for t in range(len(order) - 1, settle - 1, -1):
        if t < settle + A:
            path_AM[order[t]] = step
        # Step s lies at s + MAX_JUMP, so its window starts at s.
        around = flat_TX[t - 1].take((row_M + step) + window)
        step = np.clip(step + around.argmax(0) - MAX_JUMP, 0, K - 1)
    return path_AM


def _sums(gain_AMK: Floats, order: NDArray[np.int64]) -> Floats:
    """Return the best sum of gains up to each ray of `order`, (T, M, K + 2 MAX_JUMP)."""
    cv2 = opencv()
    _, M, K = gain_AMK.shape
    best_TMK = np.full((len(order), M, K + 2 * MAX_JUMP), -np.inf, np.float32)
    inner = slice(MAX_JUMP, MAX_JUMP + K)
    best_TMK[0, :, inner] = gain_AMK[order[0]]
    # The largest of a step and its neighbours is a dilation along the ray.
    neighbours = np.ones((1, _WINDOW), np.uint8)
    for t in range(1, len(order)):
        reached = cv2.dilate(best_TMK[t - 1], neighbours)
        np.add(reached[:, inner], gain_AMK[order[t]], out=best_TMK[t, :, inner])
    return best_TMK
