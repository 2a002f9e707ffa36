"""What a slide has few of, or none: air bubbles, pen strokes, the coverslip's edge.

Each is a function of place, evaluated where the box is; profiles are optical densities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate.lattice import Plane, clouds, points, spread
from cytofm_cli.simulate.preset import Dirt
from cytofm_cli.units import Box, Size

_INKS: Final = (  # optical density of permanent markers, red, green, blue
    (1.30, 0.75, 0.15),  # blue
    (1.20, 1.20, 1.15),  # black
    (1.25, 0.35, 0.85),  # green
    (0.12, 1.10, 0.95),  # red
)
_LATTICE_PX: Final = 32
_WOBBLE_PX: Final = 64


@dataclass(frozen=True)
class Bubble:
    """An air bubble: middle and radii in px, and the angle of its long axis."""

    x: float
    y: float
    radius: float
    ratio: float
    angle: float


@dataclass(frozen=True)
class Stroke:
    """A pen's stroke: nodes (x, y) of its path, width in px, ink and thickness of the ink."""

    path: tuple[tuple[float, float], ...]
    width: float
    ink: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Rim:
    """The coverslip's edge: glass is covered where cos·x + sin·y is above `at` (px)."""

    cos: float
    sin: float
    at: float
    seed: int


Mark = Bubble | Stroke | Rim


def marks(dirt: Dirt, seed: int, size: Size, mpp: float, amount: float) -> tuple[Mark, ...]:
    """Return the marks of a slide; `amount` multiplies their chances."""
    rng = np.random.default_rng([seed, 7])
    out: list[Mark] = []
    if rng.random() < dirt.coverslip * amount:
        out.append(_rim(rng, size))
    if rng.random() < dirt.bubbles * amount:
        out += _bubbles(rng, size, mpp)
    if rng.random() < dirt.pen * amount:
        ink = _INKS[int(rng.integers(len(_INKS)))]
        out += [_stroke(rng, size, mpp, ink) for _ in range(int(rng.integers(1, 4)))]
    return tuple(out)


def _bubbles(rng: np.random.Generator, size: Size, mpp: float) -> list[Bubble]:
    """Return one or a few bubbles that do not overlap: air flows together."""
    apart: list[Bubble] = []
    for _ in range(1 + int(rng.poisson(1.5))):
        new = _bubble(rng, size, mpp)
        if all(
            np.hypot(new.x - old.x, new.y - old.y)
            > new.radius * new.ratio + old.radius * old.ratio + 20 / mpp
            for old in apart
        ):
            apart.append(new)
    return apart


def _bubble(rng: np.random.Generator, size: Size, mpp: float) -> Bubble:
    radius = min(rng.lognormal(np.log(90), 0.7) / mpp, 0.3 * max(size))
    return Bubble(
        x=rng.uniform(0, size.w),
        y=rng.uniform(0, size.h),
        radius=radius,
        ratio=rng.uniform(1.0, 1.25),
        angle=rng.uniform(0, np.pi),
    )


def _stroke(
    rng: np.random.Generator, size: Size, mpp: float, ink: tuple[float, float, float]
) -> Stroke:
    length = rng.uniform(0.2, 0.8) * max(size)
    share = np.linspace(-0.5, 0.5, 17)
    angle, bend = rng.uniform(0, np.pi), rng.normal(0, 0.8)
    heading = angle + bend * share
    steps = np.column_stack([np.cos(heading), np.sin(heading)]) * length / 16
    path = np.cumsum(steps, axis=0)
    path = path - path.mean(axis=0) + rng.uniform(0, 1, 2) * (size.w, size.h)
    return Stroke(
        path=tuple((float(x), float(y)) for x, y in path),
        width=min(rng.uniform(400, 1200) / mpp, 0.25 * max(size)),
        ink=tuple(np.array(ink) * rng.uniform(0.5, 1.3)),
        seed=int(rng.integers(1 << 40)),
    )


def _rim(rng: np.random.Generator, size: Size) -> Rim:
    angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.04)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    ends = [cos * x + sin * y for x in (0, size.w) for y in (0, size.h)]
    at = min(ends) + rng.uniform(0.02, 0.15) * (max(ends) - min(ends))
    return Rim(cos, sin, at, int(rng.integers(1 << 40)))


def density(mark: Mark, box: Box, mpp: float) -> Plane | None:
    """Return the optical density of a mark in a box, float32 (3, h, w); None where it is not."""
    match mark:
        case Bubble():
            return _of_bubble(mark, box, mpp)
        case Stroke():
            return _of_stroke(mark, box, mpp)
        case Rim():
            return _of_rim(mark, box, mpp)


