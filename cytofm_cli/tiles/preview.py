"""Draw what was found and chosen on a slide: cells outlined, the rest dimmed, tiles framed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.pictures.shapes import frames
from cytofm_cli.tiles import morphology

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONG_SIDE_PX: Final = 2400  # a screen and a half
SHORT_SIDE_PX: Final = 640  # a field of view is enlarged to it, in whole steps
DIMMING: Final = 0.55  # of the way to grey, where no tile was chosen
OUTLINE_RGB: Final = (0, 150, 60)
FRAME_RGB: Final = (40, 60, 235)
LIGHT_FRAME_RGB: Final = (255, 190, 60)  # on dark field


def draw(
    image_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_] | None,
    downsample: float,
    xy_px0: NDArray[np.int32],
    tile_px0: float,
    chosen: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Return a picture of the slide with the foreground's outline and the chosen tiles' frames.

    Args:
        image_HWC: (H, W, 3) uint8 RGB overview of the whole slide.
        mask_HW: foreground at the overview's scale; None for none.
        downsample: level-0 pixels to a pixel of the overview.
        xy_px0: (n, 2) corners of the tiles.
        tile_px0: side of a tile.
        chosen: indices of the tiles that are kept; None for all.

    Returns:
        uint8 (h, w, 3); at most 2400 px long, at least 640 px high or wide.
    """
    dark_field = float(image_HWC.mean()) < 64
    reduce = -(-max(image_HWC.shape[:2]) // LONG_SIDE_PX)
    enlarge = max(1, SHORT_SIDE_PX // min(image_HWC.shape[:2])) if reduce == 1 else 1
    enlarge = min(enlarge, max(1, LONG_SIDE_PX // max(image_HWC.shape[:2])))
    picture_HWC = _resized(image_HWC, reduce, enlarge).copy()
    per_px0 = enlarge / (downsample * reduce)
    tiles_N2 = xy_px0 if chosen is None else xy_px0[chosen]
    low_N2 = np.floor(tiles_N2 * per_px0).astype(np.int64)
    high_N2 = np.maximum(np.ceil((tiles_N2 + tile_px0) * per_px0).astype(np.int64), low_N2 + 1)
    kept_HW = np.zeros(picture_HWC.shape[:2], bool)
    for (x0, y0), (x1, y1) in zip(low_N2.tolist(), high_N2.tolist(), strict=True):
        kept_HW[y0:y1, x0:x1] = True
    grey = 20 if dark_field else 150
    rest = picture_HWC[~kept_HW] * np.float32(1 - DIMMING) + np.float32(DIMMING * grey)
    picture_HWC[~kept_HW] = rest.astype(np.uint8)
    if mask_HW is not None:
        rim_HW = _rim(mask_HW, picture_HWC.shape[:2], reduce, enlarge)
        picture_HWC[rim_HW] = OUTLINE_RGB
    frames(picture_HWC, low_N2, high_N2, LIGHT_FRAME_RGB if dark_field else FRAME_RGB)
    return picture_HWC


def _resized(image_HWC: NDArray[np.uint8], reduce: int, enlarge: int) -> NDArray[np.uint8]:
    small = morphology.shrink(image_HWC, reduce)
    return small.repeat(enlarge, 0).repeat(enlarge, 1)


def _rim(
    mask_HW: NDArray[np.bool_], shape: tuple[int, ...], reduce: int, enlarge: int
) -> NDArray[np.bool_]:
    """Return the outer edge of the foreground at the picture's scale, one pixel wide."""
    whole = ((0, -mask_HW.shape[0] % reduce), (0, -mask_HW.shape[1] % reduce))
    padded = np.pad(mask_HW, whole)
    rows, columns = padded.shape[0] // reduce, padded.shape[1] // reduce
    any_HW = padded.reshape(rows, reduce, columns, reduce).any((1, 3))
    any_HW = any_HW.repeat(enlarge, 0).repeat(enlarge, 1)[: shape[0], : shape[1]]
    return morphology.dilate(any_HW, 1) & ~any_HW
