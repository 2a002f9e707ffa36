"""Measurements of nuclei for export: size, shape, stain, texture, and a nucleus-to-cell proxy.

All in physical units or dimensionless; NaN where a row has no polygon or too few pixels.
Optical density is -log10((I + 1) / 256), mean of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei import polygons
from cytofm_cli.nuclei.base import NucleusTable, as_rgb
from cytofm_cli.units import Box

# Radius of the disk around a nucleus that is searched for its cytoplasm, µm: parabasal cells
# have about 10, superficial ones 25; beyond it other cells lie.
CELL_RADIUS_UM: Final = 15.0
# Darker than the surroundings by this is cytoplasm, optical density (log10).
CYTOPLASM_DENSITY: Final = 0.03
MIN_PIXELS: Final = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Morphometrics:
    """One float32 (m,) column a measurement.

    Attributes:
        perimeter_um: length of the outline.
        circularity: 4π · area / perimeter², 1 for a disk.
        eccentricity: of the ellipse with the outline's second moments, 0 for a disk, below 1.
        major_axis_um: length of that ellipse's long axis.
        minor_axis_um: length of its short axis.
        nc_ratio: nuclear area / (nuclear + cytoplasm-like area within 15 µm): a proxy, as cells
            overlap; 1 for a bare nucleus.
        optical_density: mean inside the nucleus.
        density_std: standard deviation inside: coarse chromatin is high.
        hue_blue: density of red minus density of blue, mean inside: high for blue nuclei.
        texture: mean absolute Laplacian of the density inside, at 0.5 µm.
    """

    perimeter_um: NDArray[np.float32]
    circularity: NDArray[np.float32]
    eccentricity: NDArray[np.float32]
    major_axis_um: NDArray[np.float32]
    minor_axis_um: NDArray[np.float32]
    nc_ratio: NDArray[np.float32]
    optical_density: NDArray[np.float32]
    density_std: NDArray[np.float32]
    hue_blue: NDArray[np.float32]
    texture: NDArray[np.float32]

    def columns(self) -> dict[str, NDArray[np.float32]]:
        """Return the columns by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def shape_columns(table: NucleusTable, mpp: float) -> dict[str, NDArray[np.float32]]:
    """Measure the outlines alone; needs no pixels.

    Args:
        table: coordinates in level-0 pixels.
        mpp: µm/px of level 0.
    """
    ring_um = table.contour_px0.astype(np.float64) * mpp
    found = polygons.shapes(ring_um, table.contour_start)
    return {
        "perimeter_um": found.perimeter.astype(np.float32),
        "circularity": found.circularity.astype(np.float32),
        "eccentricity": found.eccentricity.astype(np.float32),
        "major_axis_um": found.major_axis.astype(np.float32),
        "minor_axis_um": found.minor_axis.astype(np.float32),
    }


def measure(
    table: NucleusTable, image_HWC: NDArray[np.uint8], box_px0: Box, mpp: float
) -> Morphometrics:
    """Measure nuclei on the pixels of one region of level 0.

    Args:
        table: coordinates in level-0 pixels.
        image_HWC: pixels of the region; nuclei that leave it are measured on what is there.
        box_px0: where the region lies.
        mpp: µm/px of level 0.
    """
    density_HWC = -np.log10((as_rgb(image_HWC).astype(np.float32) + 1) / 256)
    stain = np.full((len(table), 5), np.nan, np.float32)
    origin = np.array([box_px0.x, box_px0.y], np.float64)
    for row in range(len(table)):
        ring = table.polygon(row).astype(np.float64) - origin
        if len(ring):
            stain[row] = _stain(ring, density_HWC, mpp)
    names = ("nc_ratio", "optical_density", "density_std", "hue_blue", "texture")
    return Morphometrics(**shape_columns(table, mpp), **dict(zip(names, stain.T, strict=True)))


def _stain(
    ring: NDArray[np.float64], density_HWC: NDArray[np.float32], mpp: float
) -> tuple[float, ...]:
    height, width, _ = density_HWC.shape
    reach = round(CELL_RADIUS_UM / mpp)
    middle = polygons.centroid(ring)
    low = np.maximum(np.floor(np.minimum(ring.min(0), middle - reach)), 0).astype(int)
    high = np.ceil(np.maximum(ring.max(0), middle + reach)).astype(int)
    x1, y1 = int(min(high[0], width)), int(min(high[1], height))
    if low[0] >= x1 or low[1] >= y1:
        return (float("nan"),) * 5
    window = density_HWC[low[1] : y1, low[0] : x1]
    inside = polygons.fill(ring - low, *window.shape[:2])
    count = int(inside.sum())
    if count < MIN_PIXELS:
        return (float("nan"),) * 5
    grey = window.mean(-1)
    nuclear = grey[inside]
    yy, xx = np.mgrid[: window.shape[0], : window.shape[1]] + 0.5
    disk = (xx - (middle[0] - low[0])) ** 2 + (yy - (middle[1] - low[1])) ** 2 <= reach**2
    around = disk & ~inside
    # The lightest tenth of the window is background; what lies above it is cytoplasm.
    background = float(np.percentile(grey, 10))
    cytoplasm = int((around & (grey > background + CYTOPLASM_DENSITY)).sum())
    return (
        count / (count + cytoplasm),
        float(nuclear.mean()),
        float(nuclear.std()),
        float((window[..., 0] - window[..., 2])[inside].mean()),
        float(np.abs(_laplacian(grey, mpp))[inside].mean()),
    )


def _laplacian(grey: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_laplace

    answer: NDArray[np.float32] = gaussian_laplace(grey, max(0.5 / mpp / 2, 0.5), mode="nearest")
    return answer