def _axes(box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x (1, w) and y (h, 1) of the middles of the pixels."""
    x = np.arange(box.w, dtype=np.float64) + (box.x + 0.5)
    y = np.arange(box.h, dtype=np.float64) + (box.y + 0.5)
    return x[None], y[:, None]


def _of_bubble(bubble: Bubble, box: Box, mpp: float) -> Plane | None:
    """Light is bent away at the border: a dark band with bright lines, clear and bright inside."""
    reach = bubble.radius * bubble.ratio + 20 / mpp
    gap_x = max(box.x - bubble.x, bubble.x - box.x - box.w, 0)
    gap_y = max(box.y - bubble.y, bubble.y - box.y - box.h, 0)
    if np.hypot(gap_x, gap_y) > reach:
        return None
    x, y = _axes(box)
    dx, dy = x - bubble.x, y - bubble.y
    cos, sin = np.cos(bubble.angle), np.sin(bubble.angle)
    across = np.hypot((dx * cos + dy * sin) / bubble.ratio, dy * cos - dx * sin)
    inward = (bubble.radius - across) * mpp  # µm inside the border
    band = min(0.12 * bubble.radius * mpp, 14.0)
    at = [-12, -3, -1.2, 0, 1.0, band, 1.5 * band, 2.0 * band, 3.5 * band, 6 * band]
    profile = [0, -0.05, -0.04, 1.6, 2.2, 1.3, 0.25, -0.05, 0.03, -0.02]
    od = _profile(inward, at, profile)
    return np.stack([od, od, od * np.float32(0.95)])


def _of_stroke(stroke: Stroke, box: Box, mpp: float) -> Plane | None:
    """Ink is translucent, streaked along the stroke, darker where it pooled at the edge."""
    rows, columns = points(box, _LATTICE_PX)
    y, x = (rows * float(_LATTICE_PX))[..., None], (columns * float(_LATTICE_PX))[..., None]
    path = np.array(stroke.path)
    start, step = path[:-1], np.diff(path, axis=0)
    along = ((x - start[:, 0]) * step[:, 0] + (y - start[:, 1]) * step[:, 1]) / (step**2).sum(1)
    along = np.clip(along, 0, 1)
    away = np.hypot(x - start[:, 0] - along * step[:, 0], y - start[:, 1] - along * step[:, 1])
    nearest = away.min(axis=-1)
    if nearest.min() > stroke.width / 2 + 80 / mpp:
        return None
    wobble = clouds(stroke.seed, box, _WOBBLE_PX) + clouds(stroke.seed + 1, box, 7)
    distance = spread(nearest.astype(np.float32), box, _LATTICE_PX) + wobble * np.float32(4 / mpp)
    inward = (np.float32(stroke.width / 2) - distance) * np.float32(mpp)  # µm
    grain = np.random.default_rng(stroke.seed).uniform(0.6, 1.0, 64)
    deep = np.linspace(25, stroke.width / 2 * mpp + 60, 64)
    od = _profile(inward, [-8, 8, 16, *deep], [0, 0.9, 1.15, *grain])
    od *= np.float32(0.8) + np.float32(0.4) * clouds(stroke.seed + 2, box, 256)
    return np.stack([od * np.float32(ink) for ink in stroke.ink])


def _of_rim(rim: Rim, box: Box, mpp: float) -> Plane | None:
    """A dark double line; mounting medium beside it in yellowish shade with lobes."""
    x, y = _axes(box)
    inward = (rim.cos * x + rim.sin * y - rim.at) * mpp
    if inward.min() > 60:
        return None
    lobes = clouds(rim.seed, box, max(2, round(60 / mpp)))
    line = _profile(inward, [-9, -4, -2.5, 0, 2.5, 4, 9], [0, 0.5, 1.6, 0.25, 1.3, -0.06, 0])
    beside = inward + lobes * np.float32(80)
    shade = _profile(beside, [-400, -30, 0, 25, 60], [0.14, 0.2, 0.26, 0.05, 0])
    shade *= np.float32(0.7) + np.float32(0.6) * clouds(rim.seed + 1, box, max(2, round(9 / mpp)))
    return np.stack([line + shade * np.float32(tone) for tone in (0.75, 0.9, 1.25)])


def _profile(at: NDArray[np.floating], places: list[float], values: list[float]) -> Plane:
    return np.asarray(np.interp(at, places, values), np.float32)
