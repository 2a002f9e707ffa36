"""Halving stacks of images so that a mirrored image gives the mirrored result.

Even lengths take pairs; odd ones take every second pixel with its neighbours (1, 2, 1).

Letters: B images, H W pixels, C colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.opencv import opencv


def halve_exactly(x_BHWC: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Halve in both directions, as integers, 16 × the mean of what falls together.

    Args:
        x_BHWC: uint8 (B, H, W, 3), contiguous.

    Returns:
        uint16 (3, B, ⌈H/2⌉, ⌈W/2⌉).
    """
    n, height, width, colours = x_BHWC.shape
    wide = np.multiply(x_BHWC, 16, dtype=np.uint16)
    if height % 2 or width % 2:
        for axis in (1, 2):
            wide = _along(wide, axis)
        return np.ascontiguousarray(np.moveaxis(wide, -1, 0))
    # One tall picture: no pair reaches from one image into the next. OpenCV rounds the mean of
    # four multiples of 16, which needs no rounding.
    cv2 = opencv()
    tall = wide.reshape(n * height, width, colours)
    small = cv2.resize(tall, (width // 2, n * height // 2), interpolation=cv2.INTER_AREA)
    planes = np.empty((colours, n, height // 2, width // 2), np.uint16)
    cv2.split(small, list(planes.reshape(colours, -1, width // 2)))
    return planes


def halve(x_BHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Halve in both directions, as float32 means: (B, ⌈H/2⌉, ⌈W/2⌉)."""
    half, quarter = np.float32(0.5), np.float32(0.25)
    for axis in (1, 2):
        x = np.moveaxis(x_BHW, axis, 0)
        if len(x) % 2 == 0:
            x = (x[0::2] + x[1::2]) * half
        elif len(x) > 1:
            padded = np.concatenate([x[:1], x, x[-1:]])
            x = (padded[0:-2:2] + padded[2::2]) * quarter + padded[1:-1:2] * half
        x_BHW = np.moveaxis(x, 0, axis)
    return np.ascontiguousarray(x_BHW)


def _along(wide: NDArray[np.uint16], axis: int) -> NDArray[np.uint16]:
    """Halve along one axis; the values are multiples of what the sum is divided by."""
    x = np.moveaxis(wide, axis, 0)
    if len(x) % 2 == 0:
        x = (x[0::2] + x[1::2]) // 2
    else:
        padded = np.concatenate([x[:1], x, x[-1:]])
        x = (padded[0:-2:2] + 2 * padded[1:-1:2] + padded[2::2]) // 4
    return np.moveaxis(x, 0, axis)
