"""Paint nuclei: chromatin, membrane and nucleoli."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cytofm_cli.simulate import canvas, noise
from cytofm_cli.simulate.body import Ground
from cytofm_cli.simulate.canvas import Mask
from cytofm_cli.simulate.outlines import area
from cytofm_cli.simulate.preset import Nucleus
from cytofm_cli.simulate.shapes import box_of


def add_nucleus(
    rng: Generator,
    ground: Ground,
    outline: NDArray[np.float32],
    nucleus: Nucleus,
    dyes: tuple[float, ...],
    amounts: NDArray[np.float32],
) -> None:
    """Add a nucleus to a patch: on average over its area just the units of the dyes.

    Args:
        rng: the generator.
        ground: where.
        outline: of the nucleus.
        nucleus: how it looks.
        dyes: units of every dye.
        amounts: (K, h, w), changed.
    """
    x0, y0, x1, y1 = box_of([outline], 1)
    height, width = y1 - y0, x1 - x0
    mask = canvas.filled(outline, x0, y0, height, width)
    share = mask.astype(np.float32) * np.float32(1 / 255)
    density = _density(rng, ground, nucleus, canvas.depth(mask)) * share
    total = float(density.sum(dtype=np.float64))
    if total <= 0:
        return
    density *= np.float32(area(outline.astype(np.float64) - [x0, y0]) / total)
    tint = float(np.exp(nucleus.tint * rng.standard_normal()))
    top, left = y0 - ground.y0, x0 - ground.x0
    for dye, amount in enumerate(dyes):
        if amount:
            amounts[dye, top : top + height, left : left + width] += amount * tint * density


def _density(rng: Generator, ground: Ground, nucleus: Nucleus, depth: Mask) -> Mask:
    """Return the density of chromatin, in no unit."""
    height, width = depth.shape

    def window(name: str) -> Mask:
        return noise.window(rng, ground.fields[name], height, width)

    inwards = depth * np.float32(1 / max(float(depth.max()), 1.0))
    density = 0.8 + 0.35 * np.sqrt(inwards) + window("cloud") * np.float32(0.06)
    density += window("fine") * np.float32(0.35 * nucleus.granularity)
    density += window("grain") * np.float32(0.75 * nucleus.granularity)
    # Where the noise is high lies a clump; the rest is cleared.
    clump = window("clump") * np.float32(0.9) + window("grain") * np.float32(0.45)
    clumps = 1 / (1 + np.exp(np.float32(-2.5) * (clump - np.float32(0.4))))
    density += np.float32(1.5 * nucleus.clumps) * clumps
    density -= np.float32(0.7 * nucleus.clearing) * (1 - clumps)
    edge = np.float32(0.3 / ground.mpp)
    density += np.float32(nucleus.membrane) * np.exp(-np.square((depth - edge) / edge))
    if nucleus.nucleoli > 0:
        density += _nucleoli(rng, ground, nucleus, depth)
    clipped: Mask = np.maximum(density, np.float32(0.08))
    return clipped


def _nucleoli(rng: Generator, ground: Ground, nucleus: Nucleus, depth: Mask) -> Mask:
    number = int(rng.poisson(nucleus.nucleoli))
    height, width = depth.shape
    tries = rng.uniform(0, 1, (4 * number, 2)) * [width, height]
    x, y = tries.astype(int).T
    places = tries[depth[y, x] > 1.2 / ground.mpp][:number]
    radii = rng.uniform(0.45, 1.1, len(places)) / ground.mpp
    spots = canvas.discs(places, radii, height, width)
    return spots.astype(np.float32) * np.float32(nucleus.nucleolus / 255)
