"""Paint cytoplasm: thickness, border, folds, texture, vacuoles, clearing, and the mix of dyes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cytofm_cli.simulate import canvas, noise
from cytofm_cli.simulate.canvas import Bytes, Mask
from cytofm_cli.simulate.noise import Field
from cytofm_cli.simulate.preset import Cytoplasm
from cytofm_cli.simulate.shapes import Shape

_MOTTLED: Final = 0.7  # of the grain: how unevenly a single dye has taken


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """Where a cell is painted.

    Attributes:
        x0, y0: first pixel of the patch.
        height, width: size of the patch.
        mpp: µm/px.
        fields: noise.
    """

    x0: int
    y0: int
    height: int
    width: int
    mpp: float
    fields: dict[str, Field]

    def mask(self, outline: NDArray[np.float32]) -> Bytes:
        """Return what an outline covers of each pixel, 0 to 255."""
        return canvas.filled(outline, self.x0, self.y0, self.height, self.width)

    def window(self, rng: Generator, name: str) -> Field:
        """Return a window of noise of the patch's size; read only."""
        return noise.window(rng, self.fields[name], self.height, self.width)


def add_cytoplasm(
    rng: Generator,
    ground: Ground,
    shape: Shape,
    cytoplasm: Cytoplasm,
    dyes: tuple[tuple[float, ...], tuple[float, ...] | None, tuple[float, ...]],
    amounts: NDArray[np.float32],
) -> None:
    """Add the cytoplasm of a cell to a patch.

    Args:
        rng: the generator.
        ground: where.
        shape: the cell's outlines, with cytoplasm.
        cytoplasm: how it looks.
        dyes: units of every dye at the border, in the middle (None: the same) and of granules.
        amounts: (K, h, w), changed.
    """
    assert shape.cytoplasm is not None
    mask = ground.mask(shape.cytoplasm)
    depth = canvas.depth(mask)
    deepest = max(float(depth.max()), 1.0)
    thickness = _thickness(rng, ground, cytoplasm, mask, depth, deepest)
    thickness *= 1 + _texture(rng, ground, cytoplasm)
    if cytoplasm.shape == "polygonal" and cytoplasm.folds > 0:
        _fold(rng, ground, shape, cytoplasm, thickness)
    if cytoplasm.vacuoles > 0:
        _hollow(rng, ground, cytoplasm, depth, thickness)
    if shape.halo is not None:
        _clear(rng, ground, shape.halo, cytoplasm, depth, thickness)
    for nucleus in shape.nuclei:  # takes the place of cytoplasm; some lies above and below it
        thickness *= 1 - ground.mask(nucleus).astype(np.float32) * np.float32(0.35 / 255)
    np.maximum(thickness, 0, out=thickness)
    thickness *= mask.astype(np.float32) * np.float32(1 / 255)
    border, centre, granule = dyes
    tint = np.exp(cytoplasm.tint * rng.standard_normal((2, len(border)))).astype(np.float32)
    weight = None if centre is None else _centre(rng, ground, shape.cytoplasm, depth, deepest)
    for dye, amount in enumerate(border):
        outer = amount * tint[0, dye]
        inner = outer if centre is None else centre[dye] * tint[1, dye]
        if outer == inner == 0:
            continue
        taken = outer if weight is None else outer + (inner - outer) * weight
        amounts[dye] += taken * thickness * _mottled(rng, ground, cytoplasm)
    if cytoplasm.granules > 0:
        _granulate(rng, ground, cytoplasm, depth, granule, amounts)


def _thickness(
    rng: Generator, ground: Ground, cytoplasm: Cytoplasm, mask: Bytes, depth: Mask, deepest: float
) -> Mask:
    """Return thickness without texture; 1 on average within the mask, rim left out."""
    inwards = np.minimum(depth * np.float32(1 / deepest), 1)
    if cytoplasm.shape == "biconcave":
        pallor = np.float32(cytoplasm.dome * rng.uniform(0.5, 1.3))
        hollow = np.square(np.clip(1.6 * inwards - 0.6, 0, 1))
        sigma = max(0.12 * deepest, 0.5)
        thickness = 1 - pallor * canvas.blurred(hollow, sigma, math.ceil(3 * sigma))
    elif cytoplasm.dome > 0:
        ball = np.sqrt(inwards * (2 - inwards))
        thickness = (1 - cytoplasm.dome) + np.float32(cytoplasm.dome) * ball
    else:
        thickness = np.ones_like(depth)
    thickness = thickness * np.float32(1 / max(_mean(thickness, mask), 1e-3))
    if cytoplasm.rim > 0:
        width = np.float32((0.36 if cytoplasm.shape == "polygonal" else 0.9) / ground.mpp)
        edge = np.exp(-np.square((depth - np.float32(0.35) * width) / width))
        thickness += np.float32(cytoplasm.rim) * edge
    return thickness


