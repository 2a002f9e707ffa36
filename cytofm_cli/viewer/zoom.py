"""Squares of a slide at any zoom: which level they come from, and their pixels.

Zoom z has 2^(`Zooms.deepest` − z) level-0 pixels to a pixel, so that zoom 0 shows the whole slide
in one square. A square that reaches past the slide is filled with the colour of its glass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import UsageError
from cytofm_cli.slides.base import Level, SlideInfo, finest_level_for
from cytofm_cli.tiles.read import Readable, ReadPlan, read_tile
from cytofm_cli.units import Box, Size
from cytofm_cli.work.opencv import opencv

SQUARE_PX: Final = 512
# Side of what one square may read of a level. A slide without pyramid is seen through the store's
# thumbnail where that says more than a blank square and the file would be read as a whole.
MOST_READ_PX: Final = 4096


@dataclass(frozen=True)
class Region:
    """A square of a slide: left and top edge and side in level-0 pixels, and its side shown."""

    x_px0: float
    y_px0: float
    side_px0: float
    side_px: int = SQUARE_PX

    @property
    def scale(self) -> float:
        """Level-0 pixels to a pixel."""
        return self.side_px0 / self.side_px


@dataclass(frozen=True)
class Zooms:
    """The zooms of a slide, by its size."""

    size_px0: Size

    @property
    def deepest(self) -> int:
        """The zoom of one level-0 pixel to a pixel."""
        squares = -(-max(self.size_px0) // SQUARE_PX)
        return (squares - 1).bit_length()

    def region(self, zoom: int, column: int, row: int) -> Region:
        """Return a square of the grid.

        Raises:
            UsageError: there is none.
        """
        if 0 <= zoom <= self.deepest:
            side = SQUARE_PX << (self.deepest - zoom)
            if 0 <= column * side < self.size_px0.w and 0 <= row * side < self.size_px0.h:
                return Region(column * side, row * side, side)
        raise UsageError(f"no square {column}, {row} at zoom {zoom}.")


class Thumbnail:
    """The thumbnail of a store as one more level of its slide."""

    def __init__(self, image_HWC: NDArray[np.uint8], size_px0: Size) -> None:
        height, width = image_HWC.shape[:2]
        downsample = (size_px0.w / width + size_px0.h / height) / 2
        level = Level(size_px=Size(width, height), downsample=downsample)
        self.info = SlideInfo(path="thumbnail", reader="store", format="zarr", levels=(level,))
        self._image_HWC = image_HWC

    @property
    def downsample(self) -> float:
        """Level-0 pixels to a pixel."""
        return self.info.levels[0].downsample

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Return a box of it."""
        return self._image_HWC[box.y : box.y + box.h, box.x : box.x + box.w]


def read_region(
    slide: Readable | None, thumbnail: Thumbnail, region: Region, *, fill: int = 255
) -> NDArray[np.uint8]:
    """Read a square as (side_px, side_px, 3) uint8 RGB.

    Args:
        slide: open for reading; None: it is gone, and the thumbnail is all there is.
        thumbnail: of the store.
        region: the square.
        fill: grey level past the edge of the slide.

    Raises:
        SlideError: the slide is damaged there.
    """
    source: Readable = thumbnail
    level = 0
    if slide is not None:
        level = finest_level_for(slide.info.levels, region.scale)
        coarse = slide.info.levels[level].downsample
        better = coarse < thumbnail.downsample <= region.scale
        if not better and region.side_px0 / coarse <= MOST_READ_PX:
            source = slide
    level = level if source is slide else 0
    downsample = source.info.levels[level].downsample
    plan = ReadPlan(
        level=level,
        downsample=downsample,
        scale=1.0,
        tile_px=max(1, round(region.side_px0 / downsample)),
        mpp=downsample,
        slide_mpp=1.0,
    )
    pixels = read_tile(source, plan, round(region.x_px0), round(region.y_px0), fill=fill)
    return _resized(pixels, region.side_px)


def _resized(pixels_HWC: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Shrink by means or enlarge smoothly: for eyes, in a third of the time of Lanczos."""
    if len(pixels_HWC) == side_px:
        return pixels_HWC
    cv2 = opencv()
    how = cv2.INTER_AREA if len(pixels_HWC) > side_px else cv2.INTER_CUBIC
    resized: NDArray[np.uint8] = cv2.resize(pixels_HWC, (side_px, side_px), interpolation=how)
    return resized
