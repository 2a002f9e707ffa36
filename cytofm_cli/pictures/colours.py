"""Colours that colour-blind people tell apart, and colour maps in which equal steps look equal.

Classes have the palette of Okabe and Ito (Color Universal Design, 2008); maps are matplotlib's
(van der Walt and Smith, SciPy 2015), as OpenCV has them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.opencv import opencv

Colour = tuple[int, int, int]

PAPER: Final[Colour] = (250, 250, 247)
INK: Final[Colour] = (40, 40, 40)
GREEN: Final[Colour] = (0, 170, 60)
RED: Final[Colour] = (220, 30, 30)
YELLOW: Final[Colour] = (255, 190, 0)
BLUE: Final[Colour] = (40, 110, 255)

# Orange first, as most classes lie on blue and violet stains; grey is what comes after the last.
CLASSES: Final[tuple[Colour, ...]] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
OTHER: Final[Colour] = (120, 120, 120)
MAPS: Final = ("viridis", "cividis", "inferno", "magma")


def class_colour(index: int) -> Colour:
    """Return the colour of the class at a place in the list of classes; grey from the eighth."""
    return CLASSES[index] if 0 <= index < len(CLASSES) else OTHER


def hex_of(colour: Colour) -> str:
    """Return `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@cache
def colour_map(name: str = "viridis") -> NDArray[np.uint8]:
    """Return the 256 colours of a map in `MAPS`, (256, 3), dark first; it must not be changed."""
    cv2 = opencv()
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    bgr = cv2.applyColorMap(ramp, getattr(cv2, f"COLORMAP_{name.upper()}"))[:, 0]
    colours: NDArray[np.uint8] = np.ascontiguousarray(bgr[:, ::-1])
    colours.setflags(write=False)
    return colours


def shade(values: NDArray[np.floating[Any]], name: str = "viridis") -> NDArray[np.uint8]:
    """Colour numbers from 0 to 1, of any shape: uint8 (…, 3).

    Numbers beyond are drawn as the end that they passed, NaN as 0.
    """
    level = np.nan_to_num(np.asarray(values, np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    return colour_map(name)[np.rint(np.clip(level, 0, 1) * 255).astype(np.uint8)]
