"""Colour statistics: of all pixels, and of those that are not glass.

Letters: B images, H W halved pixels, C colours.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.handcrafted import counts
from cytofm_cli.encoders.handcrafted.counts import Features

Array = NDArray[np.float32]

OD_STEP: Final = 0.008  # optical density of one grey level: 255 levels reach 2.04
_HALVED_WHITE: Final = 255 * 16
_BELOW: Final = 96  # bins for densities under 0, which differences have
_BINS: Final = 352
_LEAST_CUT: Final = 8

# Rows: optical density of haematoxylin, eosin and their residual in R, G, B (Ruifrok).
_STAINS: Final = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_UNMIX: Final = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
_HAEMATOXYLIN: Final = _UNMIX[:, 0].astype(np.float32)
_DENSITY: Final = (
    -np.log10((np.arange(_HALVED_WHITE + 1) + 16) / (_HALVED_WHITE + 16)) + 0.0
).astype(np.float32)


def densities(halved_CBHW: NDArray[np.uint16]) -> dict[str, Array]:
    """Return optical-density planes, float32 (B, H, W) each.

    `dark` is the smallest density of the three colours: nuclei absorb all of them whatever the
    stain, cytoplasm (pink, orange, cyan) lets at least one pass.
    """
    red, green, blue = (_DENSITY[plane] for plane in halved_CBHW)
    dark = np.minimum(np.minimum(red, green), blue)
    r, g, b = _HAEMATOXYLIN
    return {
        "dark": dark,
        "purity": np.maximum(np.maximum(red, green), blue) - dark,
        "red_green": red - green,
        "blue_yellow": blue - np.float32(0.5) * (red + green),
        "haematoxylin": r * red + g * green + b * blue,
    }


def levels(density_BHW: Array) -> NDArray[np.uint8]:
    """Return densities as grey levels, 0 to 255."""
    level_BHW: NDArray[np.uint8] = np.minimum(density_BHW / np.float32(OD_STEP), 255).astype(
        np.uint8
    )
    return level_BHW


def measure(
    halved_CBHW: NDArray[np.uint16], planes: dict[str, Array], dark_BHW: NDArray[np.uint8]
) -> Features:
    """Return the statistics of colours and densities."""
    features: Features = {}
    for plane, name in zip(halved_CBHW, "rgb", strict=True):
        found = counts.statistics(counts.count(plane >> 4, 256), low=0.0, step=1 / 255)
        features |= {f"colour.{name}.{key}": value for key, value in found.items()}
    # Cells differ from glass by any absorption at all, not only by being dark.
    strongest_BHW = levels(planes["dark"] + planes["purity"])
    cut = np.maximum(counts.otsu(counts.count(strongest_BHW, 256)), _LEAST_CUT)
    cells_BHW = strongest_BHW > cut.astype(np.uint8)[:, None, None]
    features["colour.cells.fraction"] = cells_BHW.mean((1, 2), dtype=np.float64)
    # Glass and cells are counted side by side, in bins of their own.
    first_bin = (cells_BHW * np.float32(_BINS)) + np.float32(_BELOW)
    for name, plane in planes.items():
        features |= _of_density(f"colour.{name}", plane, first_bin)
    features["colour.dark.otsu"] = OD_STEP * counts.otsu(counts.count(dark_BHW, 256)).astype(
        np.float64
    )
    return features


def _of_density(name: str, density_BHW: Array, first_bin_BHW: Array) -> Features:
    scaled = density_BHW * np.float32(1 / OD_STEP)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -_BELOW, _BINS - 1 - _BELOW, out=scaled)
    scaled += first_bin_BHW
    both = counts.count(scaled.astype(np.uint16), 2 * _BINS)
    glass, cells = both[:, :_BINS], both[:, _BINS:]
    features: Features = {}
    for where, counted, keep in (
        ("all", glass + cells, counts.STATISTICS),
        ("cells", cells, ("mean", "std", "p50")),
    ):
        found = counts.statistics(counted, low=-_BELOW * OD_STEP, step=OD_STEP)
        features |= {f"{name}.{where}.{key}": found[key] for key in keep}
    return features