def _mean(plane: Mask, mask: Bytes) -> float:
    total = float(mask.sum(dtype=np.int64))
    return float((plane * mask).sum(dtype=np.float64)) / total if total else 1.0


def _texture(rng: Generator, ground: Ground, cytoplasm: Cytoplasm) -> Mask:
    """Return relative changes of thickness: granular protein and uneven thickness."""
    grain = np.float32(cytoplasm.grain)
    fine = ground.window(rng, "fine")
    texture = fine * (0.6 * grain)
    texture += np.maximum(fine - np.float32(1.6), 0) * np.float32(rng.uniform(0.5, 5) * grain)
    # The ridges of the noise are a net, as protein that was precipitated by alcohol.
    texture += (np.float32(0.8) - np.abs(ground.window(rng, "clump"))) * (0.7 * grain)
    texture += ground.window(rng, "grain") * (0.5 * grain)
    texture += ground.window(rng, "cloud") * np.float32(rng.uniform(0.15, 0.65) * grain)
    return texture


def _mottled(rng: Generator, ground: Ground, cytoplasm: Cytoplasm) -> Mask | np.float32:
    """Return how evenly one dye has taken: each in spots of its own."""
    if cytoplasm.grain <= 0:
        return np.float32(1)
    spots = ground.window(rng, "clump") * np.float32(_MOTTLED * cytoplasm.grain)
    spots += ground.window(rng, "cloud") * np.float32(_MOTTLED * cytoplasm.grain)
    return np.asarray(np.maximum(spots + np.float32(1), np.float32(0)), np.float32)


def _fold(
    rng: Generator, ground: Ground, shape: Shape, cytoplasm: Cytoplasm, thickness: Mask
) -> None:
    """Add creases, and the flap that lies double."""
    if shape.flap is not None:
        flap = ground.mask(shape.flap).astype(np.float32) * np.float32(1 / 255)
        edge = canvas.blurred(flap, 0.5 / ground.mpp, math.ceil(1.5 / ground.mpp))
        thickness += 0.35 * flap + 0.35 * edge + np.float32(0.8) * edge * (1 - edge)
    number = int(rng.poisson(cytoplasm.folds))
    if number == 0 or shape.cytoplasm is None:
        return
    middle = (shape.cytoplasm - np.array([ground.x0, ground.y0], np.float32)).mean(axis=0)
    size = float(np.sqrt(ground.height * ground.width))
    lines = []
    for _ in range(number):
        # Like the wrinkles of a cloth that shrank: around the middle, or from the border inwards.
        turn = rng.uniform(0, 2 * np.pi)
        if rng.random() < 0.4:
            sweep, first = rng.uniform(0.5, 1.6), rng.uniform(0.1, 0.4)
            last = first
        else:
            sweep, first = rng.normal(0, 0.25), rng.uniform(0.05, 0.3)
            last = first + rng.uniform(0.1, 0.35)
        angles = turn + np.linspace(0, sweep, 12)
        wander = np.linspace(first, last, 12) * (1 + 0.06 * np.cumsum(rng.standard_normal(12)))
        unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        lines.append(middle + size * wander[:, None] * unit)
    creases = canvas.strokes(lines, ground.height, ground.width, max(1, round(0.5 / ground.mpp)))
    soft = canvas.blurred(creases, 0.9 / ground.mpp, math.ceil(2.7 / ground.mpp))
    near = canvas.blurred(creases, 0.25 / ground.mpp, math.ceil(0.75 / ground.mpp))
    thickness += np.float32(rng.uniform(0.3, 0.9)) * (near + np.float32(0.5) * soft)


