"""What exporters of bags share: where instances lie, what they are of, which files are due.

Bags of cells have the layouts of bags of tiles: their coordinates are the centres of the nuclei
(those of tiles are corners).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import origin
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import Embeddings

if TYPE_CHECKING:
    from cytofm_cli.nuclei.base import NucleusTable

# Objective power of a scanner with one µm/px: 40× is 0.25 µm/px.
_MAGNIFICATION_UM = 10.0


@dataclass(frozen=True)
class BagGeometry:
    """Where the instances of a bag lie, in the words of TRIDENT and CLAM."""

    name: str
    tile_px: int
    tile_px0: float
    overlap_px: int
    level: int
    mpp: float
    mpp0: float
    size_px0: tuple[int, int]
    level_size_px: tuple[int, int]

    @property
    def magnification(self) -> float:
        """Magnification of the tiles."""
        return round(_MAGNIFICATION_UM / self.mpp, 2)

    @property
    def magnification0(self) -> int:
        """Magnification of level 0."""
        return round(_MAGNIFICATION_UM / self.mpp0)


def geometry_of(store: Store, cell_um: float | None = None) -> BagGeometry:
    """Collect what the other tools record of a slide and its tiles, or crops around cells.

    Args:
        store: the slide.
        cell_um: side of the crop around each cell, µm; None for tiles.
    """
    tile, slide = store.tile, store.slide
    stride = tile.config["stride_px"] or tile.tile_px
    tile_px, tile_px0 = tile.tile_px, tile.tile_px0
    if cell_um is not None:
        tile_px = stride = max(1, round(cell_um / tile.mpp))
        tile_px0 = cell_um / slide.mpp
    level = slide.levels[tile.level]
    return BagGeometry(
        name=store.slide_id,
        tile_px=tile_px,
        tile_px0=tile_px0,
        overlap_px=tile_px - stride,
        level=tile.level,
        mpp=tile.mpp,
        mpp0=slide.mpp,
        size_px0=slide.size_px0,
        level_size_px=level.size_px,
    )


def product(
    request: ExportRequest,
    layout: str,
    files: Callable[[BagGeometry, Path, str, str], Sequence[Path]],
    write: Callable[..., object],
) -> Product:
    """Return the files of a bag, and how to make them.

    Args:
        request: names encoder and unit: "tile" or "cell".
        layout: of the files, for the record beside them.
        files: names them, given geometry, folder, key of the encoder and unit.
        write: makes them, called as `write(store, folder, encoder=…, unit=…)`.

    Raises:
        StoreError: no such embeddings, or several and none named.
    """
    store, unit = request.store, request.config.unit or "tile"
    key = store.which_encoder(request.config.encoder, unit)
    store.require_fresh(schema.embedding_step(key, unit))
    record = store.embedding_record(key, unit)
    where = geometry_of(store, record.cell_um if unit == "cell" else None)
    return Product(
        files=files(where, request.folder, key, unit),
        settings={"layout": layout, "encoder": key, "unit": unit},
        steps=(store.tile, record),
        write=lambda: write(store, request.folder, encoder=request.config.encoder, unit=unit),
    )


def read_bag(
    store: Store, encoder: str | None, unit: str
) -> tuple[Embeddings, BagGeometry, NucleusTable | None]:
    """Return a bag, where its instances lie, and the nuclei of a bag of cells."""
    bag = store.embeddings(encoder, unit)
    if unit == "tile":
        return bag, geometry_of(store), None
    return bag, geometry_of(store, bag.record.cell_um), nuclei_of(store, bag.xy_px0)


def nuclei_of(store: Store, xy_px0: NDArray[np.int32]) -> NucleusTable | None:
    """Return the nuclei that a bag of cells was cut around; None if the store keeps no nuclei.

    Raises:
        StoreError: the nuclei of the store are others.
    """
    names = [step.partition("/")[2] for step in store.steps if step.startswith("nuclei/")]
    for name in sorted(names):
        table = store.nuclei(name)
        if np.array_equal(np.round(table.xy_px0).astype(np.int32), xy_px0):
            return table
    if not names:
        return None
    raise other_nuclei(store)


def other_nuclei(store: Store) -> StoreError:
    """Return the error that cells were cut around other nuclei than the store holds."""
    return StoreError(
        f"{store.path}: its cell embeddings are of other nuclei than it holds now.",
        hint="`cytofm embed --unit cell --overwrite`",
    )


def origin_of(store: Store, bag: Embeddings, unit: str) -> origin.Origin:
    """Say what the rows of a bag are made from."""
    return origin.of_store(store, bag.encoder, unit)
