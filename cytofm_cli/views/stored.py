"""Stored tiles with their nuclei, as `make_views` takes them.

Letters: B tiles, M nuclei, C colours, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cytofm_cli.errors import StoreError
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.run import read_nuclei
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.tiles.source import plan_of
from cytofm_cli.views import draws, masks
from cytofm_cli.views.make import pad_nuclei
from cytofm_cli.views.perturb import NcpConfig

_CHOICE: Final = 500  # what a key is folded with, beside `draws.Stream`, to choose tiles


class Readable(Protocol):
    """Squares of pixels by number."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one, (side, side, 3) uint8 RGB."""
        ...


class TileNuclei:
    """The nuclei of a slide tile by tile, in pixels of the tile.

    Whole numbers are centres of pixels, as everywhere in `views`; tables count from the
    corner of the first pixel instead.
    """

    def __init__(self, table: NucleusTable, corner_px0: NDArray[np.int32], plan: ReadPlan) -> None:
        self.table, self.has_outlines = table, len(table.contour_px0) > 0
        self._corner_px0, self._side_px = corner_px0, plan.tile_px
        self._px0 = plan.px0(1.0)
        self._by_y = np.argsort(table.xy_px0[:, 1], kind="stable")
        self._y_px0 = table.xy_px0[self._by_y, 1].astype(np.float64)

    def rows(self, tile: int) -> NDArray[np.intp]:
        """Return the rows of the table whose centroid lies in a tile, ascending."""
        top = float(self._corner_px0[tile, 1])
        reach = np.array([top - self._px0, top + (self._side_px + 1) * self._px0])
        first, last = np.searchsorted(self._y_px0, reach)
        near = self._by_y[first:last]
        xy = self.to_px(tile, self.table.xy_px0[near])
        within = ((xy >= -0.5) & (xy < self._side_px - 0.5)).all(1)
        found: NDArray[np.intp] = np.sort(near[within])
        return found

    def to_px(self, tile: int, xy_px0: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map points (p, 2) of the slide to pixels of a tile."""
        corner = self._corner_px0[tile].astype(np.float64)
        xy: NDArray[np.float64] = (xy_px0.astype(np.float64) - corner) / self._px0 - 0.5
        return xy

    def label_map(self, tile: int, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """Paint nuclei into a tile: int32 (H, W), j + 1 for the j-th of `rows`."""
        rings = [self.to_px(tile, self.table.polygon(row)) for row in rows.tolist()]
        label = masks.label_map(list(rings), self._side_px, self._side_px)
        xy = self.to_px(tile, self.table.xy_px0[rows])
        for number, ring in enumerate(rings):
            if not len(ring):  # a point among outlines: it counts as the pixel it lies in
                x, y = np.rint(xy[number]).astype(int).clip(0, self._side_px - 1)
                label[y, x] = label[y, x] or number + 1
        return label


def open_nuclei(store: Store, detector: str | None) -> tuple[str, TileNuclei]:
    """Return the name of the detector, None taking the only one, and its nuclei.

    Raises:
        StoreError: no tiles, no such nuclei, or several and none named.
    """
    if schema.TILE_STEP not in store.steps:
        raise StoreError(f"{store.path}: has no tiles.", hint="make them with `cytofm tile`.")
    name, table = read_nuclei(store, detector)
    return name, TileNuclei(table, store.read(schema.TILE_XY.path), plan_of(store))


@dataclass(frozen=True)
class Batch:
    """Tiles with their nuclei, as `make_views` takes them.

    Attributes:
        rows: of each tile, the rows of its nuclei in the table.
    """

    tile_BCHW: Tensor
    xy_BM2: NDArray[np.float64]
    valid_BM: NDArray[np.bool_]
    label_BHW: Tensor | None
    rows: list[NDArray[np.intp]]


def tile_keys(seed: int, slide_id: str, tiles: ArrayLike) -> draws.Keys:
    """Return the keys of some tiles; other slides and other tiles do not matter."""
    name = hashlib.blake2b(slide_id.encode(), digest_size=8).digest()
    first = np.frombuffer(name, "<u8")  # an array of one: its sums wrap round in silence
    return draws.sample_keys(seed, first + np.asarray(tiles).astype(np.uint64))


def draw_lots(seed: int, slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw a number for each tile; the smallest are chosen."""
    return draws.uniform(draws.fold(tile_keys(seed, slide_id, tiles), _CHOICE), 1)[:, 0]


def read_batch(source: Readable, nuclei: TileNuclei, tiles: Sequence[int], ncp: NcpConfig) -> Batch:
    """Read some tiles, and paint label maps where there are outlines and `ncp` uses them."""
    rows = [nuclei.rows(tile) for tile in tiles]
    points = [
        nuclei.to_px(tile, nuclei.table.xy_px0[some])
        for tile, some in zip(tiles, rows, strict=True)
    ]
    label = None
    uses_outlines = ncp.region == "boundary" or (ncp.fill != "none" and ncp.keep != "piece")
    if nuclei.has_outlines and uses_outlines:
        maps = [nuclei.label_map(tile, some) for tile, some in zip(tiles, rows, strict=True)]
        label = torch.from_numpy(np.stack(maps))
    pixels = np.stack([source.read(tile) for tile in tiles])
    return Batch(torch.from_numpy(pixels).movedim(-1, 1), *pad_nuclei(points), label, rows)
