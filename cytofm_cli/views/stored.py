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

from cytofm_cli.errors import UsageError
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.canvas import Canvases
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.views import crops, draws, masks
from cytofm_cli.views.make import pad_nuclei
from cytofm_cli.views.ncp import NcpConfig

NOMINAL_RADIUS_UM: Final = 4.0  # of a nucleus of which only a point is known
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
        self.corner_px0, self._side_px = corner_px0, plan.tile_px
        self._px0, self._mpp = plan.px0(1.0), plan.mpp
        self._by_y = np.argsort(table.xy_px0[:, 1], kind="stable")
        self._y_px0 = table.xy_px0[self._by_y, 1].astype(np.float64)

    def rows(self, tile: int) -> NDArray[np.intp]:
        """Return the rows of the table whose centroid lies in a tile, ascending."""
        return self._within(tile, 0)

    def rows_around(self, tile: int, margin_px: int) -> NDArray[np.intp]:
        """Return the rows whose centroid lies in the margin of a tile, ascending."""
        return np.setdiff1d(self._within(tile, margin_px), self.rows(tile), assume_unique=True)

    def _within(self, tile: int, margin_px: int) -> NDArray[np.intp]:
        top, low, high = float(self.corner_px0[tile, 1]), -margin_px, self._side_px + margin_px
        reach = np.array([top + (low - 1) * self._px0, top + (high + 1) * self._px0])
        first, last = np.searchsorted(self._y_px0, reach)
        near = self._by_y[first:last]
        xy = self.to_px(tile, self.table.xy_px0[near])
        within = ((xy >= low - 0.5) & (xy < high - 0.5)).all(1)
        found: NDArray[np.intp] = np.sort(near[within])
        return found

    def to_px(self, tile: int, xy_px0: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map points (p, 2) of the slide to pixels of a tile."""
        corner = self.corner_px0[tile].astype(np.float64)
        xy: NDArray[np.float64] = (xy_px0.astype(np.float64) - corner) / self._px0 - 0.5
        return xy

    def label_map(self, tile: int, rows: NDArray[np.intp], margin_px: int = 0) -> NDArray[np.int32]:
        """Paint nuclei into a tile with its margin: int32 (H, W), j + 1 for the j-th of `rows`.

        A point without an outline counts as a disk of its area, or of `NOMINAL_RADIUS_UM`.
        """
        side = self._side_px + 2 * margin_px
        rings = [self.to_px(tile, self._ring_px0(row)) + margin_px for row in rows.tolist()]
        return masks.label_map(list(rings), side, side)

    def _ring_px0(self, row: int) -> NDArray[np.floating]:
        polygon = self.table.polygon(row)
        if len(polygon):
            return polygon
        area = float(self.table.area_um2[row])
        radius_um = np.sqrt(area / np.pi) if area > 0 else NOMINAL_RADIUS_UM
        angle = np.arange(24) * (2 * np.pi / 24)
        circle = np.stack([np.cos(angle), np.sin(angle)], 1) * radius_um * self._px0 / self._mpp
        ring: NDArray[np.floating] = self.table.xy_px0[row] + circle
        return ring


def open_nuclei(store: Store, detector: str | None) -> tuple[str, TileNuclei]:
    """Return the name of the detector, None taking the only one, and its nuclei.

    Raises:
        StoreError: no tiles, no such nuclei, or several and none named.
    """
    plan, name = plan_of(store), store.which_detector(detector)
    return name, TileNuclei(store.nuclei(name), store.tile_xy_px0, plan)


@dataclass(frozen=True)
class Batch:
    """Tiles with their nuclei, as `make_views` takes them.

    Attributes:
        tile_BCHW: tiles with their margins.
        xy_BM2: centroids, in pixels of these.
        rows: of each tile, the rows of its nuclei in the table, then those of its margin.
        margin_px: on every side.
    """

    tile_BCHW: Tensor
    xy_BM2: NDArray[np.float64]
    valid_BM: NDArray[np.bool_]
    label_BHW: Tensor | None
    rows: list[NDArray[np.intp]]
    margin_px: int = 0


def tile_keys(seed: int, slide_id: str, tiles: ArrayLike) -> draws.Keys:
    """Return the keys of some tiles; other slides and other tiles do not matter."""
    name = hashlib.blake2b(slide_id.encode(), digest_size=8).digest()
    first = np.frombuffer(name, "<u8")  # an array of one: its sums wrap round in silence
    return draws.sample_keys(seed, first + np.asarray(tiles).astype(np.uint64))


def draw_lots(seed: int, slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw a number for each tile; the smallest are chosen."""
    return draws.uniform(draws.fold(tile_keys(seed, slide_id, tiles), _CHOICE), 1)[:, 0]


def margin_for(ncp: NcpConfig, tile_px: int) -> int:
    """Return how much around a tile its views may show, px; 0 where they are not centred."""
    return crops.margin_of(tile_px) if ncp.centred else 0


def read_batch(
    source: Readable | Canvases,
    nuclei: TileNuclei,
    tiles: Sequence[int],
    ncp: NcpConfig,
    margin_px: int = 0,
) -> Batch:
    """Read some tiles, and paint label maps where there are outlines and `ncp` uses them.

    Args:
        source: of the pixels; one with a margin where that is not 0.
        nuclei: of the tiles.
        tiles: their numbers.
        ncp: decides whether label maps are needed.
        margin_px: to read around each tile (`margin_for`).
    """
    rows = [nuclei.rows(tile) for tile in tiles]
    if margin_px:
        around = [nuclei.rows_around(tile, margin_px) for tile in tiles]
        rows = [np.concatenate(pair) for pair in zip(rows, around, strict=True)]
    points = [
        nuclei.to_px(tile, nuclei.table.xy_px0[some]) + margin_px
        for tile, some in zip(tiles, rows, strict=True)
    ]
    label = None
    # Points stand for disks where nuclei are to go, but a boundary cannot be measured from them.
    if ncp.fill != "none" and (nuclei.has_outlines or ncp.region == "disk"):
        maps = [
            nuclei.label_map(tile, some, margin_px) for tile, some in zip(tiles, rows, strict=True)
        ]
        label = torch.from_numpy(np.stack(maps))
    if isinstance(source, Canvases):
        pixels = np.stack([source.read(tile, margin_px) for tile in tiles])
    elif margin_px:
        raise UsageError("these pixels come without a margin.", hint="open them by open_canvases")
    else:
        pixels = np.stack([source.read(tile) for tile in tiles])
    return Batch(
        torch.from_numpy(pixels).movedim(-1, 1), *pad_nuclei(points), label, rows, margin_px
    )
