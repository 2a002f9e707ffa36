"""Nucleus-centred crops: the instances of a cell-level bag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import Field, open_field
from cytofm_cli.tiles.squares import corners, read_squares, reading_order


class CellCrops:
    """Squares around the nuclei of a slide, in the order of its table; any thread may read.

    Args:
        field: the slide's pixels.
        xy_px0: centres, float32 (n, 2).
        side_px: side of a crop.
        fill: grey level beyond the slide.

    Attributes:
        xy_px0: int32 (n, 2), centres, level-0 pixels.
        side_px: side of a crop, pixels at the tiles' resolution.
    """

    def __init__(
        self, field: Field, xy_px0: NDArray[np.float32], *, side_px: int, fill: int
    ) -> None:
        self.xy_px0 = np.round(xy_px0).astype(np.int32)
        self.side_px = side_px
        self._field = field
        self._corners = corners(field, xy_px0, side_px)
        self._fill = fill

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one crop as (side_px, side_px, 3) uint8 RGB."""
        crop: NDArray[np.uint8] = self.read_many(np.array([index]))[0]
        return crop

    def read_many(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return crops as (len(rows), side_px, side_px, 3) uint8 RGB."""
        return read_squares(self._field, self._corners[rows], self.side_px, self._fill)

    def reading_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the same rows in the order in which the field decodes each tile once."""
        return rows[reading_order(self._field, self._corners[rows])]


@contextlib.contextmanager
def open_cells(
    store: Store, *, detector: str | None, cell_um: float, slides: Path | None = None
) -> Iterator[CellCrops]:
    """Open the crops around the nuclei of a store.

    Args:
        store: a store with tiles and nuclei.
        detector: whose nuclei; None takes the only ones there are.
        cell_um: side of a crop, µm.
        slides: folder where the slides lie now, if they were moved since.

    Raises:
        StoreError: no nuclei step, or no nucleus was found on the slide.
    """
    xy_px0 = store.nuclei_xy_px0(detector)
    if not len(xy_px0):
        raise StoreError(
            f"{store.path}: {store.which_detector(detector)} found no nuclei, "
            "so there is no cell to embed.",
            hint="leave the slide out, or detect with other settings.",
        )
    with open_field(store, slides=slides) as tiles:
        side_px = max(1, round(cell_um / tiles.mpp))
        yield CellCrops(tiles, xy_px0, side_px=side_px, fill=store.tile.fill)
