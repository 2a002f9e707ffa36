"""Turns, stain and colour jitter, blur, solarise: drawn on the host, applied to small views.

A chain of brightness, contrast, saturation, hue and grey is one affine map of RGB,
x' = A x + K m with m the view's mean colour (only contrast needs it), so it costs one matrix
product together with normalisation. Where torchvision clamps after each step
and turns hue in HSV, this clamps once at the end and rotates in YIQ.

Stain jitter scales and shifts in optical density, OD = -ln((x + 1) / 256) (Tellez et al., IEEE
TMI 2018): stains unmixed by the vectors of Ruifrok and Johnston (2001), which are those of
haematoxylin, eosin and DAB, or the channels of colour, which takes no stain for known.

Letters: G views, N = S · S pixels, C colours, S side of a view, K operations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.views import draws
from cytofm_cli.views.config import StainOf

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

_GREY: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma
_RGB_TO_YIQ: Final = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
# Haematoxylin, eosin and DAB, one a row, in optical density of R, G, B.
_HED: Final = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Strengths and probabilities for one kind of view; all zero is the identity.

    Attributes:
        flip: probabilities of a flip left-right and of one upside-down.
        transpose: probability of a transposition; with both flips at 0.5, all eight
            symmetries of the square are equally likely.
        jitter: strengths of brightness, contrast, saturation (factor 1 ± s) and of hue
            (share of a full turn).
        jitter_p: probability of the whole jitter.
        grey_p: probability of greyscale.
        blur_p: probability of a Gaussian blur.
        blur_sigma_px: range of its sigma, view pixels.
        solarise_p: probability of inverting what is brighter than a half.
        stain: strengths of the factor 1 ± s and of the shift ± s of each stain.
        stain_p: probability of stain jitter.
        stain_of: what is scaled and shifted; channels have a factor 1 ± s in common and one of
            1 ± s/2 each.
    """

    flip: tuple[float, float] = (0.0, 0.0)
    transpose: float = 0.0
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    solarise_p: float = 0.0
    stain: tuple[float, float] = (0.0, 0.0)
    stain_p: float = 0.0
    stain_of: StainOf = "stains"


IDENTITY: Final = Augment()


@dataclass(frozen=True)
class AugmentDraw:
    """What was drawn for G views; colours on the scale 0 … 255.

    Attributes:
        turn_G: symmetry of the square, see `pixels.turn`.
        colour_GCC: A of x' = A x + K m.
        contrast_GCC: K of the same.
        blur_sigma_G: sigma in view pixels, 0 for none.
        solarise_G: bool.
        stain_GCC: S of OD' = S OD + b; None if no view's stain changes.
        stain_shift_GC: b.
    """

    turn_G: NDArray[np.int64]
    colour_GCC: NDArray[np.float64]
    contrast_GCC: NDArray[np.float64]
    blur_sigma_G: NDArray[np.float64]
    solarise_G: NDArray[np.bool_]
    stain_GCC: NDArray[np.float64] | None
    stain_shift_GC: NDArray[np.float64]


def draw(key_G: draws.Keys, how: Augment) -> AugmentDraw:
    """Draw the augmentation of one view per key."""
    u = draws.uniform(key_G, 24)
    left, up = how.flip
    turn = (u[:, 0] < how.transpose) + 2 * (u[:, 1] < left) + 4 * (u[:, 2] < up)
    colour, contrast = _colour(u[:, 4:12], u[:, 3] < how.jitter_p, how.jitter)
    grey = (u[:, 12] < how.grey_p)[:, None, None]
    luma = np.broadcast_to(_GREY, (3, 3))
    low, high = how.blur_sigma_px
    sigma = np.where(u[:, 13] < how.blur_p, low + (high - low) * u[:, 14], 0.0)
    stain, shift = None, np.zeros((len(u), 3))
    if how.stain_p > 0 and max(how.stain) > 0:
        of, n_draws = _JITTER_OF[how.stain_of]
        stain, shift = of(u[:, 17 : 17 + n_draws], u[:, 16] < how.stain_p, how.stain)
    return AugmentDraw(
        turn.astype(np.int64),
        np.where(grey, luma @ colour, colour),
        np.where(grey, luma @ contrast, contrast),
        sigma,
        u[:, 15] < how.solarise_p,
        stain,
        shift,
    )


def _colour(
    u_G8: NDArray[np.float64],
    used_G: NDArray[np.bool_],
    strength: tuple[float, float, float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compose brightness, contrast, saturation and hue in random order: A and K, (G, 3, 3)."""
    n_views = len(u_G8)
    spread = np.where(used_G[:, None], 2 * u_G8[:, :4] - 1, 0.0) * strength
    factor = np.maximum(1 + spread[:, :3], 0)[..., None, None]
    eye, luma = np.eye(3), np.broadcast_to(_GREY, (3, 3))
    ops = np.empty((n_views, 4, 3, 3))
    ops[:, 0] = factor[:, 0] * eye
    ops[:, 1] = factor[:, 1] * eye
    ops[:, 2] = factor[:, 2] * eye + (1 - factor[:, 2]) * luma
    ops[:, 3] = _hue(spread[:, 3])
    to_mean = np.zeros_like(ops)
    to_mean[:, 1] = (1 - factor[:, 1]) * luma
    A, K = np.broadcast_to(eye, (n_views, 3, 3)), np.zeros((n_views, 3, 3))
    rows, order = np.arange(n_views), u_G8[:, 4:8].argsort(1)
    for position in range(4):
        op, extra = ops[rows, order[:, position]], to_mean[rows, order[:, position]]
        A, K = op @ A, op @ K + extra @ (A + K)
    return A, K


def _hue(turns_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrices that turn hue by a share of a full turn, in YIQ."""
    angle = 2 * math.pi * turns_G
    turn = np.zeros((len(angle), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = np.sin(angle), -np.sin(angle)
    matrix: NDArray[np.float64] = np.linalg.inv(_RGB_TO_YIQ) @ turn @ _RGB_TO_YIQ
    return matrix


def _stain(
    u_G6: NDArray[np.float64], used_G: NDArray[np.bool_], strength: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return S and b of OD' = S OD + b, each stain scaled by 1 ± s₀ and shifted by ± s₁."""
    spread = np.where(used_G[:, None], 2 * u_G6 - 1, 0.0)
    mixing = (_HED / np.linalg.norm(_HED, axis=1, keepdims=True)).T
    factor = 1 + strength[0] * spread[:, :3]
    scaled = (mixing * factor[:, None, :]) @ np.linalg.inv(mixing)
    return scaled, strength[1] * spread[:, 3:] @ mixing.T


def _channels(
    u_G7: NDArray[np.float64], used_G: NDArray[np.bool_], strength: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return S and b of OD' = S OD + b: a factor of all channels, one of each, and shifts."""
    spread = np.where(used_G[:, None], 2 * u_G7 - 1, 0.0)
    factor = (1 + strength[0] * spread[:, :1]) * (1 + strength[0] / 2 * spread[:, 1:4])
    return factor[:, :, None] * np.eye(3), strength[1] * spread[:, 4:]


_JITTER_OF: Final = {"stains": (_stain, 6), "channels": (_channels, 7)}
