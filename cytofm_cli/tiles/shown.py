"""A slide as the tiles of its store show it: at their planes, fused, or as it is.

What a step reads around and between tiles has the focus of the tiles: `open_shown` is how every
step after `tile` opens the slide of a store.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides.base import NativeJpeg, SlideReader, check_box
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles import fuse
from cytofm_cli.tiles.damage import Damage
from cytofm_cli.tiles.focal import TilePlanes, TileViews, at_focus
from cytofm_cli.tiles.focal_word import BEST, FUSE
from cytofm_cli.tiles.origin import find_slide, refuse_changed
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.tiles.settings import focus_of_record
from cytofm_cli.units import Box

_BLOCK_PX: Final = 1024  # of what is fused at a time: P planes of it are in memory


@contextlib.contextmanager
def open_shown(store: Store, *, slides: Path | None = None) -> Iterator[SlideReader]:
    """Open the slide of a store as its tiles show it.

    Args:
        store: a store with the tile step done.
        slides: folder where the slides lie now, if they were moved since.

    Raises:
        SlideError: it cannot be read; or, at the end, it has become another one meanwhile.
    """
    path = find_slide(store, slides)
    with open_slide(path, reader=store.slide.reader) as reader:
        yield shown(reader, store)
    refuse_changed(path, store.slide.fingerprint)


def shown(reader: SlideReader, store: Store) -> SlideReader:
    """Return an open slide as the tiles of its store show it; it lives as long as `reader`."""
    focus = focus_of_record(store.tile, store.slide)
    if focus == FUSE:
        return FusedReader(reader, store.slide.mpp)
    if focus == BEST:
        plane_N = store.read(schema.TILE_PLANE.path)
        return BestReader(reader, store.tile_xy_px0, store.tile.tile_px0, plane_N)
    return at_focus(reader, focus)


def as_planned(
    reader: SlideReader,
    focus: str | None,
    xy_px0: NDArray[np.int32],
    read: ReadPlan,
    planes: TilePlanes | None,
) -> SlideReader:
    """Return a slide as tiles that are not stored yet will show it; see `shown`."""
    if focus == FUSE:
        return FusedReader(reader, read.slide_mpp)
    if planes is None:
        return reader
    return BestReader(reader, xy_px0, read.tile_px0, planes.plane_N)


def views_of(reader: SlideReader) -> TileViews:
    """Return the reader of each tile of what `shown` gave."""
    return reader.views if isinstance(reader, BestReader) else TileViews([reader])


class FusedReader(SlideReader):
    """A slide whose planes are fused where they are read; see `fuse`. Overviews are not."""

    def __init__(self, reader: SlideReader, slide_mpp: float) -> None:
        self.info = reader.info
        self._reader, self._mpp = reader, slide_mpp
        self._planes = [reader.at_plane(plane) for plane in range(self.info.n_focal_planes)]
        self._views = TileViews(self._planes, np.arange(len(self._planes), dtype=np.int16))
        self._damage = Damage()

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        mpp = self._mpp * self.info.levels[level].downsample
        if mpp > fuse.COARSEST_MPP:
            return self._reader.read(level, box)
        windows = fuse.windows_for(mpp)
        out = np.empty((box.h, box.w, 3), np.uint8)
        for top in range(0, box.h, _BLOCK_PX):
            for left in range(0, box.w, _BLOCK_PX):
                w, h = min(_BLOCK_PX, box.w - left), min(_BLOCK_PX, box.h - top)
                part = Box(box.x + left, box.y + top, w, h)
                out[top : top + h, left : left + w] = self._fused(level, part, windows)
        return out

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`, of the middle plane: too coarse for focus."""
        return self._reader.overview(downsample)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return None: the file has no tile with these pixels."""
        return None

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def _fused(self, level: int, part: Box, windows: fuse.Windows) -> NDArray[np.uint8]:
        width, height = self.info.levels[level].size_px
        step, halo = windows.step, windows.halo_px
        left, top = (max(0, at // step * step - halo) for at in (part.x, part.y))
        right, below = (
            min(most, math.ceil(end / step) * step + halo)
            for end, most in ((part.x + part.w, width), (part.y + part.h, height))
        )
        around = Box(left, top, right - left, below - top)
        planes = [plane.read(level, around) for plane in self._planes]
        details = [fuse.detail(plane, windows) for plane in planes]
        chosen_hw = fuse.choose(details, self.info.focal_plane, windows)
        self._refuse_damage(level, part, around, chosen_hw, fuse.at_odds(planes), windows)
        fused = fuse.blend(planes, chosen_hw, windows)
        x, y = part.x - left, part.y - top
        return fused[y : y + part.h, x : x + part.w]

    def _refuse_damage(
        self,
        level: int,
        part: Box,
        around: Box,
        chosen_hw: NDArray[np.uint8],
        odd: dict[int, NDArray[np.bool_]],
        windows: fuse.Windows,
    ) -> None:
        """Decode the file's own JPEG tiles once for a check, where a plane is shown that is odd.

        All tiles of all planes would cost more than fusing: what is damaged differs from the other
        planes in what focus does not change, and is looked at more closely for it.

        Raises:
            SlideError: one is damaged.
        """
        margin = windows.step * windows.blend
        for plane in np.intersect1d(np.unique(chosen_hw), list(odd)).tolist():
            jpeg = self._views.jpeg(plane, level)
            if jpeg is None:
                continue
            spans = [
                _tiles_along(start - margin, length + 2 * margin, side, from_px, most)
                for start, length, side, from_px, most in zip(
                    part[:2], part[2:], jpeg.tile_px, around[:2], around[2:], strict=True
                )
            ]
            for (column, x), (row, y) in itertools.product(*spans):
                cells = (_cells(y, windows.step), _cells(x, windows.step))
                blocks = (_cells(y, fuse.ODD_PX), _cells(x, fuse.ODD_PX))
                if odd[plane][blocks].any() and (chosen_hw[cells] == plane).any():
                    self._damage.stream(jpeg, column, row)


def _tiles_along(
    start: int, length: int, side: int, from_px: int, n_px: int
) -> list[tuple[int, tuple[int, int]]]:
    """Return which tiles lie on a span of an axis, and where within `n_px` from `from_px`."""
    first, end = max(start, from_px), min(start + length, from_px + n_px)
    return [
        (number, (max(number * side, first) - from_px, min(number * side + side, end) - from_px))
        for number in range(first // side, -(-end // side))
    ]


def _cells(span: tuple[int, int], step: int) -> slice:
    return slice(span[0] // step, -(-span[1] // step))


class BestReader(SlideReader):
    """A slide at the plane of the tile that lies there, last tile on top; else of the nearest.

    Args:
        reader: reads the planes.
        xy_px0: (N, 2) top-left corners of the tiles.
        tile_px0: their side.
        plane_N: the plane of each.
    """

    def __init__(
        self,
        reader: SlideReader,
        xy_px0: NDArray[np.int32],
        tile_px0: float,
        plane_N: NDArray[np.int16],
    ) -> None:
        self.info = reader.info
        self._reader = reader
        self._planes = [reader.at_plane(plane) for plane in range(self.info.n_focal_planes)]
        self.views = TileViews(self._planes, plane_N)
        self._xy_px0, self._tile_px0, self._plane_N = xy_px0, tile_px0, plane_N
        self._nearest_HW = _nearest(self.info.size_px0, xy_px0, tile_px0, plane_N)

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        plane_HW = self._plane_of_pixels(level, box)
        used = np.flatnonzero(np.bincount(plane_HW.ravel())).tolist()
        if len(used) == 1:
            return self._planes[used[0]].read(level, box)
        out = np.empty((box.h, box.w, 3), np.uint8)
        for plane in used:
            here_HW = plane_HW == plane
            rows, columns = np.flatnonzero(here_HW.any(1)), np.flatnonzero(here_HW.any(0))
            x, y, right, below = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            part = Box(box.x + int(x), box.y + int(y), int(right - x), int(below - y))
            window = (slice(y, below), slice(x, right))
            pixels = self._planes[plane].read(level, part)
            np.copyto(out[window], pixels, where=here_HW[window][..., None])
        return out

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`, of the middle plane: too coarse for focus."""
        return self._reader.overview(downsample)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return None: the file's tiles may be of several planes; see `views`."""
        return None

    def close(self) -> None:
        """Release the file."""
        self._reader.close()

    def _plane_of_pixels(self, level: int, box: Box) -> NDArray[np.int16]:
        downsample = self.info.levels[level].downsample
        side = max(1, round(self._tile_px0 / downsample))
        rows_H, columns_W = (
            np.minimum(
                ((start + np.arange(count) + 0.5) * downsample / self._tile_px0).astype(np.int64),
                most - 1,
            )
            for start, count, most in zip(
                (box.y, box.x), (box.h, box.w), self._nearest_HW.shape, strict=True
            )
        )
        plane_HW: NDArray[np.int16] = self._nearest_HW[np.ix_(rows_H, columns_W)]
        corner_N2 = np.round(self._xy_px0 / downsample).astype(np.int64) - (box.x, box.y)
        on_N = ((corner_N2 + side > 0) & (corner_N2 < (box.w, box.h))).all(1)
        for row in np.flatnonzero(on_N).tolist():
            x, y = corner_N2[row].tolist()
            plane_HW[max(0, y) : y + side, max(0, x) : x + side] = self._plane_N[row]
        return plane_HW


def _nearest(
    size_px0: tuple[int, int],
    xy_px0: NDArray[np.int32],
    tile_px0: float,
    plane_N: NDArray[np.int16],
) -> NDArray[np.int16]:
    """Return the plane of the nearest tile, for squares of the size of a tile over the slide."""
    from scipy.ndimage import distance_transform_edt

    shape = tuple(math.ceil(side / tile_px0) for side in reversed(size_px0))
    number_HW = np.full(shape, -1, np.int64)
    cells_N2 = ((xy_px0 + tile_px0 / 2) / tile_px0).astype(np.int64)
    x_N, y_N = np.minimum(cells_N2, (shape[1] - 1, shape[0] - 1)).T
    number_HW[y_N, x_N] = np.arange(len(xy_px0))
    near = distance_transform_edt(number_HW < 0, return_distances=False, return_indices=True)
    nearest: NDArray[np.int16] = plane_N[number_HW[near[0], near[1]]]
    return nearest
