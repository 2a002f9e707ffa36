"""Single tiles with what lies around them, by the rules of `tiles.field`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides.base import SlideReader
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import SlideAtHand, TiledField, mirrored, overlap, tiled_field
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ReadPlan, read_tile
from cytofm_cli.tiles.shown import open_shown, views_of
from cytofm_cli.tiles.source import StoredTiles, TileSource, open_tiles
from cytofm_cli.units import Box


@runtime_checkable
class Canvases(Protocol):
    """Tiles with what lies around them; any thread may read.

    Attributes:
        n_mirrored: how many reads so far had to mirror something.
    """

    n_mirrored: int

    def read(self, index: int, margin_px: int = 0) -> NDArray[np.uint8]:
        """Return a tile with a margin on every side, uint8 (side, side, 3) RGB."""
        ...


@contextlib.contextmanager
def open_canvases(store: Store, *, slides: Path | None = None) -> Iterator[Canvases]:
    """Open the tiles of a store with what lies around them.

    Args:
        store: a store with the tile step done.
        slides: folder where the slides lie now, if they were moved since.

    Raises:
        SlideError: the store holds no pixels and the slide cannot be read.
    """
    if store.has(schema.TILE_PIXELS.path):
        with open_tiles(store) as tiles, SlideAtHand(store, slides) as slide:
            yield StoredCanvases(tiled_field(store, tiles, slide), tiles)
        return
    with open_shown(store, slides=slides) as reader:
        yield SlideCanvases(reader, plan_of(store), store.tile_xy_px0, store.tile.fill)


class StoredCanvases:
    """Tiles of a store that holds their pixels, with what lies around them."""

    def __init__(self, field: TiledField, tiles: TileSource | StoredTiles) -> None:
        self._field, self._tiles, self.n_mirrored = field, tiles, 0
        self._lock = threading.Lock()

    def read(self, index: int, margin_px: int = 0) -> NDArray[np.uint8]:
        """Return a tile with a margin on every side."""
        x, y = self._field.corner(index)
        side = self._field.side_px + 2 * margin_px
        box = Box(x - margin_px, y - margin_px, side, side)
        if not margin_px and overlap(box, Box(0, 0, *self._field.size_px)) == box:
            return self._tiles.read(index)
        pixels, known = self._field.read_known(box)
        with self._lock:
            self.n_mirrored += not known.all()
        return pixels


class SlideCanvases:
    """Tiles that are read from the slide each time, with what lies around them."""

    def __init__(
        self, reader: SlideReader, plan: ReadPlan, xy_px0: NDArray[np.int32], fill: int
    ) -> None:
        self._reader, self._plan, self._xy_px0, self._fill = reader, plan, xy_px0, fill
        self.n_mirrored = 0
        self._lock = threading.Lock()

    def read(self, index: int, margin_px: int = 0) -> NDArray[np.uint8]:
        """Return a tile with a margin on every side."""
        plan = replace(self._plan, tile_px=self._plan.tile_px + 2 * margin_px)
        reader = self._reader if margin_px else views_of(self._reader).reader(index)
        shift = plan.px0(margin_px)
        x, y = (round(float(at) - shift) for at in self._xy_px0[index])
        pixels = read_tile(reader, plan, x, y, fill=self._fill)
        size = self._reader.info.levels[plan.level].size_px
        known_x, known_y = (
            _on_slide(at / plan.downsample, plan.scale, plan.tile_px, most)
            for at, most in ((x, size.w), (y, size.h))
        )
        if known_x.all() and known_y.all():
            return pixels
        with self._lock:
            self.n_mirrored += 1
        return mirrored(pixels, known_y[:, None] & known_x)


def _on_slide(first: float, scale: float, count: int, most: int) -> NDArray[np.bool_]:
    """Tell which of `count` pixels of a tile lie wholly on a level of `most` pixels."""
    left = round(first) + np.arange(count) * scale
    return np.asarray((left >= -1e-6) & (left + scale <= most + 1e-6))
