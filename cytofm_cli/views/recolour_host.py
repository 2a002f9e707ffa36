"""Augment one view after the other on a CPU: what `recolour` does to many, several times as fast.

Views stay small enough for the cache, colours lie side by side, and OpenCV's separable filter and
affine maps of colours do the work in float32. A blur and a change of colours are both linear, so
the blur comes first, where it reads bytes.

Letters: G views, C colours, S side of a view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cytofm_cli.views import augment, blur, recolour

Picture = NDArray[np.integer[Any] | np.floating[Any]]  # whatever OpenCV says it returns

cv2.setNumThreads(1)  # a view is small, and whoever makes many has a thread or process for each

_LOG: Final = np.log(np.arange(1, 257)).astype(np.float32)  # of a byte, plus 1


@dataclass(frozen=True)
class Prepared:
    """The draws of G views with normalisation folded in.

    Attributes:
        turn_G: symmetries of the square, see `pixels.turn`.
        A_GCC: of y = A x + K m + zero, with x, m on 0 … 255 and y normalised.
        K_GCC: of the same.
        stain_GC4: weights on (ln(x + 1), 1), if stains change.
        kernel_G: the taps of each blur; None for no blur.
        solarised_G: bool.
        zero_C: the zero of these.
        limits: what black and white become, per colour.
    """

    turn_G: list[int]
    A_GCC: NDArray[np.float64]
    K_GCC: NDArray[np.float64]
    stain_GC4: NDArray[np.float64] | None
    kernel_G: list[NDArray[np.float64] | None]
    solarised_G: NDArray[np.bool_]
    zero_C: NDArray[np.float64]
    limits: list[tuple[float, float]]


def prepare(
    drawn: augment.AugmentDraw,
    mean: tuple[float, ...] = augment.IMAGENET_MEAN,
    std: tuple[float, ...] = augment.IMAGENET_STD,
) -> Prepared:
    """Fold normalisation into draws, once for a batch; the result is (x / 255 - mean) / std."""
    scale = 1 / (255 * np.array(std)[:, None])
    stain_GC4 = None
    if drawn.stain_GCC is not None:
        stain_GC4 = recolour.density_weights(drawn.stain_GCC, drawn.stain_shift_GC)
    kernels_G9 = blur.kernels(drawn.blur_sigma_G)
    return Prepared(
        drawn.turn_G.tolist(),
        drawn.colour_GCC * scale,
        drawn.contrast_GCC * scale,
        stain_GC4,
        [
            kernel_9[kernel_9 > 0] if sigma > 0 else None
            for kernel_9, sigma in zip(kernels_G9, drawn.blur_sigma_G, strict=True)
        ],
        drawn.solarise_G,
        -np.array(mean) / std,
        [(-m / s, (1 - m) / s) for m, s in zip(mean, std, strict=True)],
    )


def apply(
    views_GSS4: list[NDArray[np.uint8]],
    ready: Prepared,
    first: int,
    step: int,
    out_GCSS: NDArray[np.float32],
) -> None:
    """Augment and normalise some of the views into `out_GCSS`.

    Args:
        views_GSS4: red, green, blue and anything.
        ready: the draws of these views and of others.
        first: the row of the first view's draws in `ready`.
        step: from each view's row to the next one's.
        out_GCSS: contiguous in its last two axes.
    """
    for number, view_SS4 in enumerate(views_GSS4):
        row, out_CSS = first + number * step, out_GCSS[number]
        rgb_SS3 = _turn(cv2.cvtColor(view_SS4, cv2.COLOR_RGBA2RGB), ready.turn_G[row])
        cv2.split(_recolour(rgb_SS3, ready, row), list(out_CSS))
    for colour, (low, high) in enumerate(ready.limits):
        np.clip(out_GCSS[:, colour], low, high, out=out_GCSS[:, colour])
    for number in np.flatnonzero(ready.solarised_G[first::step][: len(views_GSS4)]).tolist():
        for plane_SS, (low, high) in zip(out_GCSS[number], ready.limits, strict=True):
            # What is brighter than a half is inverted, and becomes darker than it.
            np.minimum(plane_SS, (low + high) - plane_SS, out=plane_SS)


def _turn(rgb_SS3: Picture, code: int) -> Picture:
    """Apply one of the symmetries of the square, numbered as in `pixels.turn`."""
    turned_SS3 = cv2.transpose(rgb_SS3) if code & 1 else rgb_SS3
    if code & 6:
        turned_SS3 = cv2.flip(turned_SS3, {2: 1, 4: 0, 6: -1}[code & 6])
    return turned_SS3


def _recolour(rgb_SS3: Picture, ready: Prepared, row: int) -> Picture:
    """Return A x + K m + zero of the blurred view, after stain jitter if there is any: float32."""
    A_CC, K_CC, kernel_T = ready.A_GCC[row], ready.K_GCC[row], ready.kernel_G[row]
    bias_C = ready.zero_C
    x_SS3 = rgb_SS3
    if ready.stain_GC4 is not None:
        x_SS3 = cv2.exp(cv2.transform(cv2.LUT(rgb_SS3, _LOG), ready.stain_GC4[row]))
        bias_C = bias_C - (A_CC + K_CC).sum(1)  # these are x + 1
    if K_CC.any():
        bias_C = bias_C + K_CC @ cv2.mean(x_SS3)[:3]
    if kernel_T is not None:
        x_SS3 = cv2.sepFilter2D(
            x_SS3, cv2.CV_32F, kernel_T, kernel_T, borderType=cv2.BORDER_REFLECT_101
        )
    elif x_SS3.dtype != np.float32:
        x_SS3 = x_SS3.astype(np.float32)
    return cv2.transform(x_SS3, np.concatenate([A_CC, bias_C[:, None]], 1))
