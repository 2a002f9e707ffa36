"""Augment many views at once, on any device: turn, recolour, blur, solarise and normalise.

`recolour_host` does the same to one view after the other on a CPU, and agrees but for rounding.

Letters: G views, N = S · S pixels, C colours, S side of a view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.views import augment, blur, pixels


@dataclass(frozen=True)
class Prepared:
    """The draws as tensors on the device, with normalisation folded in.

    Attributes:
        turn_G: as drawn.
        A_GCC: of y = A x + K m + zero, with x, m on 0 … 255 and y normalised.
        K_GCC: of the same.
        zero_C1: what black becomes.
        stain_GC4: weights on (ln(x + 1), 1), if stains change.
        bands_G: banded matrices of the blur; see `blur.bands`.
        blurred_G: bool.
        solarised_G: bool.
        limits: what black and white become, per colour.
    """

    turn_G: list[int]
    A_GCC: Tensor
    K_GCC: Tensor
    zero_C1: Tensor
    stain_GC4: Tensor | None
    bands_G: Tensor
    blurred_G: NDArray[np.bool_]
    solarised_G: NDArray[np.bool_]
    limits: list[tuple[float, float]]


def prepare(
    drawn: augment.AugmentDraw,
    side: int,
    device: torch.device,
    mean: tuple[float, ...] = augment.IMAGENET_MEAN,
    std: tuple[float, ...] = augment.IMAGENET_STD,
) -> Prepared:
    """Turn draws into tensors, once for a whole batch.

    Args:
        drawn: one draw per view.
        side: of the views, px.
        device: where the views are.
        mean: per colour, of values in 0 … 1; the result is (x / 255 - mean) / std.
        std: likewise.
    """
    zero, scale = -np.array(mean) / std, 1 / (255 * np.array(std)[:, None])
    stain_GC4 = None
    if drawn.stain_GCC is not None:
        stain_GC4 = _floats(density_weights(drawn.stain_GCC, drawn.stain_shift_GC), device)
    return Prepared(
        drawn.turn_G.tolist(),
        _floats(drawn.colour_GCC * scale, device),
        _floats(drawn.contrast_GCC * scale, device),
        _floats(zero[:, None], device),
        stain_GC4,
        _floats(blur.bands(drawn.blur_sigma_G, side), device),
        drawn.blur_sigma_G > 0,
        drawn.solarise_G,
        [(-m / s, (1 - m) / s) for m, s in zip(mean, std, strict=True)],
    )


def apply(word_GSS: Tensor, ready: Prepared, rows: slice, out_GCSS: Tensor) -> Tensor:
    """Augment and normalise some of the views into `out_GCSS`.

    Args:
        word_GSS: int32 words; turned in place.
        ready: the draws of these views and perhaps of others.
        rows: which of them are these.
        out_GCSS: float32, any strides.
    """
    pixels.turn(word_GSS, ready.turn_G[rows])
    x_G4SS = pixels.planes(word_GSS)
    stain_GC4 = None if ready.stain_GC4 is None else ready.stain_GC4[rows]
    y_GCSS = _recolour(x_G4SS, ready.A_GCC[rows], ready.K_GCC[rows], ready.zero_C1, stain_GC4)
    blurred, bands_G = np.flatnonzero(ready.blurred_G[rows]), ready.bands_G[rows]
    if len(blurred):
        index = torch.from_numpy(blurred).to(y_GCSS.device)
        y_GCSS[index] = blur.blur_(y_GCSS[index], bands_G[index])
    for colour, (low, high) in enumerate(ready.limits):
        # The result moves to where it belongs in the same pass that clamps it.
        torch.clamp(y_GCSS[:, colour], low, high, out=out_GCSS[:, colour])
        for row in np.flatnonzero(ready.solarised_G[rows]):
            plane = out_GCSS[int(row), colour]
            plane.copy_(torch.where(plane >= (low + high) / 2, low + high - plane, plane))
    return out_GCSS


def _recolour(
    x_G4SS: Tensor, A_GCC: Tensor, K_GCC: Tensor, zero_C1: Tensor, stain_GC4: Tensor | None
) -> Tensor:
    """Return A x + K m + zero as planes (G, 3, S, S), after stain jitter if there is any."""
    n_views, _, side, _ = x_G4SS.shape
    x_G4N = x_G4SS.view(n_views, 4, -1)
    if stain_GC4 is not None:
        x_G4N[:, :3].add_(1).log_()
        x_G4N[:, :3] = torch.bmm(stain_GC4, x_G4N).exp_().sub_(1)
    # The fourth plane is 1: the bias rides along as its weight.
    bias_GC1 = torch.baddbmm(zero_C1, K_GCC, x_G4N[:, :3].mean(2, keepdim=True))
    return torch.bmm(torch.cat([A_GCC, bias_GC1], 2), x_G4N).view(n_views, 3, side, side)


def density_weights(
    stain_GCC: NDArray[np.float64], shift_GC: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Write OD' = S OD + b as ln(x' + 1) = W · (ln(x + 1), 1)."""
    full = math.log(256)
    bias = full - stain_GCC.sum(2) * full - shift_GC
    return np.concatenate([stain_GCC, bias[..., None]], 2)


def _floats(x: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device)
