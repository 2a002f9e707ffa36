"""Lines on a picture: boxes, crosses, the edge of a mask, polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.colours import Colour
from cytofm_cli.work.opencv import opencv

Image = NDArray[np.uint8]
_FRACTION_BITS = 4  # OpenCV takes coordinates in sixteenths of a pixel


def rectangle(canvas: Image, x: int, y: int, w: int, h: int, colour: Colour) -> None:
    """Draw the frame of a box inside of its edges, two pixels wide."""
    right, bottom = min(x + w, canvas.shape[1]), min(y + h, canvas.shape[0])
    for inset in (0, 1):
        top, left = y + inset, x + inset
        canvas[top, left : right - inset] = canvas[bottom - 1 - inset, left : right - inset] = (
            colour
        )
        canvas[top : bottom - inset, left] = canvas[top : bottom - inset, right - 1 - inset] = (
            colour
        )


def frames(
    canvas: Image, low_N2: NDArray[np.int64], high_N2: NDArray[np.int64], colour: Colour
) -> None:
    """Draw thin frames around boxes, (x, y) of their corners; neighbours share their line."""
    height, width = canvas.shape[:2]
    for (x0, y0), (x1, y1) in zip(low_N2.tolist(), high_N2.tolist(), strict=True):
        right, bottom = min(x1, width - 1), min(y1, height - 1)
        for row in (y0, bottom):
            canvas[row, x0 : right + 1] = colour
        for column in (x0, right):
            canvas[y0 : bottom + 1, column] = colour


def cross(canvas: Image, x: int, y: int, colour: Colour) -> None:
    """Draw a cross with a white rim; its middle may lie outside of the picture."""
    for reach, tint in ((6, (255, 255, 255)), (5, colour)):
        wide = 2 if reach == 6 else 1
        rows = slice(max(0, y - reach), max(0, y + reach + 1))
        columns = slice(max(0, x - reach), max(0, x + reach + 1))
        canvas[rows, max(0, x - wide) : max(0, x + wide + 1)] = tint
        canvas[max(0, y - wide) : max(0, y + wide + 1), columns] = tint


def edge(canvas: Image, mask_HW: NDArray[np.bool_], colour: Colour) -> None:
    """Draw where inside and outside of a mask meet; the mask may have another scale."""
    rim_HW = np.zeros_like(mask_HW)
    rim_HW[:, 1:] |= mask_HW[:, 1:] != mask_HW[:, :-1]
    rim_HW[1:] |= mask_HW[1:] != mask_HW[:-1]
    y, x = np.nonzero(rim_HW)
    scale = canvas.shape[0] / mask_HW.shape[0]
    canvas[(y * scale).astype(int), (x * scale).astype(int)] = colour


def polygons(
    canvas: Image,
    outlines: Sequence[NDArray[np.floating[Any]]],
    colour: Colour,
    *,
    width: int = 1,
    closed: bool = True,
) -> None:
    """Draw smooth lines through points.

    Args:
        canvas: drawn on in place.
        outlines: (P, 2) points (x, y) each, in pixels counted from the outer corner of the first.
        colour: of the lines.
        width: in pixels.
        closed: the last point meets the first.
    """
    cv2 = opencv()
    unit = 1 << _FRACTION_BITS
    # OpenCV counts from the middle of the first pixel.
    lines = [np.rint((np.asarray(xy) - 0.5) * unit).astype(np.int32)[:, None] for xy in outlines]
    cv2.polylines(canvas, lines, closed, colour, width, cv2.LINE_AA, _FRACTION_BITS)
