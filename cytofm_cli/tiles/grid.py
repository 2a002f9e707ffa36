"""Lay a regular grid of tiles over a slide. Coordinates are level-0 pixels, (x, y)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cytofm_cli.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cytofm_cli.units import Size


def lay_grid(
    size_px0: Size,
    tile_px0: float,
    stride_px0: float,
    align_px0: int = 1,
) -> NDArray[np.int32]:
    """Return the top-left corners of a grid of tiles, row by row.

    Corner k of a row is floor(k * stride), brought down to a multiple of `align_px0`; so the
    corners increase, and neighbouring tiles of a stride equal to the tile leave no gap of a
    pixel or more. Every tile lies inside the slide; only a slide smaller than a tile is left by
    its single tile at (0, 0), which the reader pads.

    The last column and row are moved inwards to end at the slide's edge, so the whole slide is
    covered without invented pixels; where corners are aligned, they end at the last multiple
    that fits, and a strip narrower than `align_px0` is left out.

    Args:
        size_px0: width and height of the slide.
        tile_px0: side of a tile; not a whole number where the wanted µm/px is no level.
        stride_px0: distance between tiles, at least 1. More than the tile leaves gaps.
        align_px0: corners are multiples of it, to follow the file's own tiles.

    Returns:
        int32 (n, 2), at least one tile, no tile twice.

    Raises:
        UsageError: a size, a stride or an alignment below one pixel.
    """
    if not (min(size_px0) >= 1 and tile_px0 >= 1 and stride_px0 >= 1 and align_px0 >= 1):
        raise UsageError(
            f"no grid of {tile_px0:g} px tiles, {stride_px0:g} px apart, aligned to {align_px0} px "
            f"on {size_px0[0]} x {size_px0[1]} px: every length must be at least one pixel.",
            hint="give a larger --tile-px or --stride-px",
        )
    x_N, y_N = (_corners(side, tile_px0, stride_px0, align_px0) for side in size_px0)
    corners_HWC = np.empty((len(y_N), len(x_N), 2), np.int32)
    corners_HWC[..., 0] = x_N
    corners_HWC[..., 1] = y_N[:, None]
    return corners_HWC.reshape(-1, 2)


def _corners(side: int, tile: float, stride: float, align: int) -> NDArray[np.int64]:
    """Return the corners along one axis, increasing."""
    if side <= tile:
        return np.zeros(1, np.int64)
    last = int(side - tile) // align * align
    # One more than could fit: rounding down may bring it below `last`.
    corners = np.floor(np.arange(int(last / stride) + 2) * stride).astype(np.int64)
    corners = corners // align * align
    return np.unique(np.append(corners[corners <= last], last))
