"""The tiles of a store as parts of one image, for steps that look across their borders.

Nuclei on the seam of two tiles, crops around them and views need pixels of both. Where the
store holds pixels the field is put together from its tiles; what they do not cover comes from
the slide if it is at hand, else it is what they do cover, mirrored. Pixels past the edge of the
slide are mirrored too: glass that nobody saw would draw edges through cells. Where the store
holds no pixels, the field is a level of the slide.

Images of cells (`tiles.cells`) lie apart: a box shows only the tile under its middle, and past that
the background of a cut-out cell, or the mirrored tile.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.origin import find_slide, plan_of
from cytofm_cli.tiles.read import ReadPlan, resample
from cytofm_cli.tiles.shown import open_shown, shown
from cytofm_cli.tiles.source import StoredTiles, TileSource, open_tiles
from cytofm_cli.units import Box, Size
from cytofm_cli.work.closing import Closes

_CACHED_BYTES: Final = 2**25  # of decoded tiles
_CACHED_TILES: Final = (16, 128)  # the neighbours of a tile, and some to come; and the most


_STRIP_PX: Final = 4096  # of a slide, whose readers keep tiles of their own


class Field(Protocol):
    """One image in which the tiles are boxes.

    Attributes:
        size_px: width and height.
        boxes: the tiles, in the order of the store, inside the image.
        mpp: µm/px.
        downsample: level-0 pixels to a pixel.
        strip_px: width of the strips in which many small parts are best read, downwards.
        apart: no tile is the neighbour of another, and boxes may reach past the image.
    """

    size_px: Size
    boxes: list[Box]
    mpp: float
    downsample: float
    strip_px: int
    apart: bool

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return (box.h, box.w, 3) uint8 RGB."""
        ...

    def known(self, box: Box) -> NDArray[np.bool_]:
        """Return bool (box.h, box.w), False where `read` can only mirror."""
        ...

    @property
    def beyond(self) -> list[str]:
        """What was read so far past the tiles: "slide", "mirror", both or nothing."""
        ...


@contextlib.contextmanager
def open_field(store: Store, *, slides: Path | None = None) -> Iterator[Field]:
    """Open the tiles of a store as one image.

    Args:
        store: a store with the tile step done.
        slides: folder where the slides lie now, if they were moved since.
    """
    if store.has(schema.TILE_PIXELS.path):
        with open_tiles(store) as tiles, SlideAtHand(store, slides) as slide:
            yield tiled_field(store, tiles, slide)
        return
    with open_shown(store, slides=slides) as reader:
        yield SlideField(reader, plan_of(store), store.tile_xy_px0, store.tile.fill)


def tiled_field(store: Store, tiles: TileSource | StoredTiles, slide: SlideAtHand) -> TiledField:
    """Return the stored tiles of a slide, or of cells, as one image."""
    size_px0, tile = Size(*store.slide.size_px0), store.tile
    if tile.apart is None:
        return TiledField(tiles, plan_of(store), size_px0, tile.fill, slide)
    return TiledField(tiles, plan_of(store), size_px0, tile.fill, apart=tile.apart)


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
        self.strip_px = _STRIP_PX
        self.apart = False
        self._reader, self._level = reader, plan.level

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return a box of the level."""
        return self._reader.read(self._level, box)

    def known(self, box: Box) -> NDArray[np.bool_]:
        """Return bool (box.h, box.w): all of it."""
        return np.ones((box.h, box.w), dtype=bool)

    @property
    def beyond(self) -> list[str]:
        """What was read past the tiles: nothing, tiles are no more than boxes here."""
        return []


class SlideAtHand(Closes):
    """The slide of a store at the resolution of its tiles, opened when it is first needed.

    Remote slides count as not at hand: a step on stores does not wait for the network.
    """

    def __init__(self, store: Store, slides: Path | None) -> None:
        self._store, self._slides, self._plan = store, slides, plan_of(store)
        self._lock = threading.Lock()
        self._reader: SlideReader | None = None
        self._file: SlideReader | None = None
        self._missing = store.slide.is_remote

    def read(self, box: Box) -> NDArray[np.uint8] | None:
        """Return a box inside the slide, in pixels of the tiles; None: not at hand, or damaged."""
        reader = self._opened()
        if reader is None:
            return None
        scale, size = self._plan.scale, reader.info.levels[self._plan.level].size_px
        left, top = (
            min(round(at * scale), most - 1) for at, most in zip(box[:2], size, strict=True)
        )
        right = min(max(round((box.x + box.w) * scale), left + 1), size.w)
        below = min(max(round((box.y + box.h) * scale), top + 1), size.h)
        try:
            pixels = reader.read(self._plan.level, Box(left, top, right - left, below - top))
        except SlideError:  # of a part that no tile was cut from: no reason to give up
            return None
        return resample(pixels, box.w, box.h)

    @property
    def is_exact(self) -> bool:
        """Tell whether pixels are those of the level, not resampled."""
        return self._plan.scale == 1

    def is_there(self) -> bool:
        """Tell whether the slide can be read."""
        return self._opened() is not None

    def close(self) -> None:
        """Close the slide, if it was opened; it is not opened again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = self._reader = None
            self._missing = True

    def _opened(self) -> SlideReader | None:
        with self._lock:
            if self._reader is None and not self._missing:
                try:
                    path = find_slide(self._store, self._slides)
                    self._file = open_slide(path, reader=self._store.slide.reader)
                    self._reader = shown(self._file, self._store)
                except SlideError:
                    self._missing = True
            return self._reader


