"""Layers over a slide as transparent squares: foreground, frames, points, outlines.

Everything is drawn on the server into squares of fixed size, so that what a browser handles does
not grow with the slide. Colours are RGB; (N, 3) gives each row its own. Legend: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.viewer.zoom import Region
from cytofm_cli.work.opencv import opencv

Canvas = NDArray[np.uint8]  # (side, side, 4) RGBA
_FRACTION_BITS: Final = 4  # of a pixel, in which OpenCV takes coordinates
_SMALL_PX: Final = 3.0
FILL_ALPHA: Final = 150


def blank(side_px: int) -> Canvas:
    """Return an empty square."""
    return np.zeros((side_px, side_px, 4), np.uint8)


def mask(
    region: Region,
    mask_HW: NDArray[np.uint8],
    per_px0: tuple[float, float],
    rgb: tuple[int, int, int],
) -> Canvas:
    """Tint where a mask is set.

    Args:
        region: the square.
        mask_HW: not 0 where set.
        per_px0: pixels of the mask to a level-0 pixel, along x and y.
        rgb: the tint.
    """
    centres = (np.arange(region.side_px) + 0.5) * region.scale
    column = np.floor((region.x_px0 + centres) * per_px0[0]).astype(np.int64)
    row = np.floor((region.y_px0 + centres) * per_px0[1]).astype(np.int64)
    height, width = mask_HW.shape
    known = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
    of_mask = mask_HW[np.clip(row, 0, height - 1)[:, None], np.clip(column, 0, width - 1)]
    canvas = blank(region.side_px)
    canvas[(of_mask != 0) & known] = (*rgb, FILL_ALPHA)
    return canvas


def squares(
    region: Region,
    xy_px0: NDArray[np.number],
    side_px0: float,
    rgb_N3: NDArray[np.uint8],
    *,
    filled: bool,
) -> Canvas:
    """Draw squares by their top-left corners; unfilled ones have a line of one pixel."""
    canvas = blank(region.side_px)
    low = np.floor(_placed(region, xy_px0)).astype(np.int64)
    size = max(1, round(side_px0 / region.scale))
    low_N2 = np.clip(low, -1, region.side_px)
    high_N2 = np.clip(low + size, -1, region.side_px)
    for (x0, y0), (x1, y1), rgb in zip(
        low_N2.tolist(), high_N2.tolist(), rgb_N3.tolist(), strict=True
    ):
        left, top = max(x0, 0), max(y0, 0)
        if filled or size <= 2:
            canvas[top:y1, left:x1] = (*rgb, 255)
            continue
        for y in (y0, y1):
            canvas[max(y, 0) : y + 1, left:x1] = (*rgb, 255)
        for x in (x0, x1):
            canvas[top:y1, max(x, 0) : x + 1] = (*rgb, 255)
    return canvas


def points(
    region: Region, xy_px0: NDArray[np.number], radius_px: float, rgb_N3: NDArray[np.uint8]
) -> Canvas:
    """Draw dots; later rows lie over earlier ones. All dots at once: a million take 0.1 s."""
    canvas = blank(region.side_px)
    reach = int(radius_px)
    around = np.arange(-reach, reach + 1)
    dx, dy = np.meshgrid(around, around)
    disc = np.hypot(dx, dy) <= max(radius_px, 0.5)
    at = np.floor(_placed(region, xy_px0)).astype(np.int64)
    for x, y in zip(dx[disc].tolist(), dy[disc].tolist(), strict=True):
        column, row = at[:, 0] + x, at[:, 1] + y
        seen = (column >= 0) & (column < region.side_px) & (row >= 0) & (row < region.side_px)
        canvas[row[seen], column[seen], :3] = rgb_N3[seen]
        canvas[row[seen], column[seen], 3] = 255
    return canvas


def discs(
    region: Region, xy_px0: NDArray[np.number], radius_px: float, rgb_N3: NDArray[np.uint8]
) -> Canvas:
    """Draw filled discs of any size; few large ones one by one, many small ones at once."""
    if radius_px <= _SMALL_PX:
        return points(region, xy_px0, radius_px, rgb_N3)
    cv2 = opencv()
    canvas = blank(region.side_px)
    centres = np.round((_placed(region, xy_px0) - 0.5) * (1 << _FRACTION_BITS)).astype(np.int64)
    radius = round(radius_px * (1 << _FRACTION_BITS))
    for (x, y), rgb in zip(centres.tolist(), rgb_N3.tolist(), strict=True):
        cv2.circle(canvas, (x, y), radius, (*rgb, 255), -1, cv2.LINE_8, _FRACTION_BITS)
    return canvas


@dataclass(frozen=True, eq=False)
class Rings:
    """Polygons of level-0 pixels, one after the other.

    Attributes:
        xy_px0: (p, 2), the points of all of them.
        start: (N + 1,), where each begins; none is empty.
    """

    xy_px0: NDArray[np.floating]
    start: NDArray[np.int64]


def outlines(
    canvas: Canvas, region: Region, rings: Rings, rgb_N3: NDArray[np.uint8], *, thickness: int = 2
) -> Canvas:
    """Draw closed polygons over a square; return it. Those of one colour are drawn at once."""
    if len(rings.start) < 2:
        return canvas
    cv2 = opencv()
    # OpenCV counts from the middle of the first pixel.
    placed = (_placed(region, rings.xy_px0) - 0.5) * (1 << _FRACTION_BITS)
    points = np.round(placed).astype(np.int32)
    reach = (region.side_px + thickness) << _FRACTION_BITS
    low = np.minimum.reduceat(points, rings.start[:-1])
    high = np.maximum.reduceat(points, rings.start[:-1])
    seen_N = ((low <= reach) & (high >= -(thickness << _FRACTION_BITS))).all(1)
    ring_N = np.split(points, rings.start[1:-1])
    colours, colour_N = np.unique(rgb_N3, axis=0, return_inverse=True)
    for number, rgb in enumerate(colours.tolist()):
        mine = np.flatnonzero(seen_N & (colour_N.reshape(-1) == number)).tolist()
        drawn = [ring_N[row] for row in mine]
        colour = (*rgb, 255)
        cv2.polylines(canvas, drawn, True, colour, thickness, cv2.LINE_AA, _FRACTION_BITS)
    return _undarkened(canvas)


def _undarkened(canvas: Canvas) -> Canvas:
    """Give half-covered pixels the whole colour: OpenCV has mixed it with black, alpha too."""
    partial = (canvas[..., 3] > 0) & (canvas[..., 3] < 255)
    of = canvas[partial].astype(np.float32)
    of[:, :3] = np.minimum(np.round(of[:, :3] * 255 / of[:, 3:]), 255)
    canvas[partial] = of.astype(np.uint8)
    return canvas


def _placed(region: Region, xy_px0: NDArray[np.number]) -> NDArray[np.float64]:
    """Return points in pixels of the square, from the corner of its first pixel."""
    moved: NDArray[np.float64] = np.asarray(xy_px0, np.float64) - (region.x_px0, region.y_px0)
    return moved / region.scale
