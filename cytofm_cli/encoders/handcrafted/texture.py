"""Edges, spots and local patterns at several scales.

Neighbours are read off one flat array: of padded images, one after the other, the neighbour to
the right of every pixel is the array moved by one, the one below is moved by a row.

Letters: B images, H W pixels, N pixels of one image.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.handcrafted import counts
from cytofm_cli.encoders.handcrafted.counts import Features
from cytofm_cli.encoders.handcrafted.halve import halve
from cytofm_cli.work.opencv import opencv

Array = NDArray[np.float32]

_LBP_LEVELS: Final = 3
_LEVELS: Final = 5
_FINEST_PX: Final = 2**16  # at a time: a few planes of float32 in the second-level cache
_NOISE_OD: Final = 0.02  # smaller differences are sensor and JPEG noise, not texture
_SEARCHED_WHOLE: Final = 2048  # shorter rows are not worth a sample
_SAMPLE: Final = 1024
_MARGIN: Final = 0.03  # four standard errors of a share of 0.95 in the sample
_RING: Final = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # (y, x)


class Neighbours:
    """Images with their edge pixels repeated once around them, as one flat array.

    Args:
        x_BHW: float32 (B, H, W).
    """

    def __init__(self, x_BHW: Array) -> None:
        n, height, width = x_BHW.shape
        padded = np.empty((n, height + 2, width + 2), np.float32)
        padded[:, 1:-1, 1:-1] = x_BHW
        padded[:, 0, 1:-1], padded[:, -1, 1:-1] = x_BHW[:, 0], x_BHW[:, -1]
        padded[:, :, 0], padded[:, :, -1] = padded[:, :, 1], padded[:, :, -2]
        self._shape = padded.shape
        self._flat = padded.ravel()
        self._first = width + 3  # the first pixel that is not padding

    def at(self, dy: int, dx: int) -> Array:
        """Return the neighbours in one direction of all pixels, with some of the padding."""
        start = self._first + dy * self._shape[2] + dx
        return self._flat[start : start + len(self._flat) - 2 * self._first]

    def inside(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return what was computed of `at`, without the padding, (B, N)."""
        whole = np.empty(len(self._flat), values.dtype)
        whole[self._first : -self._first] = values
        kept = whole.reshape(self._shape)[:, 1:-1, 1:-1]
        return kept.reshape(self._shape[0], -1)


def finest(pixels_BHWC: NDArray[np.uint8]) -> Features:
    """Return edge statistics at full resolution, from the green channel (sharpest optics)."""
    n, height, width, colours = pixels_BHWC.shape
    green = opencv().extractChannel(pixels_BHWC.reshape(n * height, width, colours), 1)
    green_BHW = green.reshape(n, height, width)
    step = max(1, _FINEST_PX // (height * width))
    blocks = []
    for at in range(0, n, step):
        grey_BHW = green_BHW[at : at + step].astype(np.float32)
        grey_BHW /= np.float32(255)
        blocks.append(_edges("texture.green.0", Neighbours(grey_BHW)))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def measure(x_BHW: Array) -> Features:
    """Return edges and local patterns at ever coarser scales."""
    features: Features = {}
    for level in range(1, _LEVELS + 1):
        near = Neighbours(x_BHW)
        features |= _edges(f"texture.dark.{level}", near)
        if level <= _LBP_LEVELS:
            shares = local_binary_patterns(near)
            features |= {f"lbp.{level}.{i}": share for i, share in enumerate(shares.T)}
        x_BHW = halve(x_BHW)
    return features


def _edges(name: str, near: Neighbours) -> Features:
    """Return the strength of edges and spots, and how unevenly they are spread."""
    left, right, up, down = near.at(0, -1), near.at(0, 1), near.at(-1, 0), near.at(1, 0)
    energy = right - left
    energy *= energy
    steep = down - up
    steep *= steep
    energy += steep
    spots = right + left
    spots += down
    spots += up
    spots -= np.float32(4) * near.at(0, 0)
    energy_BN, spots_BN = near.inside(energy), near.inside(spots)
    power = energy_BN.mean(1, dtype=np.float64)
    slope_BN = np.sqrt(energy_BN)
    mean = slope_BN.mean(1, dtype=np.float64)
    steepest = at_rank(slope_BN, min(int(slope_BN.shape[1] * 0.95), slope_BN.shape[1] - 1))
    squares_BN = spots_BN * spots_BN
    square = squares_BN.mean(1, dtype=np.float64)
    squares_BN *= spots_BN
    cube = squares_BN.mean(1, dtype=np.float64)
    root = np.sqrt(power)
    return {
        f"{name}.edges": _log(root),
        f"{name}.uneven": np.divide(mean, root, out=np.ones_like(root), where=root > 0),
        f"{name}.p95": _log(steepest),
        f"{name}.spots": _log(np.sqrt(square)),
        f"{name}.lean": np.cbrt(cube),
    }


def at_rank(x_BN: Array, rank: int) -> NDArray[np.float64]:
    """Return the value of each row that `rank` others of it are below, (B,).

    Long rows are cut first, at a value that a sample says is a little below the wanted one.
    """
    n = x_BN.shape[1]
    if n < _SEARCHED_WHOLE:
        return np.partition(x_BN, rank, axis=1)[:, rank].astype(np.float64)
    sample_BN = np.ascontiguousarray(x_BN[:, :: n // _SAMPLE])
    lower = int(sample_BN.shape[1] * max(rank / n - _MARGIN, 0.0))
    guess_B = np.partition(sample_BN, lower, axis=1)[:, lower]
    values_B = np.empty(len(x_BN))
    for row, (x_N, guess) in enumerate(zip(x_BN, guess_B, strict=True)):
        top = x_N[x_N >= guess]
        place = rank - (n - len(top))
        if place < 0:  # the sample was not like the row
            top, place = x_N, rank
        values_B[row] = np.partition(top, place)[place]
    return values_B


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log10(x + 1e-4)


def _uniform_patterns() -> NDArray[np.int64]:
    """Return, for each set of brighter neighbours, their number, or 9 if they are scattered."""
    code = np.arange(256)
    bits = (code[:, None] >> np.arange(8)) & 1
    changes = (bits ^ np.roll(bits, -1, axis=1)).sum(1)
    return np.where(changes > 2, 9, bits.sum(1))


_PATTERN: Final = np.eye(10, dtype=np.int64)[_uniform_patterns()]  # (256, 10), one 1 a row


def local_binary_patterns(near: Neighbours) -> NDArray[np.float64]:
    """Return the shares of the ten rotation-invariant uniform patterns, (B, 10)."""
    floor = near.at(0, 0) + np.float32(_NOISE_OD)
    code = np.zeros(floor.shape, np.uint8)
    brighter = np.empty(floor.shape, bool)
    shifted = brighter.view(np.uint8)
    for bit, (dy, dx) in enumerate(_RING):
        np.greater(near.at(dy, dx), floor, out=brighter)
        np.left_shift(shifted, bit, out=shifted)
        code |= shifted
    code_BN = near.inside(code)
    shares: NDArray[np.float64] = counts.count(code_BN, 256) @ _PATTERN / code_BN.shape[1]
    return shares
