"""Stacks of focal planes for tests: a texture that is sharp in another plane in each column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import uniform_filter

COLUMN_PX = 128


def sharp(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a texture of 4 px, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(60, 240, (-(-height // 4), -(-width // 4), 3))
    return small.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.uint8)


def stack_of(height: int, n_planes: int = 3, *, width: int | None = None) -> np.ndarray:
    """Return planes of which number k is sharp in column k, uint8 (P, H, W, 3)."""
    width = n_planes * COLUMN_PX if width is None else width
    whole = sharp(height, width)
    planes = []
    for plane in range(n_planes):
        image = np.empty_like(whole)
        for column in range(-(-width // COLUMN_PX)):
            x = slice(column * COLUMN_PX, (column + 1) * COLUMN_PX)
            away = abs(plane - column % n_planes)
            size = (1 + 4 * away, 1 + 4 * away, 1)
            image[:, x] = uniform_filter(whole, size)[:, x]
        planes.append(image)
    return np.stack(planes)


def write_stack(
    path: Path, planes: np.ndarray, *, mpp: float = 0.25, levels: int = 1, **how
) -> str:
    """Write an OME-TIFF of tiled planes, 1.5 µm apart."""
    how = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", **how}
    metadata = {
        "axes": "ZYXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm", "PhysicalSizeZ": 1.5, "PhysicalSizeZUnit": "µm",
    }  # fmt: skip
    with tifffile.TiffWriter(path, ome=True) as out:
        out.write(planes, subifds=levels - 1, metadata=metadata, **how)
        for level in range(1, levels):
            step = 2**level
            h, w = (side // step * step for side in planes.shape[1:3])
            small = planes[:, :h, :w].reshape(len(planes), h // step, step, w // step, step, 3)
            out.write(small.mean((2, 4)).round().astype(np.uint8), subfiletype=1, **how)
    return str(path)
