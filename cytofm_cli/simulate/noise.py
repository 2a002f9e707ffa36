"""Textures: periodic fields of Gaussian noise of some scales; each cell takes windows of them."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Field = NDArray[np.float32]

SIDE: Final = 512
# Grain of protein and chromatin, and the clouds of uneven staining: typical distance between
# neighbouring maxima, µm.
SCALES_UM: Final = {"fine": 0.55, "grain": 1.0, "clump": 2.0, "cloud": 9.0}


@cache
def fields(mpp: float) -> dict[str, Field]:
    """Return the noise fields for a resolution: (SIDE, SIDE), mean 0, sd 1, periodic.

    Made once a process from a seed of their own: cells differ by which window they take.
    """
    rng = np.random.default_rng(20_240_601)
    return {name: _band(rng, max(2.0, scale / mpp)) for name, scale in SCALES_UM.items()}


def _band(rng: Generator, period_px: float) -> Field:
    """Return noise whose power lies around one period: an octave wide, more below than above."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    octaves = np.log2(np.maximum(frequency, 1e-9) * period_px)
    power = np.exp(-0.5 * (octaves / 0.6) ** 2)
    power[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) * power, s=(SIDE, SIDE))
    unit: Field = (field / field.std()).astype(np.float32)
    return unit


def window(rng: Generator, field: Field, height: int, width: int) -> Field:
    """Return a random window of a field, turned by a multiple of 90° or mirrored; read only."""
    y, x, turn = (int(number) for number in rng.integers(0, (SIDE, SIDE, 8)))
    if turn >= 4:
        field = field.T
    if turn & 1:
        field = field[::-1]
    if turn & 2:
        field = field[:, ::-1]
    if height <= SIDE and width <= SIDE:
        y, x = y % (SIDE - height + 1), x % (SIDE - width + 1)
        return field[y : y + height, x : x + width]
    rows, columns = (y + np.arange(height)) % SIDE, (x + np.arange(width)) % SIDE
    wrapped: Field = field[np.ix_(rows, columns)]
    return wrapped
