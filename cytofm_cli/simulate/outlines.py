"""Closed outlines of cells and nuclei around (0, 0): float64 (n, 2), in units of the caller.

Every function draws from the generator it is given and from nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]

# How far from its middle an outline reaches, in radii of the disc of the same area.
FURTHEST: Final = {"polygonal": 2.2, "round": 1.7, "columnar": 2.2, "spindle": 4.5,
                   "biconcave": 1.5}  # fmt: skip


def area(points: Points) -> float:
    """Return the area within a closed outline (shoelace formula)."""
    x, y = points.T
    return float(abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2)


def centroid(points: Points) -> Points:
    """Return the centre of mass of what an outline encloses."""
    x, y = points.T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    # Sums, not products of BLAS, whose last bit depends on where in memory the points lie.
    sums = [((axis + np.roll(axis, -1)) * cross).sum() for axis in (x, y)]
    return np.array(sums) / (3 * float(cross.sum()))


def scaled(points: Points, to_area: float) -> Points:
    """Return an outline with its middle in (0, 0) and of a given area."""
    points = points - centroid(points)
    return points * math.sqrt(to_area / area(points))


def turned(points: Points, angle: float) -> Points:
    """Return points turned around (0, 0) by an angle in radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    x, y = points.T
    return np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1)


