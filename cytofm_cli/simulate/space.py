"""How much room a cohort takes."""

from __future__ import annotations

from typing import Final

from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.preset import Preset

# Bytes a pixel: JPEG and PNG of covered glass; JPEG, and both label images, of blank glass.
_JPEG: Final = 0.25
_PNG: Final = 1.6
_BLANK: Final = 0.01
_PYRAMID: Final = 4 / 3  # all levels, to the finest
_A_CELL: Final = 5000  # bytes in GeoJSON, rows and label images


def forecast_bytes(config: SimulateConfig, preset: Preset) -> int:
    """Return about how many bytes a slide takes, its truth included."""
    n_px = config.size_px**2
    layout, covered = preset.layout, config.share_covered
    per_mm2 = layout.cells_per_mm2 + sum(layout.bystanders.values())
    n_cells = per_mm2 * covered * n_px * (preset.mpp / 1000) ** 2
    if config.format in {"jpeg", "png"}:
        pixels = n_px * (_PNG if config.format == "png" else _JPEG)
    else:
        pixels = n_px * config.planes * _PYRAMID * (covered * _JPEG + (1 - covered) * _BLANK)
    return round(pixels + n_px * _BLANK + n_cells * _A_CELL)