def _hollow(
    rng: Generator, ground: Ground, cytoplasm: Cytoplasm, depth: Mask, thickness: Mask
) -> None:
    """Take vacuoles out; each has a denser border."""
    places = _places(rng, depth, int(rng.poisson(cytoplasm.vacuoles)), 1.0 / ground.mpp)
    if not len(places):
        return
    radii = rng.uniform(0.5, 1.0, len(places)) * np.exp(rng.normal(0.25, 0.45, len(places)))
    holes = canvas.discs(places, radii / ground.mpp, ground.height, ground.width)
    inside = holes.astype(np.float32) * np.float32(1 / 255)
    soft = canvas.blurred(inside, 0.35 / ground.mpp, math.ceil(1 / ground.mpp))
    thickness *= 1 - 0.75 * inside
    thickness += np.float32(1.6) * np.maximum(soft - inside, 0)


def _clear(
    rng: Generator,
    ground: Ground,
    halo: NDArray[np.float32],
    cytoplasm: Cytoplasm,
    depth: Mask,
    thickness: Mask,
) -> None:
    """Clear a koilocyte's middle; the cytoplasm around is pressed together, sharply bordered."""
    inside = ground.mask(halo)
    share = inside.astype(np.float32) * np.float32(1 / 255)
    share *= np.clip(depth * np.float32(ground.mpp / 1.2) - np.float32(0.6), 0, 1)
    outside = canvas.depth(255 - inside)
    width = np.float32(rng.uniform(1.5, 4.0) / ground.mpp)
    pressed = np.exp(-outside / width) * (1 - share)
    # Shreds of cytoplasm stay in the clearing, more towards its border.
    shreds = ground.window(rng, "clump") * np.float32(0.12) + np.float32(0.9)
    shreds -= np.float32(0.2) * np.exp(canvas.depth(inside) * np.float32(-ground.mpp / 1.5))
    thickness *= 1 - np.float32(cytoplasm.halo * rng.uniform(0.7, 1.1)) * share * shreds
    thickness += np.float32(cytoplasm.halo) * pressed


def _centre(
    rng: Generator, ground: Ground, outline: NDArray[np.float32], depth: Mask, deepest: float
) -> Mask:
    """Return how much of the middle's dyes there is, 0 to 1, with a cloudy transition.

    Half of it follows the border, half is an ellipse of the cell's proportions: the first alone
    makes stars of polygons.
    """
    local = outline - np.array([ground.x0, ground.y0], np.float32)
    middle = local.mean(axis=0)
    spread = local - middle
    a, d = np.square(spread).mean(axis=0)
    b = spread.prod(axis=1).mean()
    x = np.arange(ground.width, dtype=np.float32)[None] - middle[0]
    y = np.arange(ground.height, dtype=np.float32)[:, None] - middle[1]
    square = (d * x * x - 2 * b * x * y + a * y * y) / max(a * d - b * b, 1e-6)
    inwards = np.float32(0.5) * (1 - np.sqrt(np.float32(0.5) * square))
    inwards += depth * np.float32(0.5 / deepest)
    start, width = rng.uniform(-0.1, 0.7), rng.uniform(0.3, 0.8)
    weight = (inwards - np.float32(start)) * np.float32(1 / width)
    weight += ground.window(rng, "cloud") * np.float32(0.11)
    weight += ground.window(rng, "clump") * np.float32(0.05)
    np.clip(weight, 0, 1, out=weight)
    smooth: Mask = weight * weight * (3 - 2 * weight)
    return smooth


def _places(rng: Generator, depth: Mask, number: int, margin: float) -> NDArray[np.float64]:
    """Return up to `number` random places (n, 2) at least `margin` px within a mask."""
    height, width = depth.shape
    tries = rng.uniform(0, 1, (2 * number, 2)) * [width, height]
    x, y = tries.astype(int).T
    chosen: NDArray[np.float64] = tries[depth[y, x] > margin][:number]
    return chosen


def _granulate(
    rng: Generator,
    ground: Ground,
    cytoplasm: Cytoplasm,
    depth: Mask,
    granule: tuple[float, ...],
    amounts: NDArray[np.float32],
) -> None:
    """Add granules: spots of a dye; those of a cell are alike."""
    number = int(rng.poisson(cytoplasm.granules * rng.lognormal(-0.3, 0.8)))
    places = _places(rng, depth, number, 0.5 / ground.mpp)
    if not len(places):
        return
    radii = rng.uniform(0.16, 0.4, len(places)) / ground.mpp
    spots = canvas.discs(places, np.maximum(radii, 0.7), ground.height, ground.width)
    share = spots.astype(np.float32) * np.float32(rng.uniform(0.6, 1.2) / 255)
    for dye, amount in enumerate(granule):
        if amount:
            amounts[dye] += amount * share
