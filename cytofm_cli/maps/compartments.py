"""Which part of each patch of an image is nucleus, cytoplasm or neither.

Nuclei are their detected outlines; cytoplasm is foreground of the slide (as `tile` finds it) that
is no nucleus; the rest is other. A patch counts with the share of its area that each covers.

Letters: R C rows and columns of patches, S sub-samples along a patch's side, M nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import MIN_POLYGON_POINTS, NucleusTable
from cytofm_cli.views import masks

COMPARTMENTS: Final = ("nucleus", "cytoplasm", "other")
SUBSAMPLES: Final = 16  # along a patch's side: areas to a part in 256
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ground:
    """What is known of a slide.

    Attributes:
        nuclei: with outlines, level-0 pixels.
        foreground_HW: bool, at the scale of the thumbnail.
        size_px0: width and height of level 0.
    """

    nuclei: NucleusTable
    foreground_HW: NDArray[np.bool_]
    size_px0: tuple[int, int]


def ground_of(store: Store, detector: str | None) -> Ground:
    """Read nuclei and foreground of a store.

    Raises:
        StoreError: no nuclei, several detectors and none named, or nuclei that are points.
    """
    nuclei = store.nuclei(detector)
    name = store.which_detector(detector)
    if not len(nuclei):
        raise StoreError(
            f"{store.path}: {name} found no nuclei, so nothing tells what attention lies on.",
            hint="leave the slide out, or detect with other settings.",
        )
    if not (np.diff(nuclei.contour_start) >= MIN_POLYGON_POINTS).any():
        raise StoreError(
            f"{store.path}: the nuclei of {name} are points without outlines.",
            hint="`cytofm detect` finds outlines; --detector names whose.",
        )
    foreground_HW = np.ones((1, 1), bool)
    if store.has(schema.FOREGROUND.path):
        foreground_HW = store.read(schema.FOREGROUND.path) > 0
    width, height = store.slide.size_px0
    return Ground(nuclei, foreground_HW, (width, height))


def rings_near(nuclei: NucleusTable, left_top: Floats, side: float) -> list[Floats]:
    """Return the outlines that may reach into a square, float64 (P, 2), level-0 pixels.

    Args:
        nuclei: of the slide.
        left_top: (2,), corner of the square.
        side: of it.
    """
    reach = side / 2 + _largest(nuclei)
    near = (np.abs(nuclei.xy_px0 - (left_top + side / 2)) <= reach).all(1)
    rings = [nuclei.polygon(row).astype(np.float64) for row in np.flatnonzero(near).tolist()]
    return [ring for ring in rings if len(ring) >= MIN_POLYGON_POINTS]


def _largest(nuclei: NucleusTable) -> float:
    """Return how far an outline reaches from its centroid at most."""
    owner = np.repeat(np.arange(len(nuclei)), np.diff(nuclei.contour_start))
    away = nuclei.contour_px0 - nuclei.xy_px0[owner]
    return float(np.abs(away).max(initial=0.0))


def cover(ground: Ground, left_top: Floats, side: float, grid: tuple[int, int]) -> Floats:
    """Return the share of each patch that each compartment covers.

    Args:
        ground: the slide.
        left_top: (2,), corner of the square that the network sees, level-0 pixels.
        side: of it.
        grid: rows and columns of patches in it.

    Returns:
        float64 (R · C, 3), in the order of `COMPARTMENTS`; rows sum to 1.
    """
    rows, columns = grid
    parts = parts_of(ground, left_top, side, (rows * SUBSAMPLES, columns * SUBSAMPLES))
    each = parts[..., None] == np.arange(len(COMPARTMENTS))
    blocks = each.reshape(rows, SUBSAMPLES, columns, SUBSAMPLES, len(COMPARTMENTS))
    shares: Floats = blocks.mean((1, 3)).reshape(rows * columns, len(COMPARTMENTS))
    return shares


def parts_of(
    ground: Ground, left_top: Floats, side: float, shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return which compartment lies under each of a grid of points, index of `COMPARTMENTS`.

    Args:
        ground: the slide.
        left_top: (2,), corner of a square, level-0 pixels.
        side: of it.
        shape: rows and columns of points, each in the middle of its part of the square.
    """
    size = np.array(shape[::-1])
    step = side / size  # level-0 pixels between points
    rings = [
        (ring - left_top) / step - 0.5  # whole numbers are points, which lie in the middle
        for ring in rings_near(ground.nuclei, left_top, side)
    ]
    nucleus = masks.label_map(list(rings), *shape) > 0
    foreground = _sampled(ground, left_top, step, size)
    return np.where(nucleus, 0, np.where(foreground, 1, 2)).astype(np.uint8)


def _sampled(
    ground: Ground, left_top: Floats, step: Floats, size: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Look the foreground up at the samples; beyond the slide there is none."""
    axes = []
    for axis, n_pixels in ((0, ground.foreground_HW.shape[1]), (1, ground.foreground_HW.shape[0])):
        at = left_top[axis] + (np.arange(size[axis]) + 0.5) * step[axis]
        axes.append(np.floor(at / ground.size_px0[axis] * n_pixels).astype(np.int64))
    x, y = axes
    height, width = ground.foreground_HW.shape
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
    looked: NDArray[np.bool_] = ground.foreground_HW[
        np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]
    ]
    both: NDArray[np.bool_] = looked & inside
    return both
