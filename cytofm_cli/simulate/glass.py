"""Dirt between the cells and the eye, as optical density over a slide.

Every item follows from the slide's seed and its place, and is drawn whole or as a function of
place: a box that is soiled alone equals the same box of the whole slide, byte for byte.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate.lattice import (
    Corners,
    Plane,
    box_of,
    cells_of,
    clouds,
    cut,
    overlap,
)
from cytofm_cli.simulate.litter import BLOCK_PX, REACH, Glass, Litter, glass, litter, stained
from cytofm_cli.simulate.marks import density, marks
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.simulate.strands import strand
from cytofm_cli.units import Box, Size

_FILM_SD: Final = 0.5  # of the log of the film's density, over slides
_FILM_UM: Final = (45.0, 160.0)  # its patches
_FILM_FROM: Final = 0.1  # clouds below this are clear glass
_HAZE: Final = 0.35  # share of the film without grain
_GRAIN_PX: Final = 1024  # the film's grain repeats
_BRIGHTEST: Final = -0.4  # however many crystals lie together, they gather no more light


def soil(
    preset: Preset, seed: int, size_px: tuple[int, int], corners: Corners, amount: float = 1.0
) -> Plane:
    """Return the optical density of all dirt and of uneven light in a box.

    Args:
        preset: rates and dyes.
        seed: of the slide.
        size_px: of the slide, (w, h).
        corners: the box, (x0, y0, x1, y1) in level-0 pixels.
        amount: factor of all rates and chances: 0 clean, 1 as in the preset.

    Returns:
        float32 (3, h, w), red, green, blue; where there is nothing at all, a read-only zero
        broadcast to that shape. Slightly negative where light is refracted into the picture. With
        dark-field illumination it is light emitted (0 to 1), without pen, bubbles, edge and
        gradient.
    """
    box, size = box_of(corners), Size(*size_px)
    nothing = np.broadcast_to(np.float32(0), (3, box.h, box.w))
    if amount <= 0:
        return nothing
    canvas = np.zeros((3, box.h, box.w), np.float32)
    slide = glass(preset, seed, amount)
    touched = _add_film(canvas, preset, seed, box, amount)
    touched |= _add_litter(canvas, slide, box)
    if preset.illumination == "bright-field":
        for mark in marks(preset.dirt, seed, size, preset.mpp, amount):
            od = density(mark, box, preset.mpp)
            if od is not None:
                canvas += od
                touched = True
        if preset.dirt.gradient:
            canvas += _shade(preset.dirt.gradient * amount, seed, size, box)
            touched = True
    return canvas if touched else nothing


def is_clean(
    preset: Preset, seed: int, size_px: tuple[int, int], corners: Corners, amount: float = 1.0
) -> bool:
    """Tell whether a box has no dirt; uneven light does not count. Arguments as of `soil`."""
    box = box_of(corners)
    if amount <= 0:
        return True
    if preset.dirt.film > 0 and _film(preset, seed, box).any():
        return False
    slide = glass(preset, seed, amount)
    if any(len(_touching(items, box)) for items in _near(slide, box)):
        return False
    return preset.illumination == "dark-field" or all(
        density(mark, box, preset.mpp) is None
        for mark in marks(preset.dirt, seed, Size(*size_px), preset.mpp, amount)
    )


def _near(slide: Glass, box: Box) -> list[Litter]:
    return [litter(slide, *square) for square in cells_of(box, BLOCK_PX, REACH)]


def _touching(items: Litter, box: Box) -> NDArray[np.intp]:
    x0, y0, x1, y1 = items.corners.T
    inside = (x0 < box.x + box.w) & (x1 > box.x) & (y0 < box.y + box.h) & (y1 > box.y)
    return np.flatnonzero(inside)


def _add_litter(canvas: Plane, slide: Glass, box: Box) -> bool:
    """Add all small dirt in an order that no box changes; tell whether any is there."""
    any_there = False
    for items in _near(slide, box):
        for i in _touching(items, box):
            x0, y0, x1, y1 = (int(value) for value in items.corners[i])
            whole = Box(x0, y0, x1 - x0, y1 - y0)
            part = overlap(whole, box)
            if part is None:
                continue
            picture = items.pictures[i]
            if isinstance(picture, tuple):
                drawn = strand(*picture, slide.angle, slide.mpp)[2]
                shown = drawn[cut(part, whole)] * np.float32(1 / 255)
            else:
                shown = picture[cut(part, whole)]
            canvas[(slice(None), *cut(part, box))] += items.densities[i][:, None, None] * shown
            any_there = True
    if any_there:
        np.maximum(canvas, np.float32(_BRIGHTEST), out=canvas)
    return any_there


def _add_film(canvas: Plane, preset: Preset, seed: int, box: Box, amount: float) -> bool:
    """Add the film in the dyes' colours; tell whether any is there."""
    if preset.dirt.film <= 0:
        return False
    film = _film(preset, seed, box)
    if not film.any():
        return False
    rng = np.random.default_rng([seed, 8])
    colour = stained(preset, rng) * preset.dirt.film * amount
    colour = colour * np.exp(rng.normal(0, _FILM_SD))
    rows = np.arange(box.y, box.y + box.h) % _GRAIN_PX
    columns = np.arange(box.x, box.x + box.w) % _GRAIN_PX
    film *= np.take(np.take(_grain(), rows, axis=0), columns, axis=1)
    for channel in range(3):
        canvas[channel] += film * np.float32(colour[channel])
    return True


def _film(preset: Preset, seed: int, box: Box) -> Plane:
    """Return how thick the film lies, float32 (h, w) from 0 to 1."""
    small, large = (
        clouds(seed * 64 + i, box, max(2, round(size_um / preset.mpp)))
        for i, size_um in enumerate(_FILM_UM)
    )
    thick: Plane = np.maximum(small * large - np.float32(_FILM_FROM), np.float32(0))
    return thick * np.float32(1 / (1 - _FILM_FROM))


@cache
def _grain() -> Plane:
    """Return the film's grain, mean 1, periodic: haze, and crumbs of 1 to 10 px with gaps."""
    import cv2

    rng = np.random.default_rng(6)
    total = np.zeros((_GRAIN_PX, _GRAIN_PX))
    for sigma, weight in ((1.0, 0.3), (2.0, 0.9), (6.0, 0.7), (20.0, 0.5)):
        noise = rng.standard_normal(total.shape).astype(np.float32)
        pad = int(4 * sigma) + 1
        blurred = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigma)
        inner = np.asarray(blurred)[pad:-pad, pad:-pad]
        total += weight * inner / inner.std()
    crumbs = np.maximum(total + 0.5, 0)
    return np.asarray(_HAZE + (1 - _HAZE) * crumbs / crumbs.mean(), np.float32)


def _shade(change: float, seed: int, size: Size, box: Box) -> Plane:
    """Return the optical density of uneven light, float32 (h, w): a tilt and darker corners."""
    angle = np.random.default_rng([seed, 9]).uniform(0, 2 * np.pi)
    x = (np.arange(box.x, box.x + box.w) + 0.5) / size.w * 2 - 1
    y = (np.arange(box.y, box.y + box.h) + 0.5) / size.h * 2 - 1
    across = change * (0.25 * np.cos(angle) * x + 0.25 * x * x)
    down = change * (0.25 * np.sin(angle) * y + 0.25 * y * y)
    return np.asarray(across.astype(np.float32) + down.astype(np.float32)[:, None])