@dataclass(frozen=True)
class _Placed:
    x: int
    y: int
    index: int


class TiledField:
    """An image put together from stored tiles; a few decoded tiles are kept at hand.

    Args:
        tiles: the stored ones.
        plan: how they were read.
        size_px0: of level 0.
        fill: grey level where nothing at all is known.
        slide: where pixels past the tiles come from; None: they are mirrored.
        apart: of images of cells: "cut-out" or "border"; see `TileRecord`.
    """

    def __init__(
        self,
        tiles: TileSource | StoredTiles,
        plan: ReadPlan,
        size_px0: Size,
        fill: int,
        slide: SlideAtHand | None = None,
        *,
        apart: str | None = None,
    ) -> None:
        self.apart, self._is_cut_out = apart is not None, apart == "cut-out"
        step = plan.downsample * plan.scale
        self.mpp, self.downsample, self.fill = plan.mpp, step, fill
        self.size_px = Size(max(1, round(size_px0.w / step)), max(1, round(size_px0.h / step)))
        corners = tiles.xy_px0.tolist()
        self.boxes = [_box(xy, step, plan.tile_px, self.size_px) for xy in corners]
        self._side = self.side_px = plan.tile_px
        least, most = _CACHED_TILES
        self._n_cached = min(max(_CACHED_BYTES // (3 * plan.tile_px**2), least), most)
        # Two rows of a strip and its neighbours are kept, and some tiles for other threads.
        self.strip_px = self._side * max(1, self._n_cached // 2 - 4)
        self._tiles, self._slide = tiles, slide
        self._index: dict[tuple[int, int], list[_Placed]] = {}
        for index, box in enumerate(self.boxes):
            for cell in self._cells(Box(box.x, box.y, self._side, self._side)):
                self._index.setdefault(cell, []).append(_Placed(box.x, box.y, index))
        self._lock = threading.Lock()
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._beyond: set[str] = set()

    @property
    def beyond(self) -> list[str]:
        """What was read so far past the tiles: "slide", "mirror", both or nothing."""
        return sorted(self._beyond)

    def known(self, box: Box) -> NDArray[np.bool_]:
        """Return bool (box.h, box.w), False where `read` can only mirror."""
        known = np.zeros((box.h, box.w), dtype=bool)
        for tile in self._placed(box):
            part = overlap(box, self.boxes[tile.index])
            if part is not None:
                known[_window(part, box.x, box.y)] = True
        inside = overlap(box, Box(0, 0, *self.size_px))
        if inside is not None and not known.all() and self._slide and self._slide.is_there():
            known[_window(inside, box.x, box.y)] = True
        return known | self._is_cut_out

    def corner(self, index: int) -> tuple[int, int]:
        """Return where a tile starts."""
        return self.boxes[index].x, self.boxes[index].y

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Return a box, which may reach past the image; see the module's text."""
        part = self._in_one_tile(box)
        return self.read_known(box)[0] if part is None else part

    def _in_one_tile(self, box: Box) -> NDArray[np.uint8] | None:
        """Return a box that the last tile on it, which would be pasted over all others, holds."""
        placed = self._placed(box)
        if not placed:
            return None
        last = placed[-1]
        if overlap(box, self.boxes[last.index]) != box:
            return None
        return self._decoded(last.index)[_window(box, last.x, last.y)].copy()

    def read_known(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return a box and, bool (box.h, box.w), False where it is mirrored."""
        pixels = np.full((box.h, box.w, 3), self.fill, dtype=np.uint8)
        known = np.zeros((box.h, box.w), dtype=bool)
        self._paste_tiles(box, pixels, known)
        inside = overlap(box, Box(0, 0, *self.size_px))
        if inside is not None and not known.all():
            self._paste_slide(box, inside, pixels, known)
        if self._is_cut_out:  # what is past a tile is the background, as in it
            known[:] = True
        if not known.all():
            self._beyond.add("mirror")
            pixels = mirrored(pixels, known)
        return pixels, known

    def _paste_tiles(self, box: Box, pixels: NDArray[np.uint8], known: NDArray[np.bool_]) -> None:
        for tile in self._placed(box):
            # The part on the slide: a tile is filled where it hangs over the edge.
            part = overlap(box, self.boxes[tile.index])
            if part is not None:
                within = _window(part, tile.x, tile.y)
                pixels[_window(part, box.x, box.y)] = self._decoded(tile.index)[within]
                known[_window(part, box.x, box.y)] = True

    def _paste_slide(
        self, box: Box, inside: Box, pixels: NDArray[np.uint8], known: NDArray[np.bool_]
    ) -> None:
        if self._slide is None:
            return
        window = _window(inside, box.x, box.y)
        # Resampled pixels depend on where a box starts: then all of it is one.
        parts = gaps(known[window]) if self._slide.is_exact else [Box(0, 0, inside.w, inside.h)]
        for part in parts:
            there = Box(inside.x + part.x, inside.y + part.y, part.w, part.h)
            slide = self._slide.read(there)
            if slide is None:
                continue
            self._beyond.add("slide")
            own = _window(there, box.x, box.y)
            np.copyto(pixels[own], slide, where=~known[own][..., None])
            known[own] = True

    def _placed(self, box: Box) -> list[_Placed]:
        if self.apart:
            box = Box(box.x + box.w // 2, box.y + box.h // 2, 1, 1)
        placed = {tile for cell in self._cells(box) for tile in self._index.get(cell, ())}
        return sorted(placed, key=lambda tile: tile.index)

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
            while len(self._cache) > self._n_cached:
                self._cache.popitem(last=False)
        return tile


def _box(xy_px0: list[int], downsample: float, side: int, size: Size) -> Box:
    x, y = (min(round(v / downsample), s - 1) for v, s in zip(xy_px0, size, strict=True))
    return Box(x, y, min(side, size.w - x), min(side, size.h - y))


def mirrored(pixels: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Fill what is not known with the mirror image of what is.

    Args:
        pixels: uint8 (H, W, 3).
        known: bool (H, W); if nothing is, the pixels come back as they are.
    """
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    if not len(rows):
        return pixels
    top, below, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = known.shape
    if known[top:below, left:right].all():
        around = ((top, height - below), (left, width - right), (0, 0))
        return np.pad(pixels[top:below, left:right], around, mode="symmetric")
    from scipy.ndimage import distance_transform_edt

    # Any other shape: the point behind the nearest known pixel, or that pixel itself.
    near = distance_transform_edt(~known, return_distances=False, return_indices=True)
    y, x = 2 * near - np.indices(known.shape)
    y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
    y, x = np.where(known[y, x], (y, x), near)
    filled: NDArray[np.uint8] = pixels[y, x]
    return filled


def gaps(known_HW: NDArray[np.bool_]) -> list[Box]:
    """Return boxes that cover what is not known and nothing else, from top to bottom."""
    height = len(known_HW)
    changes = np.flatnonzero((known_HW[1:] != known_HW[:-1]).any(1)) + 1
    found = []
    for top, below in itertools.pairwise([0, *changes.tolist(), height]):
        edges = np.diff(np.concatenate([[0], ~known_HW[top], [0]]).astype(np.int8))
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        for left, right in zip(starts.tolist(), stops.tolist(), strict=True):
            found.append(Box(left, top, right - left, below - top))
    return found


def overlap(first: Box, second: Box) -> Box | None:
    """Return what two boxes have in common, None if nothing."""
    x0, y0 = max(first.x, second.x), max(first.y, second.y)
    x1, y1 = (
        min(first.x + first.w, second.x + second.w),
        min(first.y + first.h, second.y + second.h),
    )
    return Box(x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None


def _window(part: Box, x: int, y: int) -> tuple[slice, slice]:
    """Return the index of a box in an image whose corner lies at (x, y)."""
    return slice(part.y - y, part.y - y + part.h), slice(part.x - x, part.x - x + part.w)
