"""Where later steps get the pixels of tiles: the store if it holds them, else the slide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.store import schema
from cytofm_cli.store.chunks import ShardedArrayReader
from cytofm_cli.store.io import Store
from cytofm_cli.store.rows import DAMAGE
from cytofm_cli.store.zarr3 import chunk_decoder
from cytofm_cli.tiles.focal import TileViews
from cytofm_cli.tiles.kept import shared
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ReadPlan, read_tile
from cytofm_cli.tiles.shown import open_shown, views_of

_ANEW: Final = "make the store again with `cytofm tile --overwrite`."


class TileSource(Protocol):
    """The tiles of one slide, in the order of the store; any thread may read."""

    xy_px0: NDArray[np.int32]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile as (tile_px, tile_px, 3) uint8 RGB."""
        ...


@runtime_checkable
class ManyTiles(TileSource, Protocol):
    """Tiles, or other squares, that cost less in an order of their own and many at a time."""

    def reading_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same rows, those that lie near to each other one after the other."""
        ...

    def read_many(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return (len(rows), tile_px, tile_px, 3) uint8 RGB."""
        ...


def read_many(tiles: TileSource, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return tiles as (len(rows), tile_px, tile_px, 3) uint8 RGB."""
    if isinstance(tiles, ManyTiles):
        return tiles.read_many(rows)
    return np.stack([tiles.read(int(row)) for row in rows])


def some_rows(tiles: TileSource, rows: NDArray[np.int64]) -> TileSource:
    """Return a choice of tiles, or of other squares, as a source of their own."""
    return _SomeOfMany(tiles, rows) if isinstance(tiles, ManyTiles) else _Some(tiles, rows)


class _Some:
    """Some rows of a source."""

    def __init__(self, tiles: Any, rows: NDArray[np.int64]) -> None:
        self.xy_px0 = tiles.xy_px0[rows]
        self._tiles, self._rows = tiles, rows

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one square."""
        square: NDArray[np.uint8] = self._tiles.read(int(self._rows[index]))
        return square


class _SomeOfMany(_Some):
    """Some rows of a source that has an order of its own."""

    def reading_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same rows, near ones one after the other."""
        ordered: NDArray[np.int64] = self._tiles.reading_order(self._rows[rows])
        place = np.argsort(self._rows, kind="stable")
        return place[np.searchsorted(self._rows, ordered, sorter=place)]

    def read_many(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return squares."""
        squares: NDArray[np.uint8] = self._tiles.read_many(self._rows[rows])
        return squares


@contextlib.contextmanager
def open_tiles(store: Store, *, slides: Path | None = None) -> Iterator[TileSource]:
    """Open the pixels of a store's tiles.

    Args:
        store: a store with the tile step done.
        slides: folder where the slides lie now, if they were moved since.

    Raises:
        StoreError: the store has no tiles.
        SlideError: the store has no pixels and the slide cannot be read.
    """
    fill, xy_px0 = store.tile.fill, store.tile_xy_px0
    source = f"{store.path.absolute()} {store.tile.identity}"
    if store.has(schema.TILE_PIXELS.path):
        with _pixels_of(store) as pixels:
            yield shared(StoredTiles(pixels, xy_px0), source)
        return
    with open_shown(store, slides=slides) as reader:
        tiles = SlideTiles(views_of(reader), plan_of(store), xy_px0, fill=fill)
        yield shared(tiles, source)


def _pixels_of(store: Store) -> ShardedArrayReader:
    try:
        return ShardedArrayReader(store.path / schema.TILE_PIXELS.path)
    except DAMAGE as error:
        raise StoreError(f"{store.path}: its pixels are damaged ({error}).", hint=_ANEW) from error


class StoredTiles:
    """Tiles whose pixels lie in the store."""

    def __init__(self, pixels: ShardedArrayReader, xy_px0: NDArray[np.int32]) -> None:
        self.xy_px0 = xy_px0
        self._pixels = pixels
        self._decode = chunk_decoder(pixels.codecs, pixels.chunk)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile, put together from its chunks."""
        try:
            chunks = self._pixels.row_chunks(index)
            if len(chunks) == 1 and chunks[0] is not None:
                return self._decode(chunks[0])
            return self._assemble(chunks)
        except DAMAGE as error:
            told = f"{self._pixels.path}: tile {index} is damaged ({error})."
            raise StoreError(told, hint=_ANEW) from error

    def _assemble(self, chunks: list[bytes | None]) -> NDArray[np.uint8]:
        side, chunk = self._pixels.shape[1], self._pixels.chunk[1]
        per_side = side // chunk
        tile = np.zeros((side, side, 3), dtype=np.uint8)
        for position, data in enumerate(chunks):
            row, column = divmod(position, per_side)
            if data is not None:
                y, x = row * chunk, column * chunk
                tile[y : y + chunk, x : x + chunk] = self._decode(data)
        return tile


class SlideTiles:
    """Tiles that are read from the slide each time."""

    def __init__(
        self, views: TileViews, plan: ReadPlan, xy_px0: NDArray[np.int32], *, fill: int
    ) -> None:
        self.xy_px0 = xy_px0
        self._views = views
        self._plan = plan
        self._fill = fill

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile."""
        x, y = (int(value) for value in self.xy_px0[index])
        return read_tile(self._views.reader(index), self._plan, x, y, fill=self._fill)
