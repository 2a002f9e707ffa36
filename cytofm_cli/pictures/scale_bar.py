"""The bar that says how long so many micrometres are."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import INK, PAPER
from cytofm_cli.pictures.text import LARGE, SMALL, width_of, write

_SHARE: Final = 0.3  # of the picture's width that a bar takes at most
_MARGIN_PX: Final = 6


def nice_length_um(longest_um: float) -> float:
    """Return the longest of …, 1, 2, 5, 10, 20, 50, … that is not above a length.

    Args:
        longest_um: above 0.
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    # 9.999… is what arithmetic leaves of 10.
    return next(n * power for n in (10, 5, 2, 1) if n * power <= longest_um * (1 + 1e-9))


def label_of(length_um: float) -> str:
    """Return `20 µm`, or `2 mm`."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"


def draw_scale_bar(canvas: NDArray[np.uint8], mpp: float) -> float | None:
    """Draw a bar with its length into the lower left corner; return its length, µm.

    Args:
        canvas: drawn on in place.
        mpp: µm to a pixel of the canvas.

    Returns:
        None: the picture is too small for a bar, and is left as it is.
    """
    height, width = canvas.shape[:2]
    size = LARGE if width >= 200 else SMALL
    if not (math.isfinite(mpp) and mpp > 0) or width * _SHARE < 4 or height < 2 * size:
        return None
    length_um = nice_length_um(width * _SHARE * mpp)
    bar_px = max(1, round(length_um / mpp))
    left, bottom = _MARGIN_PX, height - _MARGIN_PX
    thick = 3 if size == LARGE else 2
    canvas[bottom - thick - 1 : bottom + 1, left - 1 : left + bar_px + 1] = PAPER
    canvas[bottom - thick : bottom, left : left + bar_px] = INK
    label = label_of(length_um)
    if left + width_of(label, size) <= width:
        write(canvas, label, left, bottom - thick - math.ceil(1.3 * size), size=size, halo=True)
    return length_um
