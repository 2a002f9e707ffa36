"""Where later steps get the pixels of tiles: the store if it holds them, else the slide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cytofm_cli import urls
from cytofm_cli.errors import SlideError, StoreError
from cytofm_cli.runs import provenance
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import schema
from cytofm_cli.store.chunks import ShardedArrayReader
from cytofm_cli.store.io import Store
from cytofm_cli.store.rows import DAMAGE
from cytofm_cli.store.zarr3 import chunk_decoder
from cytofm_cli.tiles.kept import shared
from cytofm_cli.tiles.read import ReadPlan, read_tile

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
    with open_slide(find_slide(store, slides), reader=store.slide.reader) as reader:
        yield shared(SlideTiles(reader, plan_of(store), xy_px0, fill=fill), source)


def _pixels_of(store: Store) -> ShardedArrayReader:
    try:
        return ShardedArrayReader(store.path / schema.TILE_PIXELS.path)
    except DAMAGE as error:
        raise StoreError(f"{store.path}: its pixels are damaged ({error}).", hint=_ANEW) from error


def plan_of(store: Store) -> ReadPlan:
    """Return how the tiles of a store were cut from its slide."""
    record = store.tile
    return ReadPlan(
        level=record.level,
        downsample=store.slide.levels[record.level].downsample,
        scale=record.scale,
        tile_px=record.tile_px,
        mpp=record.mpp,
        slide_mpp=store.slide.mpp,
    )


def find_slide(store: Store, slides: Path | None) -> str:
    """Return the path of a store's slide, looking in `slides` for a moved one.

    Raises:
        SlideError: it is at neither place, or another file lies there; or it is behind a URL that
            the user does not give again: a store may come from anybody.
    """
    path = store.slide.path
    if store.slide.is_remote:
        return _remote(store, slides)
    moved = [] if slides is None else [slides / Path(path).name]
    for candidate in [*moved, Path(path)]:
        if candidate.exists():
            if provenance.fingerprint(candidate) != store.slide.fingerprint:
                raise SlideError(
                    f"{candidate}: is not the slide that {store.path.name} was tiled from.",
                    hint="--slides must name the folder of the same files; else tile it anew.",
                )
            return str(candidate)
    raise SlideError(
        f"{path}: the slide of {store.path.name} is not there, and the store holds no pixels.",
        hint="--slides DIR says where it is now.",
    )


def _remote(store: Store, slides: Path | None) -> str:
    """Return the URL of a slide if the user, and not the store alone, says to go there."""
    stored = store.slide.path
    url = None if slides is None else urls.of_given(str(slides), stored)
    if url is None:
        raise SlideError(
            f"{store.path}: its slide is at {stored}, and the store holds no pixels.",
            hint="to read it from there, say so: --slides with that URL, or with its folder's.",
        )
    urls.check_url(url)
    return url


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
        self, reader: SlideReader, plan: ReadPlan, xy_px0: NDArray[np.int32], *, fill: int
    ) -> None:
        self.xy_px0 = xy_px0
        self._reader = reader
        self._plan = plan
        self._fill = fill

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile."""
        x, y = (int(value) for value in self.xy_px0[index])
        return read_tile(self._reader, self._plan, x, y, fill=self._fill)