@cache
def _circle(n: int) -> Points:
    angles = 2 * np.pi * np.arange(n) / n
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def harmonics(rng: Generator, n: int, low: int, high: int, slope: float = 1.0) -> Points:
    """Return periodic noise (n,) of the harmonics low to high, amplitude 1/k^slope; sd about 1."""
    orders = np.arange(low, high + 1)
    amplitude = orders ** -float(slope)
    amplitude /= np.sqrt((amplitude**2).sum())
    spectrum = np.zeros(n // 2 + 1, complex)
    draws = rng.standard_normal((2, len(orders)))
    spectrum[low : high + 1] = amplitude * (draws[0] + 1j * draws[1]) * (n / 2)
    return np.fft.irfft(spectrum, n)


def ellipse(rng: Generator, eccentricity: float, roughness: float, n: int = 64) -> Points:
    """Return an ellipse, longer along x, whose radius varies by a share: lobes, dents, wrinkles."""
    ratio = (1 - min(eccentricity, 0.97) ** 2) ** 0.25
    radius = 1 + np.clip(roughness * harmonics(rng, n, 2, 9, 1.2), -0.35, 0.35)
    points: Points = _circle(n) * radius[:, None]
    points *= np.array([1 / ratio, ratio])
    return points


def polygon(rng: Generator, roughness: float, n: int = 144) -> Points:
    """Return a squame: a polygon of 5 to 8 blunt corners with an uneven border."""
    corners = int(rng.integers(5, 9))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.38, 0.38, corners)) / corners
    radii = 1 + np.clip(rng.normal(0, 0.16, corners), -0.35, 0.35)
    points = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points[:, 0] *= np.exp(abs(rng.normal(0, 0.26)))
    points = _smoothed(_along(points, n), int(n * rng.uniform(0.03, 0.12)))
    rough = 0.5 * harmonics(rng, n, 3, 9) + 0.5 * harmonics(rng, n, 10, n // 3, 0.6)
    return points * (1 + roughness * np.clip(rough, -2.5, 2.5))[:, None]


def column(rng: Generator, roughness: float, n: int = 80) -> Points:
    """Return a columnar cell along x: broad at its lumen (+x), narrowing to its base (-x)."""
    length = float(np.exp(rng.normal(0.65, 0.2)))
    base, bend = rng.uniform(0.5, 0.9), rng.normal(0, 0.06)
    corners = np.array([[-1, -base], [1, -1], [1, 1], [-1, base]], float)
    points = _smoothed(_along(corners * [length, 1.0], n), n // 9)
    points[:, 1] += bend * points[:, 0] ** 2
    return points * (1 + roughness * harmonics(rng, n, 3, 16))[:, None]


def spindle(rng: Generator, roughness: float, n: int = 112) -> Points:
    """Return a spindle or, with its belly at one end, a tadpole: a bent body with tails, along x.

    (0, 0) lies in the middle of the belly, where the nucleus is.
    """
    half = n // 2
    along = np.linspace(-1, 1, half)
    belly = rng.uniform(-0.6, 0.6)
    body = np.exp(-0.5 * ((along - belly) / rng.uniform(0.24, 0.42)) ** 2)
    tail = rng.uniform(0.04, 0.2) * np.sqrt(np.maximum(0, 1 - along**2))
    width = (body * np.sqrt(np.maximum(0, 1 - along**4)) + tail) / rng.uniform(2.6, 4.5)
    curve = rng.normal(0, 0.22) * along**2 + rng.normal(0, 0.12) * along**3
    bend = curve - np.interp(belly, along, curve)
    above = np.stack([along - belly, bend + width], axis=1)
    below = np.stack([along - belly, bend - width], axis=1)[::-1]
    points = np.concatenate([above, below])
    return points + roughness * 0.4 * harmonics(rng, n, 3, 24, 0.8)[:, None] * [0.0, 1.0]


def beads(rng: Generator, lobes: int, waist: float, sweep: float, n: int = 96) -> Points:
    """Return lobes in a bent row that hang together by bridges: the nucleus of a neutrophil.

    Args:
        rng: the generator.
        lobes: how many, at least 2.
        waist: width of the bridges, share of the lobes' width.
        sweep: angle of the arc on which they lie, radians, at most 5.
        n: number of points.
    """
    half = n // 2
    along = np.linspace(0, 1, half)
    size = np.interp(along * lobes, np.arange(lobes) + 0.5, rng.uniform(0.8, 1.15, lobes))
    wave = np.abs(np.sin(np.pi * lobes * along))
    ends = np.minimum(1, np.sqrt(np.maximum(0, np.minimum(along, 1 - along) * 2.6 * lobes)))
    width = size * np.where((along * lobes < 0.5) | (along * lobes > lobes - 0.5), ends,
                            waist + (1 - waist) * wave**0.7)  # fmt: skip
    width *= 0.95 * sweep / (2 * lobes)
    width = np.minimum(width, 0.86)  # of the arc's radius 1: the inner side must not cross itself
    angles = sweep * (along - 0.5)
    radius = 1 + 0.14 * harmonics(rng, 2 * half, 1, 3)[:half]
    outer, inner = radius + width, radius - width
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([unit * outer[:, None], (unit * inner[:, None])[::-1]])


def clover(rng: Generator, lobes: int, n: int = 80) -> Points:
    """Return lobes that lie in a heap: discs around the middle, seen as one."""
    turns = 2 * np.pi * (np.arange(lobes) + rng.uniform(-0.25, 0.25, lobes)) / lobes
    away, radius = rng.uniform(0.75, 1.15, lobes), rng.uniform(0.62, 0.95, lobes)
    angles = 2 * np.pi * np.arange(n) / n
    off = angles[:, None] - turns[None]
    across = radius**2 - (away * np.sin(off)) ** 2
    ahead = np.cos(off) * away + np.sqrt(np.maximum(across, 0))
    reach = np.where((across > 0) & (ahead > 0), ahead, 0.35).max(axis=1)
    wrapped = np.concatenate([reach[-1:], reach, reach[:1]])
    smooth: Points = np.convolve(wrapped, [0.2, 0.6, 0.2], "valid")
    return _circle(n) * smooth[:, None]


def kidney(rng: Generator, roughness: float, n: int = 80) -> Points:
    """Return a bean: an oval with a dent, shallow to deep, in one of its long sides."""
    angles = 2 * np.pi * np.arange(n) / n
    off = np.angle(np.exp(1j * (angles - np.pi / 2)))
    dent = rng.uniform(0.15, 0.6) * np.exp(-0.5 * (off / rng.uniform(0.35, 0.6)) ** 2)
    dented: Points = 1 - dent
    return ellipse(rng, rng.uniform(0.4, 0.75), roughness, n) * dented[:, None]


def around(outline: Points, inner: Sequence[Points], margin: float) -> Points:
    """Return an outline moved outwards where something within would reach beyond it.

    The outline must be star-shaped around (0, 0); in each direction it comes to lie at least
    `margin` beyond the farthest point of `inner`.
    """
    angles = np.arctan2(outline[:, 1], outline[:, 0])
    radii = np.hypot(*outline.T)
    points = np.concatenate([_along(item, 2 * len(item)) for item in inner])
    reach = np.hypot(*points.T) + margin
    turns = np.arctan2(points[:, 1], points[:, 0])
    away = np.abs(np.angle(np.exp(1j * (angles[:, None] - turns[None]))))
    # A point pushes what lies in its direction, and with a round shoulder what lies beside it.
    shoulder = np.minimum(2.5 * margin / np.maximum(reach, 1e-9), 0.6) + np.pi / len(outline)
    pushed = np.where(away < 2 * shoulder, reach * np.cos(np.minimum(away, 1.2)), 0.0).max(axis=1)
    scale: Points = np.maximum(radii, pushed) / np.maximum(radii, 1e-9)
    return outline * scale[:, None]


def folded(points: Points, height: float, bend: float) -> tuple[Points, Points | None]:
    """Fold over what lies beyond a bent line that crosses the x axis upright.

    Args:
        points: the outline.
        height: where the line crosses the x axis.
        bend: how far it bends: it is x = height + bend * y².

    Returns:
        The outline that is left, with as many points, and the flap that lies on it now (None:
        nothing lies beyond the line).
    """
    beyond = np.maximum(points[:, 0] - height - bend * points[:, 1] ** 2, 0.0)
    if not (beyond > 0).any() or not (beyond == 0).any():
        return points, None
    start = int(np.argmin(beyond > 0))  # begin outside, so that a run does not wrap
    over = np.roll(beyond, -start)
    flap = np.roll(points, -start, axis=0)[over > 0]
    flap[:, 0] -= 2 * over[over > 0]
    left = points.copy()
    left[:, 0] -= beyond
    return left, flap if len(flap) > 2 else None


def _along(points: Points, n: int) -> Points:
    """Return n points at even distances along a closed outline."""
    closed = np.concatenate([points, points[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    at = ends[-1] * np.arange(n) / n
    return np.stack([np.interp(at, ends, closed[:, 0]), np.interp(at, ends, closed[:, 1])], axis=1)


def _smoothed(points: Points, width: int) -> Points:
    """Return an outline whose corners are blunt: its points averaged over a Hanning window."""
    kernel = np.hanning(max(3, width) + 2)[1:-1]
    size = len(kernel)
    kernel /= kernel.sum()
    wrapped = np.concatenate([points[-size:], points, points[:size]])
    smooth = [np.convolve(wrapped[:, axis], kernel, mode="same") for axis in (0, 1)]
    return np.stack(smooth, axis=1)[size:-size]
