"""Nuclei as instances of pretraining: a square around each, cut like a tile, with its one nucleus.

What `nuclei.crops` is for bags, at the tiles' resolution whether the store holds pixels or not:
networks want squares of one size.

Letters: N nuclei.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.crops import CellCrops
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import open_field
from cytofm_cli.tiles.focal import TileViews
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.tiles.shown import open_shown
from cytofm_cli.tiles.source import SlideTiles
from cytofm_cli.views.stored import Readable, TileNuclei


class CellNuclei(TileNuclei):
    """The nuclei of a slide, each alone in a square of its own.

    Its neighbours count as what surrounds it: perturbation may shuffle them, and views are
    centred on the one nucleus.

    Args:
        table: of a slide.
        plan: how its tiles were read.
        side_px: side of the squares, tile pixels.
    """

    def __init__(self, table: NucleusTable, plan: ReadPlan, side_px: int) -> None:
        plan = replace(plan, tile_px=side_px)
        # The corner that `tiles.field.read_square` takes, in whole level-0 pixels.
        left_N2 = np.round(table.xy_px0 / plan.px0(1.0) - side_px / 2)
        self.corner_px0: NDArray[np.int32] = np.round(left_N2 * plan.px0(1.0)).astype(np.int32)
        super().__init__(table, self.corner_px0, plan)

    def rows(self, tile: int) -> NDArray[np.intp]:
        """Return the row of the square's own nucleus."""
        return np.array([tile], np.intp)


@contextlib.contextmanager
def open_squares(
    store: Store, nuclei: CellNuclei, side_px: int, *, slides: Path | None = None
) -> Iterator[Readable]:
    """Open the pixels around each nucleus, at the tiles' resolution.

    Args:
        store: with tiles; its pixels are read, else the slide's.
        nuclei: of that store.
        side_px: side of the squares, tile pixels.
        slides: folder where the slides lie now.
    """
    fill = store.tile.fill
    if store.has(schema.TILE_PIXELS.path):
        with open_field(store) as field:
            yield CellCrops(field, nuclei.table.xy_px0, side_px=side_px, fill=fill)
        return
    with open_shown(store, slides=slides) as reader:
        plan = replace(plan_of(store), tile_px=side_px)
        yield SlideTiles(TileViews([reader]), plan, nuclei.corner_px0, fill=fill)
