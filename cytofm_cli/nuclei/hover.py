"""Separate nuclei from HoVer-style maps.

A network gives for each pixel the probability of "nucleus" and the horizontal and vertical
distance to the centre of its nucleus, scaled to -1..1. At the border between two nuclei these
distances jump; the jump, found by a wide derivative, is where a watershed cuts them apart.

Source: Graham et al., HoVer-Net, Medical Image Analysis 58:101563 (2019), section 3.2; Hörst et
al., CellViT, arXiv:2306.15350. Written from the description.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

MIN_REGION_PX: Final = 10
EDGE_THRESHOLD: Final = 0.4
# A 5 × 5 ellipse, as image libraries draw it.
_ELLIPSE: Final = np.array(
    [[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], bool
)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """Settings that go with a magnification.

    Attributes:
        kernel_px: width of the derivative, odd.
        min_marker_px: markers with fewer pixels are noise.
    """

    kernel_px: int
    min_marker_px: int


# Nuclei are half as wide in pixels at 20×: a kernel of 21 px would bridge neighbours.
SEPARATIONS: Final = {
    40: Separation(kernel_px=21, min_marker_px=10),
    20: Separation(kernel_px=11, min_marker_px=3),
}


def separate(mask_HW: NDArray[np.bool_], hv_2HW: Floats, how: Separation) -> Labels:
    """Split a mask of nuclei into instances.

    Args:
        mask_HW: where a nucleus is.
        hv_2HW: horizontal (0) and vertical (1) distance maps.
        how: kernel and smallest marker.

    Returns:
        int32 (H, W): 0 outside, 1..n inside. A piece of the mask without any marker is dropped.
    """
    from scipy import ndimage

    mask_HW = _drop_small(mask_HW, MIN_REGION_PX)
    if not mask_HW.any():
        return np.zeros(mask_HW.shape, np.int32)
    edge_HW = np.maximum(
        1 - _unit(_derivative(_unit(hv_2HW[0]), how.kernel_px, axis=1)),
        1 - _unit(_derivative(_unit(hv_2HW[1]), how.kernel_px, axis=0)),
    )
    edge_HW = np.where(mask_HW, edge_HW, 0).astype(np.float32)
    smooth = np.array([0.25, 0.5, 0.25])
    inner_HW = (1 - edge_HW) * mask_HW
    for axis in (0, 1):
        inner_HW = ndimage.correlate1d(inner_HW, smooth, axis=axis, mode="mirror")
    marker_HW = ndimage.binary_fill_holes(mask_HW & (edge_HW < EDGE_THRESHOLD))
    marker_HW = ndimage.binary_opening(marker_HW, _ELLIPSE)
    marker_HW = _drop_small(marker_HW, how.min_marker_px)
    labels_HW, _ = ndimage.label(marker_HW)
    return watershed(-inner_HW, labels_HW.astype(np.int32), mask_HW)


def watershed(energy_HW: Floats, marker_HW: Labels, mask_HW: NDArray[np.bool_]) -> Labels:
    """Flood `energy_HW` from markers inside a mask, lowest first (4-neighbours).

    A pixel belongs to the marker whose flood reaches it first; of equal energies the one that
    was reached earlier is flooded earlier (Meyer, 1994).
    """
    height, width = mask_HW.shape
    labels = np.pad(np.where(mask_HW, marker_HW, 0), 1)
    # One flat list with a border: four neighbours are four offsets, and no bounds to check.
    open_ = (np.pad(mask_HW, 1) & (labels == 0)).ravel().tolist()
    energy = np.pad(energy_HW, 1).ravel().tolist()
    flat = labels.ravel().tolist()
    stride = width + 2
    queue = [(energy[i], i, i) for i in np.nonzero(labels.ravel())[0].tolist()]
    heapq.heapify(queue)
    age = len(flat)
    while queue:
        _, _, i = heapq.heappop(queue)
        for j in (i - stride, i - 1, i + 1, i + stride):
            if open_[j]:
                open_[j] = False
                flat[j] = flat[i]
                age += 1
                heapq.heappush(queue, (energy[j], age, j))
    flooded = np.array(flat, np.int32).reshape(height + 2, stride)
    return flooded[1:-1, 1:-1]


def majority_class(
    labels_HW: Labels, class_HW: NDArray[np.integer], n_classes: int
) -> NDArray[np.uint8]:
    """Return the most frequent class other than 0 (background) in each label.

    A label whose pixels are all background is 0.

    Returns:
        uint8 (n,), for labels 1..n.
    """
    count = int(labels_HW.max(initial=0))
    votes = np.bincount(
        labels_HW.ravel() * n_classes + class_HW.ravel(), minlength=(count + 1) * n_classes
    ).reshape(-1, n_classes)[1:]
    votes[:, 0] = 0
    chosen: NDArray[np.uint8] = votes.argmax(1).astype(np.uint8)
    return chosen


def _drop_small(mask_HW: NDArray[np.bool_], min_px: int) -> NDArray[np.bool_]:
    from scipy import ndimage

    labels_HW, _ = ndimage.label(mask_HW)
    large = np.bincount(labels_HW.ravel()) >= min_px
    large[0] = False
    kept: NDArray[np.bool_] = large[labels_HW]
    return kept


def _unit(map_HW: Floats) -> Floats:
    """Scale a map to 0..1; a constant map becomes 0."""
    low, high = float(map_HW.min()), float(map_HW.max())
    scaled: Floats = ((map_HW - low) / max(high - low, 1e-12)).astype(np.float32)
    return scaled


def _derivative(map_HW: Floats, kernel_px: int, axis: int) -> Floats:
    """Apply a wide Sobel filter: a binomial derivative along `axis`, binomial smoothing across."""
    from scipy import ndimage

    smooth = np.poly1d([1.0, 1.0]) ** (kernel_px - 1)
    slope = np.poly1d([1.0, 1.0]) ** (kernel_px - 2) * np.poly1d([1.0, -1.0])
    # Correlation: the later pixel counts positive. Sums of one keep float32 in its range.
    along = -slope.coeffs / 2.0 ** (kernel_px - 2)
    across = smooth.coeffs / 2.0 ** (kernel_px - 1)
    result = ndimage.correlate1d(map_HW.astype(np.float64), along, axis=axis, mode="mirror")
    result = ndimage.correlate1d(result, across, axis=1 - axis, mode="mirror")
    filtered: Floats = result.astype(np.float32)
    return filtered
