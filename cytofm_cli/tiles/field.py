"""The tiles of a store as parts of one image, for steps that look across their borders.

Nuclei on the seam of two tiles, and crops around them, need pixels of both. The field is put
together from the stored tiles where the store holds pixels (so a result does not depend on
whether the slide is still at hand), else read from the slide.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.tiles.source import StoredTiles, TileSource, find_slide, open_tiles, plan_of
from cytofm_cli.units import Box, Size

_CACHED_TILES = 16  # the neighbours of a tile, and some to come


class Field(Protocol):
    """One image in which the tiles are boxes.

    Attributes:
        size_px: width and height.
        boxes: the tiles, in the order of the store, inside the image.
        mpp: µm/px.
        downsample: level-0 pixels to a pixel.
    """

    size_px: Size
    boxes: list[Box]
    mpp: float
    downsample: float

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return (box.h, box.w, 3) uint8 RGB; what no tile covers has the fill value."""
        ...


@contextlib.contextmanager
def open_field(store: Store, *, slides: Path | None = None) -> Iterator[Field]:
    """Open the tiles of a store as one image.

    Args:
        store: a store with the tile step done.
        slides: folder where the slides lie now, if they were moved since.
    """
    plan, size_px0 = plan_of(store), Size(*store.slide["size_px0"])
    fill = store.steps[schema.TILE_STEP]["fill"]
    if store.has(schema.TILE_PIXELS.path):
        with open_tiles(store) as tiles:
            yield TiledField(tiles, plan, size_px0, fill)
        return
    reader = open_slide(find_slide(store, slides), reader=store.slide["reader"])
    try:
        yield SlideField(reader, plan, store.read(schema.TILE_XY.path), fill)
    finally:
        reader.close()


def read_square(
    field: Field, x_px0: float, y_px0: float, side_px: int, fill: int
) -> NDArray[np.uint8]:
    """Return a square of the field centred on a level-0 point, filled beyond the image."""
    left = round(x_px0 / field.downsample - side_px / 2)
    top = round(y_px0 / field.downsample - side_px / 2)
    square = np.full((side_px, side_px, 3), fill, dtype=np.uint8)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + side_px, field.size_px.w), min(top + side_px, field.size_px.h)
    if x1 > x0 and y1 > y0:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = field.read(
            Box(x0, y0, x1 - x0, y1 - y0)
        )
    return square


class SlideField:
    """The level of the slide that the tiles were cut from."""

    def __init__(
        self, reader: SlideReader, plan: ReadPlan, xy_px0: NDArray[np.int32], fill: int
    ) -> None:
        self.size_px = reader.info.levels[plan.level].size_px
        self.mpp = plan.slide_mpp * plan.downsample
        self.downsample = plan.downsample
        self.fill = fill
        side = max(1, round(plan.tile_px * plan.scale))
        self.boxes = [_box(xy, plan.downsample, side, self.size_px) for xy in xy_px0.tolist()]
        self._reader, self._level = reader, plan.level

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return a box of the level."""
        return self._reader.read(self._level, box)


@dataclass(frozen=True)
class _Placed:
    x: int
    y: int
    index: int


class TiledField:
    """An image put together from stored tiles; a few decoded tiles are kept at hand."""

    def __init__(
        self, tiles: TileSource | StoredTiles, plan: ReadPlan, size_px0: Size, fill: int
    ) -> None:
        step = plan.downsample * plan.scale
        self.mpp, self.downsample, self.fill = plan.mpp, step, fill
        self.size_px = Size(max(1, round(size_px0.w / step)), max(1, round(size_px0.h / step)))
        corners = tiles.xy_px0.tolist()
        self.boxes = [_box(xy, step, plan.tile_px, self.size_px) for xy in corners]
        self._side = plan.tile_px
        self._tiles = tiles
        self._index: dict[tuple[int, int], list[_Placed]] = {}
        for index, box in enumerate(self.boxes):
            for cell in self._cells(Box(box.x, box.y, self._side, self._side)):
                self._index.setdefault(cell, []).append(_Placed(box.x, box.y, index))
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return a box, from all tiles that cover a part of it."""
        pixels = np.full((box.h, box.w, 3), self.fill, dtype=np.uint8)
        placed = {tile for cell in self._cells(box) for tile in self._index.get(cell, ())}
        for tile in sorted(placed, key=lambda tile: tile.index):
            x0, y0 = max(box.x, tile.x), max(box.y, tile.y)
            x1 = min(box.x + box.w, tile.x + self._side)
            y1 = min(box.y + box.h, tile.y + self._side)
            if x1 > x0 and y1 > y0:
                part = self._decoded(tile.index)[
                    y0 - tile.y : y1 - tile.y, x0 - tile.x : x1 - tile.x
                ]
                pixels[y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = part
        return pixels

    def _cells(self, box: Box) -> Iterator[tuple[int, int]]:
        side = self._side
        for row in range(box.y // side, (box.y + box.h - 1) // side + 1):
            for column in range(box.x // side, (box.x + box.w - 1) // side + 1):
                yield column, row

    def _decoded(self, index: int) -> NDArray[np.uint8]:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        tile = self._tiles.read(index)
        with self._lock:
            self._cache[index] = tile
            while len(self._cache) > _CACHED_TILES:
                self._cache.popitem(last=False)
        return tile


def _box(xy_px0: list[int], downsample: float, side: int, size: Size) -> Box:
    x, y = (min(round(v / downsample), s - 1) for v, s in zip(xy_px0, size, strict=True))
    return Box(x, y, min(side, size.w - x), min(side, size.h - y))
