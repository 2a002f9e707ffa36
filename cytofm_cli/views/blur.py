"""Gaussian blur as banded matrix products.

A block of 16 rows of the result is a banded 16 × 24 matrix times 24 rows of the input, and
overlapping blocks are a strided view: two batched matrix products, one launch for all views.

Letters: G views, C colours, H rows, W columns.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_RADIUS_PX: Final = 4  # nine taps, as in DINOv2


def blur_(x_GCHW: Tensor, bands_G: Tensor) -> Tensor:
    """Blur square views in place, mirrored at the edges, each with its own matrix of `bands`.

    Args:
        x_GCHW: contiguous.
        bands_G: from `bands`.
    """
    n_views, _, _, width = x_GCHW.shape
    size, window = bands_G.shape[2:]
    x = torch.nn.functional.pad(x_GCHW, (_RADIUS_PX,) * 4, mode="reflect")
    x = torch.matmul(bands_G.unsqueeze(1), x.unfold(2, window, size).mT)  # rows
    x = x.view(n_views, -1, width + 2 * _RADIUS_PX).unfold(2, window, size).transpose(1, 2)
    x = torch.matmul(x, bands_G.mT)  # columns: (G, blocks, C · H, block)
    x_GCHW.view(n_views, -1, width // size, size).copy_(x.transpose(1, 2))
    return x_GCHW


def kernels(sigma_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the nine taps (G, 9) of Gaussians, sum 1; sigma 0 gives the identity."""
    taps = np.arange(-_RADIUS_PX, _RADIUS_PX + 1)
    kernel = np.exp(-0.5 * (taps / np.maximum(sigma_G, 1e-3)[:, None]) ** 2)
    kernel[kernel < 1e-7] = 0  # denormal weights would cost ten times as much
    weight: NDArray[np.float64] = kernel / kernel.sum(1, keepdims=True)
    return weight


def bands(sigma_G: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the banded matrices (G, 1, block, block + 8) that apply Gaussians of nine taps.

    Args:
        sigma_G: in view pixels; 0 gives the identity.
        side: of the views, px; it is cut into equal blocks of about 16, or into one.
    """
    divisors = [size for size in range(8, 25) if side % size == 0]
    size = min(divisors, key=lambda size: abs(size - 16), default=side)
    kernel = kernels(sigma_G)
    # Rows one longer than the matrix's, read as if they were not: each is shifted by one more.
    n_views, columns = len(sigma_G), size + 2 * _RADIUS_PX
    shifted = np.zeros((n_views, size, columns + 1))
    shifted[..., : kernel.shape[1]] = kernel[:, None]
    return shifted.reshape(n_views, -1)[:, : size * columns].reshape(n_views, 1, size, columns)
