"""Small dirt, drawn once: rods, specks, granules, crystals, and dust out of focus.

A bank is a tuple of small pictures, a function of the resolution alone. Values are optical
density relative to the item's own; they are negative where a bright rim surrounds what refracts.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np

from cytofm_cli.simulate.lattice import Plane

Bank = tuple[Plane, ...]

_FINE: Final = 4  # what is small is drawn this many times larger, then averaged
_HALO: Final = 0.12  # depth of the bright rim around what lies on the glass
_HALO_UM: Final = 0.9


@cache
def rods(mpp: float) -> Bank:
    """Return bacteria: rods of 1 to 7 µm by 0.6 µm, a little bent, some two in a row."""
    rng = np.random.default_rng(1)
    return tuple(_rod(rng, mpp) for _ in range(160))


def _rod(rng: np.random.Generator, mpp: float) -> Plane:
    length_um = float(np.clip(rng.lognormal(np.log(2.2), 0.4), 1.0, 7.0))
    bend, angle = rng.normal(0, 0.12), rng.uniform(0, np.pi)
    x, y = _grid(length_um / 2 + 2.0, mpp)
    along = x * np.cos(angle) + y * np.sin(angle)
    aside = y * np.cos(angle) - x * np.sin(angle)
    aside = aside - bend * (along**2 / length_um - length_um / 12)
    beyond = np.maximum(np.abs(along) - length_um / 2, 0)
    inside = _edge(np.hypot(aside, beyond), 0.27, 0.1)
    if rng.random() < 0.25:  # just divided
        inside = inside * (1 - _edge(np.abs(along), 0.15, 0.1))
    return _seen(inside, mpp, rng.uniform(0.18, 0.3))


@cache
def specks(mpp: float) -> Bank:
    """Return round dark specks of 0.3 to 2 µm, most of them small."""
    rng = np.random.default_rng(2)
    return tuple(_speck(rng, mpp) for _ in range(96))


def _speck(rng: np.random.Generator, mpp: float) -> Plane:
    radius = float(np.clip(rng.lognormal(np.log(0.4), 0.5), 0.25, 2.0))
    x, y = _grid(2 * radius + 3.0, mpp)
    inside = _edge(np.hypot(x, y * rng.uniform(1.0, 1.4)), radius, 0.1)
    return _seen(inside, mpp, rng.uniform(0.2, 0.8))


@cache
def granules(mpp: float) -> Bank:
    """Return heaps of grains and crumbs of cytoplasm, 1 to 8 µm."""
    rng = np.random.default_rng(3)
    return tuple(_granule(rng, mpp) for _ in range(128))


def _granule(rng: np.random.Generator, mpp: float) -> Plane:
    size = float(np.clip(rng.lognormal(np.log(0.75), 0.5), 0.35, 3.5))
    x, y = _grid(2.5 * size + 2.0, mpp)
    heap = np.zeros(np.broadcast_shapes(x.shape, y.shape))
    stretch = rng.uniform(0.3, 1.0)
    for _ in range(int(rng.integers(2, 10))):
        dx, dy = rng.normal(0, size * 0.7), rng.normal(0, size * 0.7 * stretch)
        radius = rng.uniform(0.2, 0.7) * size
        heap += rng.uniform(0.3, 1.0) * _edge(np.hypot(x - dx, y - dy), radius, 0.12)
    return _seen(np.minimum(heap, 1.5), mpp, rng.uniform(0.18, 0.45))


@cache
def crystals(mpp: float) -> Bank:
    """Return what refracts: bright inside with a dark outline, 1 to 6 µm."""
    rng = np.random.default_rng(4)
    return tuple(_crystal(rng, mpp) for _ in range(48))


def _crystal(rng: np.random.Generator, mpp: float) -> Plane:
    size = float(np.clip(rng.lognormal(np.log(1.3), 0.5), 0.7, 5.0))
    x, y = _grid(size * 1.6 + 2.0, mpp)
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), -np.inf)
    for turn in np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 7)))):
        side = x * np.cos(turn) + y * np.sin(turn) - size * rng.uniform(0.5, 1.0)
        distance = np.maximum(distance, side)
    distance = np.maximum(distance, np.hypot(x, y) - 1.3 * size)
    outline = np.exp(-((distance / 0.35) ** 2))
    return _seen(outline - 0.35 * _edge(distance, -0.5, 0.3), mpp, 0.3)


@cache
def dust(mpp: float) -> Bank:
    """Return dust far above the cells: faint discs of 4 to 14 µm with a ring around them."""
    rng = np.random.default_rng(5)
    return tuple(_dust(rng, mpp) for _ in range(32))


def _dust(rng: np.random.Generator, mpp: float) -> Plane:
    radius, soft = rng.uniform(3.0, 11.0), rng.uniform(0.6, 2.0)
    span = int(np.ceil((1.5 * radius + 3 * soft) / mpp))
    x = np.arange(-span, span + 1)[None] * mpp
    around = np.hypot(x, x.T * rng.uniform(1.0, 1.3))
    ring = np.exp(-(((around - radius) / soft) ** 2)) * rng.choice([-1.0, 1.0])
    return np.asarray(_edge(around, radius, soft) + 0.7 * ring, np.float32)


def _grid(reach_um: float, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Return µm from the middle, (1, n) and (n, 1), `_FINE` times finer than the pixels."""
    n = (2 * int(np.ceil(reach_um / mpp)) + 1) * _FINE
    at = (np.arange(n) - (n - 1) / 2) * mpp / _FINE
    return at[None], at[:, None]


def _edge(distance: np.ndarray, at: float, soft: float) -> np.ndarray:
    """Return 1 where the distance is below `at`, 0 above, over about twice `soft`."""
    edge: np.ndarray = 0.5 - 0.5 * np.tanh((distance - at) / soft)
    return edge


def _seen(fine: np.ndarray, mpp: float, blur_um: float) -> Plane:
    """Return pixels of a fine drawing: averaged, blurred, with the bright rim of refraction."""
    import cv2

    n = len(fine) // _FINE
    pixels = fine.reshape(n, _FINE, n, _FINE).mean(axis=(1, 3)).astype(np.float32)
    sharp = cv2.GaussianBlur(pixels, (0, 0), max(blur_um / mpp, 0.3))
    around = cv2.GaussianBlur(pixels, (0, 0), max(_HALO_UM / mpp, 0.3))
    return np.asarray(sharp * (1 + _HALO) - around * _HALO * 2, np.float32)
