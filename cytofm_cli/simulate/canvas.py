"""Masks of outlines: drawn with smooth borders, true to the area."""

from __future__ import annotations

import itertools
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SHIFT: Final = 5  # fixed point of OpenCV: 1/32 px
# OpenCV paints the border line of a polygon as well, which widens it by this much, px.
_WIDER: Final = 0.66


def filled(outline: NDArray[np.float32], x0: int, y0: int, height: int, width: int) -> Bytes:
    """Return what an outline covers of each pixel, 0 to 255: (height, width).

    Args:
        outline: (n, 2), px; the middle of pixel (0, 0) is (0.5, 0.5).
        x0, y0: the first pixel of the mask.
        height, width: size of the mask.
    """
    canvas = np.zeros((height, width), np.uint8)
    points = inset(outline - np.array([x0, y0], np.float32), _WIDER) - 0.5
    fixed = np.round(points * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, _SHIFT)
    return canvas


def inset(points: NDArray[np.float32], by: float) -> NDArray[np.float64]:
    """Return an outline moved inwards along its normals; its direction does not matter."""
    points = points.astype(np.float64)
    along = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
    length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / length[:, None]
    x, y = points.T
    turn = np.sign(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    moved: NDArray[np.float64] = points + by * turn * normal
    return moved


def depth(mask: Bytes) -> Mask:
    """Return how far each pixel lies from the border of a mask, px; 0 outside."""
    inside = cv2.threshold(mask, 127, 1, cv2.THRESH_BINARY)[1]
    return cv2.distanceTransform(inside, cv2.DIST_L2, 3)  # type: ignore[return-value]


def strokes(lines: list[NDArray[np.float64]], height: int, width: int, thickness: int) -> Mask:
    """Return thin lines that fade towards their ends, 0 to 1: (height, width)."""
    canvas = np.zeros((height, width), np.uint8)
    for line in lines:
        fixed = np.round((line - 0.5) * (1 << _SHIFT)).astype(np.int32)
        for i, part in enumerate(itertools.pairwise(fixed)):
            shade = int(255 * np.sin(np.pi * (i + 0.5) / (len(line) - 1)) ** 0.5)
            cv2.line(canvas, tuple(map(int, part[0])), tuple(map(int, part[1])), shade, thickness,
                     cv2.LINE_AA, _SHIFT)  # fmt: skip
    return canvas.astype(np.float32) * np.float32(1 / 255)


def discs(
    places: NDArray[np.float64], radii: NDArray[np.float64], height: int, width: int
) -> Bytes:
    """Return discs, 0 to 255: (height, width)."""
    canvas = np.zeros((height, width), np.uint8)
    for place, radius in zip(places, radii, strict=True):
        x, y = np.round((place - 0.5) * (1 << _SHIFT)).astype(int)
        size = max(1, round((radius - _WIDER) * (1 << _SHIFT)))
        cv2.circle(canvas, (int(x), int(y)), size, 255, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def blurred(plane: Mask, sigma: float, margin: int) -> Mask:
    """Return a plane blurred by a Gaussian that reaches `margin` px; outside is nothing."""
    size = (2 * margin + 1, 2 * margin + 1)
    return cv2.GaussianBlur(plane, size, sigma, borderType=cv2.BORDER_CONSTANT)  # type: ignore[return-value]
