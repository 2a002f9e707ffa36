"""Write bags for other tools: h5 as TRIDENT and as CLAM lay it out, and pt.

The layouts were read off the tools' own output: names, dtypes, attributes. Files appear by
rename, so a killed export leaves no half file. Bags of cells have the same layouts: their
`coords` are the centres of the nuclei (those of tiles are corners), and h5 files also hold `class`
(names in its attributes), `probability` and `area_um2` of each nucleus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import foreign, origin
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import Embeddings
from cytofm_cli.work.files import replacing

if TYPE_CHECKING:
    import h5py

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


def product(store: Store, folder: Path, layout: str, *, encoder: str | None, unit: str) -> Product:
    """Return the files of a bag, and how to make them.

    Args:
        store: with the embeddings.
        folder: of the export.
        layout: "trident", "clam" or "pt".
        encoder: whose embeddings; None takes the only ones there are.
        unit: "tile" or "cell".

    Raises:
        StoreError: no such embeddings, or several and none named.
    """
    key = store.which_encoder(encoder, unit)
    store.require_fresh(schema.embedding_step(key, unit))
    record = store.embedding_record(key, unit)
    where = geometry_of(store, record.cell_um if unit == "cell" else None)
    files = {"trident": _trident_files, "clam": _clam_files, "pt": _pt_files}[layout]
    write = {"trident": export_trident, "clam": export_clam, "pt": export_pt}[layout]
    return Product(
        files=files(where, folder, key, unit),
        settings={"layout": layout, "encoder": key, "unit": unit},
        steps=(store.tile, record),
        write=lambda: write(store, folder, encoder=encoder, unit=unit),
    )


def _trident_files(where: BagGeometry, folder: Path, encoder: str, unit: str) -> list[Path]:
    name = f"{where.magnification:g}x_{where.tile_px}px_{where.overlap_px}px_overlap"
    job = folder / (name if unit == "tile" else f"cells_{name}")
    return [
        job / "patches" / f"{where.name}_patches.h5",
        job / f"features_{encoder}" / f"{where.name}.h5",
    ]


def _clam_files(where: BagGeometry, folder: Path, _encoder: str, _unit: str) -> list[Path]:
    return [
        folder / "patches" / f"{where.name}.h5",
        folder / "h5_files" / f"{where.name}.h5",
        folder / "pt_files" / f"{where.name}.pt",
    ]


def _pt_files(where: BagGeometry, folder: Path, _encoder: str, _unit: str) -> list[Path]:
    return [folder / f"{where.name}.pt"]


def _read(
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
    raise StoreError(
        f"{store.path}: its cell embeddings are of other nuclei than it holds now.",
        hint="`cytofm embed --unit cell --overwrite`",
    )


def export_trident(
    store: Store, folder: Path, *, encoder: str | None, unit: str = "tile"
) -> list[Path]:
    """Write `<mag>x_<px>px_<overlap>px_overlap/{patches,features_<encoder>}/<slide>….h5`."""
    bag, where, nuclei = _read(store, encoder, unit)
    coords, features = _trident_files(where, folder, bag.encoder, unit)
    _write_h5(coords, lambda file: _trident_coords(file, bag, where, coords.parent))

    def fill(file: h5py.File) -> None:
        _trident_coords(file, bag, where, features.parent)
        table = _table(file, "features", bag.values.astype(np.float32), rows=1)
        table.attrs["name"] = where.name
        table.attrs["savetodir"] = str(features.parent)
        table.attrs["encoder"] = bag.encoder
        table.attrs[foreign.RECORD] = foreign.to_text(_origin(store, bag, unit))
        _add_nuclei(file, nuclei)

    _write_h5(features, fill)
    return [coords, features]


def export_clam(
    store: Store, folder: Path, *, encoder: str | None, unit: str = "tile"
) -> list[Path]:
    """Write `patches/`, `h5_files/` and `pt_files/` as CLAM reads them."""
    bag, where, nuclei = _read(store, encoder, unit)
    coords, features, tensor = _clam_files(where, folder, bag.encoder, unit)
    downsample = [
        where.size_px0[0] / where.level_size_px[0],
        where.size_px0[1] / where.level_size_px[1],
    ]

    def fill_coords(file: h5py.File) -> None:
        table = _table(file, "coords", bag.xy_px0.astype(np.int64), rows=1)
        table.attrs["patch_size"] = where.tile_px
        table.attrs["patch_level"] = where.level
        table.attrs["downsample"] = np.asarray(downsample, dtype=np.float64)
        table.attrs["downsampled_level_dim"] = np.asarray(where.level_size_px)
        table.attrs["level_dim"] = np.asarray(where.size_px0)
        table.attrs["name"] = where.name
        table.attrs["save_path"] = str(coords.parent)

    def fill_features(file: h5py.File) -> None:
        table = _table(file, "features", bag.values.astype(np.float32), rows=32)
        table.attrs[foreign.RECORD] = foreign.to_text(_origin(store, bag, unit))
        _table(file, "coords", bag.xy_px0.astype(np.int32), rows=32)
        _add_nuclei(file, nuclei)

    _write_h5(coords, fill_coords)
    _write_h5(features, fill_features)
    _write_pt(tensor, bag, _origin(store, bag, unit))
    return [coords, features, tensor]


def export_pt(store: Store, folder: Path, *, encoder: str | None, unit: str = "tile") -> list[Path]:
    """Write `<slide>.pt`: the float32 (n, d) tensor alone."""
    path = folder / f"{store.slide_id}.pt"
    bag = store.embeddings(encoder, unit)
    _write_pt(path, bag, _origin(store, bag, unit))
    return [path]


def _origin(store: Store, bag: Embeddings, unit: str) -> origin.Origin:
    return origin.of_store(store, bag.encoder, unit)


def _trident_coords(file: h5py.File, bag: Embeddings, where: BagGeometry, folder: Path) -> None:
    table = _table(file, "coords", bag.xy_px0.astype(np.int64), rows=1)
    attributes: dict[str, Any] = {
        "patch_size": where.tile_px,
        "patch_size_level0": float(where.tile_px0),
        "level0_magnification": where.magnification0,
        "target_magnification": float(where.magnification),
        "overlap": where.overlap_px,
        "name": where.name,
        "savetodir": str(folder),
        "level0_width": where.size_px0[0],
        "level0_height": where.size_px0[1],
    }
    table.attrs.update(attributes)


def _add_nuclei(file: h5py.File, nuclei: NucleusTable | None) -> None:
    if nuclei is None:
        return
    columns: Mapping[str, NDArray[Any]] = {
        "class": nuclei.class_id,
        "probability": nuclei.probability,
        "area_um2": nuclei.area_um2,
    }
    for name, values in columns.items():
        file.create_dataset(name, data=values)
    file["class"].attrs["names"] = list(nuclei.classes)
    file["coords"].attrs["anchor"] = "centre"


def _table(file: h5py.File, name: str, values: NDArray[Any], *, rows: int) -> h5py.Dataset:
    chunks = (min(rows, max(1, len(values))), values.shape[1])
    return file.create_dataset(name, data=values, chunks=chunks, maxshape=(None, *values.shape[1:]))


def _write_h5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    import h5py

    # Some cluster filesystems refuse HDF5's file locks; there is one writer by design.
    with replacing(path) as partial, h5py.File(partial, "w", locking=False) as file:
        fill(file)


def _write_pt(path: Path, bag: Embeddings, made_from: origin.Origin) -> None:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(bag.values.astype(np.float32)))
    with replacing(path) as partial:
        torch.save(tensor, partial)
        foreign.add_to_pt(partial, made_from)
