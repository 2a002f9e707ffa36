"""Dirt that is long: strands of mucus, traces of smearing, hairs and lint.

Each is drawn whole in a small picture of its own, so that what a box shows of it does not depend
on the box.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate.lattice import Plane

Strand = Literal["mucus", "streak", "fibre"]
REACH_PX: Final = 640  # no strand goes further from its middle
_MARGIN_PX: Final = 48
_SHIFT: Final = 4  # OpenCV's fixed-point coordinates: sixteenths of a pixel


@lru_cache(maxsize=64)
def strand(kind: Strand, seed: int, angle: float, mpp: float) -> tuple[int, int, NDArray[np.uint8]]:
    """Return a strand's picture.

    Args:
        kind: of what.
        seed: of its shape.
        angle: main direction of the slide's smear, radians.
        mpp: µm/px.

    Returns:
        x and y of its corner from its middle, px, and uint8 (h, w), 255 where it is densest.
    """
    rng = np.random.default_rng(seed)
    lines = {"mucus": _mucus, "streak": _streak, "fibre": _fibre}[kind](rng, angle, mpp)
    reach = REACH_PX - _MARGIN_PX
    paths = [np.clip(path, -reach, reach) for path, *_ in lines]
    low = np.floor(np.min([path.min(axis=0) for path in paths], axis=0)).astype(int) - _MARGIN_PX
    high = np.ceil(np.max([path.max(axis=0) for path in paths], axis=0)).astype(int) + _MARGIN_PX
    w, h = high - low + 1
    drawn = np.zeros((h, w), np.float32)
    for path, (_, width_px, value, blur_px) in zip(paths, lines, strict=True):
        drawn += _line(path - low, width_px, value, blur_px, (h, w))
    return int(low[0]), int(low[1]), np.clip(drawn, 0, 255).astype(np.uint8)


Line = tuple[NDArray[np.float64], float, float, float]  # path px, width px, value, blur px


def _line(
    path: NDArray[np.float64], width_px: float, value: float, blur_px: float, shape: tuple[int, int]
) -> Plane:
    import cv2

    canvas = np.zeros(shape, np.uint8)
    fixed = np.rint(path * (1 << _SHIFT)).astype(np.int32)[:, None]
    thick = max(1, round(width_px))
    cv2.polylines(canvas, [fixed], False, 255, thick, cv2.LINE_AA, _SHIFT)
    blurred = cv2.GaussianBlur(canvas.astype(np.float32), (0, 0), blur_px)
    return np.asarray(blurred * np.float32(value / 255 * min(1.0, width_px)), np.float32)


def _walk(
    rng: np.random.Generator, length_px: float, angle: float, bend: float
) -> NDArray[np.float64]:
    """Return points (n, 2) of a path around 0 whose heading changes slowly."""
    n = max(8, int(length_px / 6))
    turn = np.cumsum(rng.normal(0, bend / np.sqrt(n), n))
    turn = np.convolve(np.pad(turn, 4, mode="edge"), np.full(9, 1 / 9), mode="valid")
    heading = angle + turn - turn.mean()
    steps = np.column_stack([np.cos(heading), np.sin(heading)]) * (length_px / n)
    path = np.cumsum(steps, axis=0)
    return np.asarray(path - path.mean(axis=0))


def _mucus(rng: np.random.Generator, angle: float, mpp: float) -> list[Line]:
    """A bundle of fine threads in the direction of the smear, in a paler band."""
    length = min(rng.lognormal(np.log(60), 0.6), 250.0) / mpp
    main = _walk(rng, length, angle + rng.normal(0, 0.35), 1.2)
    lines: list[Line] = []
    if rng.random() < 0.4:
        band = rng.uniform(2.0, 8.0) / mpp
        lines.append((main, band, rng.uniform(10, 35), max(0.3 * band, 1.0)))
    for _ in range(int(rng.integers(1, 7))):
        start, stop = np.sort(rng.integers(0, len(main) + 1, 2))
        if stop - start < 6:
            continue
        thread = main[start:stop] + rng.normal(0, 2.0 / mpp, 2)
        spread = _walk(rng, 0.2 * len(thread) * 6, rng.uniform(0, np.pi), 2.0)
        thread = thread + spread[np.linspace(0, len(spread) - 1, len(thread)).astype(int)]
        width = rng.uniform(0.3, 0.9) / mpp
        lines.append((thread, width, rng.uniform(40, 190), rng.uniform(0.2, 0.5) / mpp))
    return lines or [(main, 0.4 / mpp, 120.0, 0.3 / mpp)]


def _streak(rng: np.random.Generator, angle: float, mpp: float) -> list[Line]:
    """A faint straight trace, a few of them side by side."""
    length = rng.uniform(40, 280) / mpp
    lines: list[Line] = []
    for _ in range(int(rng.integers(1, 4))):
        path = _walk(rng, length * rng.uniform(0.3, 1.0), angle + rng.normal(0, 0.04), 0.08)
        width = rng.lognormal(np.log(1.0), 0.6) / mpp
        path = path + rng.normal(0, 6.0 / mpp, 2)
        lines.append((path, width, rng.uniform(30, 150), rng.uniform(0.4, 1.2) / mpp))
    return lines


def _fibre(rng: np.random.Generator, angle: float, mpp: float) -> list[Line]:
    """Lint or a hair: dark edges, paler inside, out of focus; it lies anyhow."""
    del angle
    width = rng.choice([rng.uniform(1.5, 4.0), rng.uniform(6.0, 14.0)]) / mpp
    path = _walk(rng, rng.uniform(60, 260) / mpp, rng.uniform(0, np.pi), rng.uniform(0.4, 2.5))
    blur = rng.uniform(0.4, 2.0) / mpp
    step = np.gradient(path, axis=0)
    aside = np.column_stack([-step[:, 1], step[:, 0]]) / np.linalg.norm(step, axis=1)[:, None]
    edges = [(path + sign * aside * width / 2, 1.2 / mpp, 150.0, blur) for sign in (-1, 1)]
    return [(path, width, rng.uniform(40, 90), blur), *edges]
