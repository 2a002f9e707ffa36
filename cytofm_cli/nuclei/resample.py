"""Resample images by area, so that a result does not depend on where a tile begins.

factor = working µm/px ÷ the image's µm/px; above 1 the image shrinks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.units import Size
from cytofm_cli.work.opencv import opencv


def resampled_size(size_px: Size, factor: float) -> Size:
    """Return the size of an image after `resample_area`, at least 1 × 1."""
    return Size(max(1, round(size_px.w / factor)), max(1, round(size_px.h / factor)))


def resample_area(image_HWC: NDArray[np.uint8], factor: float) -> NDArray[np.float32]:
    """Resample so that each output pixel is the mean over the area that it covers.

    Output pixel i covers input [i · factor, (i + 1) · factor), so coordinates scale by
    `factor` exactly and tiles whose corners are multiples of it agree to the last bit.
    Below 1 this repeats pixels (nearest), blended where an output pixel spans two.

    Args:
        image_HWC: uint8 (H, W, C).
        factor: input pixels to an output pixel, > 0.

    Returns:
        float32 (h, w, C) in 0..255, with (w, h) as in `resampled_size`.
    """
    height, width, channels = image_HWC.shape
    out = resampled_size(Size(width, height), factor)
    if factor == int(factor) and height % factor == 0 and width % factor == 0:
        cv2 = opencv()
        # A size of one pixel or one channel loses its axis in OpenCV.
        mean = cv2.resize(image_HWC.astype(np.float32), tuple(out), interpolation=cv2.INTER_AREA)
        exact: NDArray[np.float32] = mean.reshape(out.h, out.w, channels)
        return exact
    rows = _area_mean(image_HWC.astype(np.float64), factor, out.h)
    both = _area_mean(rows.transpose(1, 0, 2), factor, out.w)
    return both.transpose(1, 0, 2).astype(np.float32)


def _area_mean(values_NX: NDArray[np.float64], factor: float, count: int) -> NDArray[np.float64]:
    """Average along the first axis over `count` intervals of length `factor`."""
    length = len(values_NX)
    total = np.concatenate([np.zeros_like(values_NX[:1]), np.cumsum(values_NX, axis=0)])
    # Rounding the size may push the last interval past the end: it averages what is there.
    edges = np.minimum(np.arange(count + 1) * factor, length)
    below = np.minimum(edges.astype(np.int64), length - 1)
    part = (edges - below).reshape(-1, *[1] * (values_NX.ndim - 1))
    integral = total[below] + part * values_NX[below]
    span = np.maximum(np.diff(edges), 1e-9).reshape(-1, *[1] * (values_NX.ndim - 1))
    mean: NDArray[np.float64] = np.diff(integral, axis=0) / span
    return mean
