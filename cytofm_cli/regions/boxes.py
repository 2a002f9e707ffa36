"""Sums of pictures over boxes of any corners.

H, W: rows and columns; N: boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def box_sums(
    values_HW: NDArray[Any], low_N2: NDArray[np.float64], high_N2: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sum a picture over boxes; a pixel that a box cuts counts by its area inside.

    Exact for any corners: between pixel corners, the integral of a picture is bilinear.

    Args:
        values_HW: the picture; pixel (x, y) covers [x, x + 1) x [y, y + 1).
        low_N2: (n, 2) x, y of the top-left corners; beyond the picture there is nothing.
        high_N2: (n, 2) of the bottom-right corners.
    """
    height, width = values_HW.shape
    kind: type[np.generic] = np.float64
    if values_HW.dtype == bool:
        kind = np.int32 if height * width < 2**31 else np.int64
    integral = np.zeros((height + 1, width + 1), kind)
    np.cumsum(values_HW, 0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], 1, out=integral[1:, 1:])
    (x0, y0), (x1, y1) = low_N2.T, high_N2.T

    def at(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        left = np.minimum(x.astype(np.int64), width - 1)
        top = np.minimum(y.astype(np.int64), height - 1)
        dx, dy = x - left, y - top
        upper = integral[top, left] * (1 - dx) + integral[top, left + 1] * dx
        lower = integral[top + 1, left] * (1 - dx) + integral[top + 1, left + 1] * dx
        total: NDArray[np.float64] = upper * (1 - dy) + lower * dy
        return total

    return at(x1, y1) - at(x0, y1) - at(x1, y0) + at(x0, y0)
