"""The small pictures of a whole slide: as it is, and with what a head looked at."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import shade
from cytofm_cli.pictures.scale_bar import draw_scale_bar
from cytofm_cli.report.crops import resized
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store

LONG_SIDE_PX: Final = 256
COLOURS: Final = "inferno"
_PALE: Final = 0.45  # how far the slide below a map is on its way to white
_MANY: Final = 1500  # points, from which on each is one pixel


def thumbnail(store: Store) -> NDArray[np.uint8]:
    """Return the overview of a slide, at most `LONG_SIDE_PX` long, without a bar.

    Raises:
        StoreError: the store has none, or is damaged.
    """
    image_HWC = store.read(schema.THUMBNAIL.path)
    height, width = image_HWC.shape[:2]
    scale = LONG_SIDE_PX / max(height, width)
    return resized(image_HWC, max(1, round(width * scale)), max(1, round(height * scale)))


def with_bar(picture: NDArray[np.uint8], store: Store) -> NDArray[np.uint8]:
    """Return a picture of the whole slide with a scale bar."""
    canvas = picture.copy()
    draw_scale_bar(canvas, store.slide.size_px0[0] * store.slide.mpp / canvas.shape[1])
    return canvas


def draw_map(
    picture: NDArray[np.uint8],
    store: Store,
    xy_px0: NDArray[Any],
    values_N: NDArray[np.float32],
    *,
    side_px0: float | None = None,
) -> NDArray[np.uint8]:
    """Return the slide, paled, with its instances coloured by their rank within it.

    Args:
        picture: the whole slide.
        store: of it.
        xy_px0: (N, 2) corners of tiles, or centres of cells, level-0 pixels.
        values_N: of each; the highest lie on top.
        side_px0: side of a tile; None: cells, drawn as dots.
    """
    grey_HW = picture.mean(2, dtype=np.float32)
    pale_HW = grey_HW + (255 - grey_HW) * _PALE
    canvas = np.repeat(pale_HW.astype(np.uint8)[:, :, None], 3, 2)
    if not len(values_N):
        return canvas
    order_N = np.argsort(values_N, kind="stable")
    colour_N3 = shade(rank_of(values_N), COLOURS)
    width_px0, height_px0 = store.slide.size_px0
    per_px0 = np.array([picture.shape[1] / width_px0, picture.shape[0] / height_px0])
    at_N2 = np.asarray(xy_px0, np.float64) * per_px0
    if side_px0 is None:
        _dots(canvas, at_N2[order_N], colour_N3[order_N])
    else:
        _squares(canvas, at_N2[order_N], side_px0 * per_px0, colour_N3[order_N])
    return canvas


def rank_of(values_N: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return where each value stands among all, from 0 to 1; equal ones share their place."""
    values, place_N, count = np.unique(values_N, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return np.full(len(values_N), 0.5)
    first = np.cumsum(count) - count
    middle = first + (count - 1) / 2
    return np.asarray((middle / (len(values_N) - 1))[place_N])


def _dots(
    canvas: NDArray[np.uint8], at_N2: NDArray[np.float64], colour_N3: NDArray[np.uint8]
) -> None:
    reach = 1 if len(at_N2) > _MANY else 3
    height, width = canvas.shape[:2]
    x_N, y_N = np.floor(at_N2).astype(np.int64).T
    offsets = range(-reach, reach + 1)
    for dy, dx in ((dy, dx) for dy in offsets for dx in offsets if dx * dx + dy * dy <= reach**2):
        x, y = x_N + dx, y_N + dy
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        canvas[y[inside], x[inside]] = colour_N3[inside]


def _squares(
    canvas: NDArray[np.uint8],
    at_N2: NDArray[np.float64],
    side: NDArray[np.float64],
    colour_N3: NDArray[np.uint8],
) -> None:
    low_N2 = np.maximum(np.floor(at_N2), 0).astype(np.int64)
    high_N2 = np.maximum(np.ceil(at_N2 + side).astype(np.int64), low_N2 + 1)
    for (x0, y0), (x1, y1), colour in zip(
        low_N2.tolist(), high_N2.tolist(), colour_N3, strict=True
    ):
        part = canvas[y0:y1, x0:x1]
        part[:] = (part.astype(np.uint16) + 2 * colour.astype(np.uint16)) // 3
