"""What is measured of each nucleus while its outline is at hand: colour, chromatin, ring, focus.

Names and units are those of `cytofm_cli.nuclei.features` where both have a measure; here it is
taken at the detector's own resolution, on points inside the outline that stand for equal areas.
Optical density is -log10((I + 1) / 256), mean of the channels.

Letters: M outlines, A angles, K points on a ray, C channels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import outline
from cytofm_cli.nuclei.outline import Outlines

Floats = NDArray[np.float32]

INSIDE: Final = np.sqrt((np.arange(4) + 0.5) / 4).astype(np.float32)  # rings of equal area
RING_UM: Final = (0.75, 1.5, 2.25)  # beyond the outline
_ACROSS_UM: Final = 0.5
_LEAST_CONTRAST: Final = 0.01
_LOG10: Final = np.float32(1 / np.log(10))


def measure(density_HWC: Floats, outlines: Outlines, mpp: float) -> dict[str, Floats]:
    """Measure nuclei on the map in which they were outlined.

    Args:
        density_HWC: float32, natural optical density in red, green and blue.
        outlines: M nuclei, in pixels of the map.
        mpp: µm/px of the map.

    Returns:
        float32 (M,) columns:

        - circularity: 4π · area / perimeter², 1 for a disk.
        - optical_density: mean inside.
        - density_std: standard deviation inside: coarse chromatin is high.
        - hue_blue: density of red minus density of blue, mean inside: high for blue nuclei.
        - ring_density: mean in a ring of 0.75 to 2.25 µm around the nucleus.
        - sharpness: share of the contrast to the ring that is lost within a micrometre across
          the outline, in 0..1: low for what is out of focus; NaN without contrast.
    """
    inside_MAKC = outline.sample_rays(density_HWC, outlines, outlines.radius_MA[..., None] * INSIDE)
    inside_MAKC = inside_MAKC * _LOG10
    # A ray stands for an area that grows with the square of its length.
    weight_MA = outlines.radius_MA**2
    weight_MA = weight_MA / np.maximum(weight_MA.sum(1, keepdims=True), 1e-12)
    grey_MAK = inside_MAKC.mean(-1)
    mean_M = np.einsum("mak,ma->m", grey_MAK, weight_MA) / len(INSIDE)
    square_M = np.einsum("mak,ma->m", grey_MAK**2, weight_MA) / len(INSIDE)
    hue_MAK = inside_MAKC[..., 0] - inside_MAKC[..., 2]
    away = np.array([-_ACROSS_UM, _ACROSS_UM, *RING_UM], np.float32) / np.float32(mpp)
    reach_MAK = np.maximum(outlines.radius_MA[..., None] + away, 0)
    around_MK = outline.sample_rays(density_HWC, outlines, reach_MAK).mean((1, 3)) * _LOG10
    ring_M = around_MK[:, 2:].mean(1)
    drop_M, contrast_M = around_MK[:, 0] - around_MK[:, 1], mean_M - ring_M
    known = contrast_M > _LEAST_CONTRAST
    sharpness_M = np.where(known, drop_M / np.where(known, contrast_M, 1), np.nan)
    columns = {
        "circularity": _circularity(outlines),
        "optical_density": mean_M,
        "density_std": np.sqrt(np.maximum(square_M - mean_M**2, 0)),
        "hue_blue": np.einsum("mak,ma->m", hue_MAK, weight_MA) / len(INSIDE),
        "ring_density": ring_M,
        "sharpness": np.clip(sharpness_M, 0, 1),
    }
    return {name: column.astype(np.float32) for name, column in columns.items()}


def _circularity(outlines: Outlines) -> Floats:
    points = outlines.points()
    perimeter_M = np.linalg.norm(np.roll(points, -1, axis=1) - points, axis=2).sum(1)
    value: Floats = 4 * np.pi * outlines.area_px() / np.maximum(perimeter_M, 1e-6) ** 2
    return value
