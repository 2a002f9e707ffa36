"""What exporters of bags share: where instances lie, what they are of, which files are due.

Bags of cells have the layouts of bags of tiles: their coordinates are the centres of the nuclei
(those of tiles are corners).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import origin
from cytofm_cli.store import schema
from cytofm_cli.store.blocks import ROWS
from cytofm_cli.store.io import Store

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


@dataclass(frozen=True, eq=False)
class Bag:
    """A bag that stays in its store; its rows come in blocks.

    Attributes:
        store: of the slide.
        encoder: key of the encoder.
        unit: "tile" or "cell".
        where: where the instances lie.
        xy_px0: int32 (n, 2), corner of each tile or centre of each cell, level-0 pixels.
        detector: whose nuclei the cells were cut around; None for tiles, or if they are gone.
    """

    store: Store
    encoder: str
    unit: str
    where: BagGeometry
    xy_px0: NDArray[np.int32]
    detector: str | None

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return self.store.shape(f"{self._step}/values")[1]

    @property
    def origin(self) -> origin.Origin:
        """What the rows are made from."""
        return origin.of_store(self.store, self.encoder, self.unit)

    def blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row of each block, and the features of its rows."""
        with self.store.rows(f"{self._step}/values") as values:
            for first in range(0, len(self.xy_px0), ROWS):
                yield first, values.read(first, first + ROWS).astype(np.float32)

    def of_nuclei(self, name: str) -> NDArray[Any]:
        """Return an array of the nuclei, one entry an instance."""
        assert self.detector is not None
        return self.store.read(f"{schema.nuclei_step(self.detector)}/{name}")

    @property
    def _step(self) -> str:
        return schema.embedding_step(self.encoder, self.unit)


def open_bag(store: Store, encoder: str | None, unit: str) -> Bag:
    """Return a bag of a store, before its features are read.

    Raises:
        StoreError: no such embeddings, several and none named, out of date, or of other nuclei.
    """
    key = store.which_encoder(encoder, unit)
    step = schema.embedding_step(key, unit)
    store.require_fresh(step)
    xy_px0, record = store.read(f"{step}/xy_px0"), store.embedding_record(key, unit)
    where = geometry_of(store, record.cell_um if unit == "cell" else None)
    detector = _detector_of(store, xy_px0) if unit == "cell" else None
    return Bag(store, key, unit, where, xy_px0, detector)


def nuclei_of(store: Store, xy_px0: NDArray[np.int32]) -> NucleusTable | None:
    """Return the nuclei that a bag of cells was cut around; None if the store keeps no nuclei.

    Raises:
        StoreError: the nuclei of the store are others.
    """
    detector = _detector_of(store, xy_px0)
    return None if detector is None else store.nuclei(detector)


def _detector_of(store: Store, xy_px0: NDArray[np.int32]) -> str | None:
    names = [step.partition("/")[2] for step in store.steps if step.startswith("nuclei/")]
    for name in sorted(names):
        step = schema.nuclei_step(name)
        store.require_fresh(step)
        if np.array_equal(np.round(store.read(f"{step}/xy_px0")).astype(np.int32), xy_px0):
            return name
    if names:
        raise other_nuclei(store)
    return None


def other_nuclei(store: Store) -> StoreError:
    """Return the error that cells were cut around other nuclei than the store holds."""
    return StoreError(
        f"{store.path}: its cell embeddings are of other nuclei than it holds now.",
        hint="`cytofm embed --unit cell --overwrite`",
    )
