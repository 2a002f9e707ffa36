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
from cytofm_cli.work.opencv import opencv

Picture = NDArray[np.integer[Any] | np.floating[Any]]  # whatever OpenCV says it returns

opencv()  # on one thread: a view is small, and whoever makes many has a thread for each

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
        black_C11: the same, float32.
        white_C11: what white becomes.
    """

    turn_G: list[int]
    map_GC4: NDArray[np.float64]
    K_GCC: NDArray[np.float64]
    has_mean_G: list[bool]
    stain_GC4: NDArray[np.float64] | None
    kernel_G: list[NDArray[np.float64] | None]
    solarised_G: NDArray[np.bool_]
    black_C11: NDArray[np.float32]
    white_C11: NDArray[np.float32]


def prepare(
    drawn: augment.AugmentDraw,
    mean: tuple[float, ...] = augment.IMAGENET_MEAN,
    std: tuple[float, ...] = augment.IMAGENET_STD,
) -> Prepared:
    """Fold normalisation into draws, once for a batch; the result is (x / 255 - mean) / std."""
    black_C, white_C = -np.array(mean) / std, (1 - np.array(mean)) / std
    scale = 1 / (255 * np.array(std)[:, None])
    stain_GC4 = None
    if drawn.stain_GCC is not None:
        stain_GC4 = recolour.density_weights(drawn.stain_GCC, drawn.stain_shift_GC)
    zero_GC1 = np.tile(black_C[:, None], (len(drawn.turn_G), 1, 1))
    map_GC4 = np.concatenate([drawn.colour_GCC * scale, zero_GC1], 2)
    kernels_G9 = blur.kernels(drawn.blur_sigma_G)
    return Prepared(
        drawn.turn_G.tolist(),
        map_GC4,
        drawn.contrast_GCC * scale,
        [bool(row.any()) for row in drawn.contrast_GCC],
        stain_GC4,
        [
            kernel_9[kernel_9 > 0] if sigma > 0 else None
            for kernel_9, sigma in zip(kernels_G9, drawn.blur_sigma_G, strict=True)
        ],
        drawn.solarise_G,
        black_C.astype(np.float32)[:, None, None],
        white_C.astype(np.float32)[:, None, None],
    )


def apply(
    views_GSS3: list[NDArray[np.uint8]],
    ready: Prepared,
    first: int,
    step: int,
    out_GCSS: NDArray[np.float32],
) -> None:
    """Augment and normalise some of the views into `out_GCSS`.

    Args:
        views_GSS3: uint8 RGB.
        ready: the draws of these views and of others.
        first: the row of the first view's draws in `ready`.
        step: from each view's row to the next one's.
        out_GCSS: contiguous in its last two axes.
    """
    for number, view_SS3 in enumerate(views_GSS3):
        row, out_CSS = first + number * step, out_GCSS[number]
        rgb_SS3 = _turn(view_SS3, ready.turn_G[row])
        cv2.split(_recolour(rgb_SS3, ready, row), list(out_CSS))
        np.clip(out_CSS, ready.black_C11, ready.white_C11, out=out_CSS)
        if ready.solarised_G[row]:
            # What is brighter than a half is inverted, and becomes darker than it.
            inverted_CSS = (ready.black_C11 + ready.white_C11) - out_CSS
            np.minimum(out_CSS, inverted_CSS, out=out_CSS)


def _turn(rgb_SS3: Picture, code: int) -> Picture:
    """Apply one of the symmetries of the square, numbered as in `pixels.turn`."""
    turned_SS3 = cv2.transpose(rgb_SS3) if code & 1 else rgb_SS3
    if code & 6:
        turned_SS3 = cv2.flip(turned_SS3, {2: 1, 4: 0, 6: -1}[code & 6])
    return turned_SS3


def _recolour(rgb_SS3: Picture, ready: Prepared, row: int) -> Picture:
    """Return A x + K m + zero of the blurred view, after stain jitter if there is any: float32."""
    map_C4, kernel_T = ready.map_GC4[row].copy(), ready.kernel_G[row]
    x_SS3 = rgb_SS3
    if ready.stain_GC4 is not None:
        x_SS3 = cv2.exp(cv2.transform(cv2.LUT(rgb_SS3, _LOG), ready.stain_GC4[row]))
        map_C4[:, 3] -= (map_C4[:, :3] + ready.K_GCC[row]).sum(1)  # these are x + 1
    if ready.has_mean_G[row]:
        map_C4[:, 3] += ready.K_GCC[row] @ cv2.mean(x_SS3)[:3]
    if kernel_T is not None:
        x_SS3 = cv2.sepFilter2D(
            x_SS3, cv2.CV_32F, kernel_T, kernel_T, borderType=cv2.BORDER_REFLECT_101
        )
    elif x_SS3.dtype != np.float32:
        x_SS3 = x_SS3.astype(np.float32)
    return cv2.transform(x_SS3, map_C4)
