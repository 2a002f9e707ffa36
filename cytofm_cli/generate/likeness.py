"""What of a cell stayed in its place, and how near its colours are to others'.

Letters: N images, H W pixels.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei.detectors.classical import ClassicalDetector
from cytofm_cli.work.opencv import opencv

Images = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_LEVELS: Final = (np.arange(1000) + 0.5) / 1000  # of distributions that are compared
_FROM_MIDDLE: Final = 0.25  # of the side: a nucleus farther off is another cell's
_MARGIN: Final = 0.5  # of the side, repeated: the detector looks around what it judges


def lab_of(image_NHWC: Images) -> NDArray[np.float64]:
    """Return sRGB images in CIELAB (D65), float64 (…, 3)."""
    cv2 = opencv()
    flat = image_NHWC.reshape(1, -1, 3).astype(np.float32) / 255
    lab: NDArray[np.float64] = cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).astype(np.float64)
    return lab.reshape(image_NHWC.shape)


def rgb_of(lab: NDArray[np.float64]) -> Images:
    """Return CIELAB as sRGB, rounded; what no screen can show is cut."""
    cv2 = opencv()
    flat = cv2.cvtColor(lab.reshape(1, -1, 3).astype(np.float32), cv2.COLOR_Lab2RGB)
    levels: Images = (flat.clip(0, 1) * 255).round().astype(np.uint8)
    return levels.reshape(lab.shape)


def colour_distance(first_NHWC: Images, second_NHWC: Images) -> float:
    """Return how far the colours of two sets of images lie apart, in units of CIELAB.

    The Wasserstein distance of L*, of a* and of b* over all pixels, and their mean: between two
    sets of one colour each, the mean of the three differences.
    """
    parts = []
    for channel in range(3):
        first, second = (
            np.quantile(lab_of(x)[..., channel], _LEVELS) for x in (first_NHWC, second_NHWC)
        )
        parts.append(np.abs(first - second).mean())
    return float(np.mean(parts))


def in_colours_of(image_NHWC: Images, own_NHWC: Images, other_NHWC: Images) -> Images:
    """Return images with mean and spread of L*, a* and b* of other ones (Reinhard et al. 2001).

    Args:
        image_NHWC: of the slide.
        own_NHWC: images that stand for that slide.
        other_NHWC: images that stand for the other one.
    """
    own, other = (lab_of(x).reshape(-1, 3) for x in (own_NHWC, other_NHWC))
    spread = own.std(0)
    gain = other.std(0) / np.where(spread > 0, spread, 1.0)
    return rgb_of((lab_of(image_NHWC) - own.mean(0)) * gain + other.mean(0))


def nucleus_of(image_HWC: Images, mpp: float, how: Literal["detector", "dark"]) -> Mask | None:
    """Return where the nucleus in the middle of an image is, bool (H, W); None: there is none.

    Args:
        image_HWC: of a cell.
        mpp: µm/px.
        how: "detector": the classical one's outline nearest to the middle; "dark": all pixels
            that Otsu's threshold calls dark.
    """
    return _dark(image_HWC) if how == "dark" else _detected(image_HWC, mpp)


def _dark(image_HWC: Images) -> Mask | None:
    cv2 = opencv()
    grey = np.round(image_HWC.mean(2)).astype(np.uint8)
    if grey.min() == grey.max():
        return None
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return np.asarray(grey <= threshold)


def _detected(image_HWC: Images, mpp: float) -> Mask | None:
    side = image_HWC.shape[0]
    margin = round(_MARGIN * side)
    padded = np.pad(image_HWC, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    table = ClassicalDetector().detect(padded, mpp)
    if not len(table):
        return None
    off = np.linalg.norm(table.xy_px0 - (margin + side / 2), axis=1)
    nearest = int(off.argmin())
    if off[nearest] > _FROM_MIDDLE * side:
        return None
    canvas = np.zeros((side, side), np.uint8)
    # Corners of pixels to their middles, which OpenCV counts by.
    ring = np.round(table.polygon(nearest) - margin - 0.5).astype(np.int32)
    opencv().fillPoly(canvas, [ring], 1)
    return canvas > 0 if canvas.any() else None


def dice(first: Mask, second: Mask | None) -> float:
    """Return 2 |A ∩ B| / (|A| + |B|); 0 where the second is not there."""
    if second is None:
        return 0.0
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))
