"""Nucleus-centred crops: the instances of a cell-level bag."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import Field, open_field, read_square


class CellCrops:
    """Squares around the nuclei of a slide, in the order of its table; any thread may read.

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
        self._centres = xy_px0
        self._fill = fill

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one crop as (side_px, side_px, 3) uint8 RGB."""
        x, y = (float(value) for value in self._centres[index])
        return read_square(self._field, x, y, self.side_px, self._fill)


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
    table = store.nuclei(detector)
    if not len(table):
        raise StoreError(
            f"{store.path}: {store.which_detector(detector)} found no nuclei, "
            "so there is no cell to embed.",
            hint="leave the slide out, or detect with other settings.",
        )
    with open_field(store, slides=slides) as tiles:
        side_px = max(1, round(cell_um / tiles.mpp))
        yield CellCrops(tiles, table.xy_px0, side_px=side_px, fill=store.tile.fill)
