"""Blobs: maxima of the scale-normalised Laplacian of Gaussian (Lindeberg, IJCV 30:79, 1998).

Large blobs are looked for on the map at half and quarter resolution: there they are as smooth
as small ones are on the map itself, at a fraction of the cost. Places are refined by a parabola
through the neighbours, so the coarser grid does not show.

Letters: M blobs, H rows, W columns, C channels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.opencv import opencv

Floats = NDArray[np.float32]

# Radius in pixels from which on a map of half the resolution is as good: the Gaussian's σ is
# then 2.1 pixels there, and what halving folds back is below e⁻⁹.
HALVE_FROM_PX: Final = 6.0
LEVELS: Final = 2
_TAIL: Final = 3.0  # σ at which a Gaussian is cut


def find_blobs(
    map_HW: Floats, radii_px: NDArray[np.floating], least: float
) -> tuple[Floats, Floats, Floats]:
    """Find bright blobs at every scale.

    Args:
        map_HW: float32.
        radii_px: radii of the blobs looked for, ascending.
        least: smallest answer.

    Returns:
        Centres (M, 2) as (x, y), radii (M,) and answers (M,), which are more than `least`.
    """
    found, level, map_hw = [], 0, map_HW
    for radius in radii_px:
        while level < LEVELS and radius / 2**level >= HALVE_FROM_PX:
            map_hw, level = halved(map_hw), level + 1
        own = float(radius) / 2**level
        answer = blob_answer(map_hw, own)
        y, x = peaks(answer, own, least)
        xy = (refined(answer, y, x) + 0.5) * 2**level
        found.append(np.column_stack([xy, np.full(len(x), radius), answer[y, x]]))
    table = np.concatenate(found).astype(np.float32)
    # Half a map may be padded by a pixel.
    inside = (table[:, 0] < map_HW.shape[1]) & (table[:, 1] < map_HW.shape[0])
    return table[inside, :2], table[inside, 2], table[inside, 3]


def halved(map_HW: Floats) -> Floats:
    """Return the means of 2 x 2 pixels; an odd last row or column counts twice."""
    cv2 = opencv()
    height, width = map_HW.shape[:2]
    if height % 2 or width % 2:
        map_HW = cv2.copyMakeBorder(
            map_HW, 0, height % 2, 0, width % 2, borderType=cv2.BORDER_REPLICATE
        )
    size = (map_HW.shape[1] // 2, map_HW.shape[0] // 2)
    half: Floats = cv2.resize(map_HW, size, interpolation=cv2.INTER_AREA)
    return half


def blob_answer(map_HW: Floats, radius_px: float) -> Floats:
    """Return −σ² ∇² of a smoothed map: a contrast, most at the centre of a disk of radius σ √2.

    Args:
        map_HW: float32 (H, W) or (H, W, C); channels are filtered alone.
        radius_px: of the disks.
    """
    cv2 = opencv()
    # The Laplacian of neighbours one pixel apart widens by itself: second differences are a
    # second derivative of the mean over two triangles, of variance 1/6 each way.
    sigma = radius_px / np.sqrt(2)
    blur = np.sqrt(max(sigma**2 - 1 / 6, 0.01))
    side = 2 * round(_TAIL * sigma) + 1
    # Continued by a pixel before it is smoothed: a smooth map continued after that has a kink.
    wide = cv2.copyMakeBorder(map_HW, 1, 1, 1, 1, borderType=cv2.BORDER_REPLICATE)
    smooth = cv2.GaussianBlur(wide, (side, side), blur, borderType=cv2.BORDER_REPLICATE)
    answer: Floats = cv2.Laplacian(smooth, cv2.CV_32F, ksize=1, scale=-(sigma**2))
    return answer[1:-1, 1:-1]


def peaks(
    answer_HW: Floats, radius_px: float, least: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows and columns of the maxima of an answer that are more than `least`."""
    cv2 = opencv()
    side = max(3, int(0.7 * radius_px) | 1)
    top = cv2.dilate(answer_HW, np.ones((side, side), np.uint8))
    y, x = np.nonzero((answer_HW == top) & (answer_HW > least))
    return y, x


def refined(answer_HW: Floats, y: NDArray[np.intp], x: NDArray[np.intp]) -> Floats:
    """Return where the parabolas through maxima and their neighbours peak, (M, 2) as (x, y)."""
    height, width = answer_HW.shape
    here = answer_HW[y, x]
    shifts = []
    for before, after in (
        (answer_HW[y, np.maximum(x - 1, 0)], answer_HW[y, np.minimum(x + 1, width - 1)]),
        (answer_HW[np.maximum(y - 1, 0), x], answer_HW[np.minimum(y + 1, height - 1), x]),
    ):
        bend = np.minimum(before - 2 * here + after, -1e-9)
        shifts.append(np.clip((before - after) / (2 * bend), -0.5, 0.5))
    refined_M2: Floats = (np.column_stack([x, y]) + np.column_stack(shifts)).astype(np.float32)
    return refined_M2
