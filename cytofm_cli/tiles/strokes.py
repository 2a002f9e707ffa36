"""Fine strokes of a pen: too thin for `foreground._ink`, known by their one colour.

Ink is one dye: whatever lies between glass and stroke is a mixture of the two, so that the shares
of the light that it takes from red, green and blue stand in one ratio all along. Stained cells in a
row are of two or more dyes, and rims of bubbles, dust and scratches are grey.

A stroke is what takes 35 % of the light in its strongest colour, is nowhere thicker than 28 µm, at
least 180 µm long, thinner than 8 % of that, of one ratio (on 70 % of it, within 0.1 of the median)
and coloured (ratios that differ by 0.2), or black.

H, W: rows and columns; C: colours; K: parts; M: pixels of a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.tiles import morphology
from cytofm_cli.tiles.foreground import INK_DARKNESS, SLENDER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

THICK_UM: Final = 28.0
STROKE_UM: Final = 180.0
ONE_COLOUR: Final = 0.1
SHARE: Final = 0.7
COLOURED: Final = 0.2
BLACK: Final = 0.7  # darkness of the darker half; rims of bubbles have 0.5


def fine_strokes(
    image_HWC: NDArray[np.uint8], glass_rgb: Sequence[int], mpp: float
) -> NDArray[np.bool_]:
    """Mark fine strokes of a pen in transmitted light.

    Args:
        image_HWC: (H, W, 3) uint8 RGB, the slide at about 4 µm/px.
        glass_rgb: colour of clean glass, 0-255.
        mpp: µm/px of the picture.

    Returns:
        bool (H, W), without a margin.
    """
    glass_C = np.maximum(np.asarray(glass_rgb, np.float32), 1)
    limit_C = np.floor(glass_C * (1 - INK_DARKNESS)).astype(np.uint8)
    dark_HW = (image_HWC <= limit_C).any(2)
    radius_px = max(1, int((THICK_UM / mpp - 1) / 2))
    dark_HW &= ~morphology.dilate(morphology.open_square(dark_HW, radius_px), 1)
    parts = morphology.components(dark_HW)
    length_K = parts.length_px_K
    long_K = (length_K * mpp >= STROKE_UM) & (parts.area_px_K < SLENDER * length_K**2)
    chosen_K = np.zeros(len(length_K), bool)
    for part in np.flatnonzero(long_K):
        chosen_K[part] = _is_ink(image_HWC[parts.pixels(int(part))] / glass_C)
    return parts.paint(chosen_K)


def _is_ink(light_MC: NDArray[np.float32]) -> bool:
    """Tell whether pixels are of one dye; their light as shares of the glass'."""
    dark_MC = np.clip(1 - light_MC, 0, 1)
    most_M = dark_MC.max(1)
    ratio_MC = dark_MC / most_M[:, None]
    middle_C = np.median(ratio_MC, axis=0)
    alike = (np.abs(ratio_MC - middle_C) <= ONE_COLOUR).all(1).mean()
    coloured = np.ptp(middle_C) >= COLOURED or np.percentile(most_M, 75) >= BLACK
    return bool(alike >= SHARE and coloured)
