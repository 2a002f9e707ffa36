"""Bags as h5 files, as TRIDENT and as CLAM lay them out.

The layouts were read off the tools' own output: names, dtypes, attributes. Files of cells also
hold `class` (names in its attributes), `probability` and `area_um2` of each nucleus.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.exporters.bags import Bag, BagGeometry, open_bag, product
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.formats.pt import write_pt
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import foreign
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.store.io import Store

if TYPE_CHECKING:
    import h5py
from cytofm_cli.work.files import replacing

_CELL_ROWS = 1024


def products(request: ExportRequest) -> list[Product]:
    """Return the files of the bag of a store, in the layout that is asked for."""
    layout = request.config.layout or "trident"
    files = {"trident": _trident_files, "clam": _clam_files}[layout]
    write = {"trident": export_trident, "clam": export_clam}[layout]
    return [product(request, layout, files, write)]


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


def export_trident(
    store: Store, folder: Path, *, encoder: str | None, unit: str = "tile"
) -> list[Path]:
    """Write `<mag>x_<px>px_<overlap>px_overlap/{patches,features_<encoder>}/<slide>….h5`."""
    bag = open_bag(store, encoder, unit)
    where = bag.where
    coords, features = _trident_files(where, folder, bag.encoder, unit)
    _write_h5(coords, lambda file: _trident_coords(file, bag, where, coords.parent))

    def fill(file: h5py.File) -> None:
        _trident_coords(file, bag, where, features.parent)
        table = _features(file, bag, rows=1)
        table.attrs["name"] = where.name
        table.attrs["savetodir"] = str(features.parent)
        table.attrs["encoder"] = bag.encoder
        table.attrs[foreign.RECORD] = foreign.to_text(bag.origin)
        _add_nuclei(file, bag)

    _write_h5(features, fill)
    return [coords, features]


def export_clam(
    store: Store, folder: Path, *, encoder: str | None, unit: str = "tile"
) -> list[Path]:
    """Write `patches/`, `h5_files/` and `pt_files/` as CLAM reads them."""
    bag = open_bag(store, encoder, unit)
    where = bag.where
    coords, features, tensor = _clam_files(where, folder, bag.encoder, unit)
    downsample = [
        where.size_px0[0] / where.level_size_px[0],
        where.size_px0[1] / where.level_size_px[1],
    ]

    def fill_coords(file: h5py.File) -> None:
        table = _table(file, "coords", bag, bag.xy_px0.astype(np.int64), rows=1)
        table.attrs["patch_size"] = where.tile_px
        table.attrs["patch_level"] = where.level
        table.attrs["downsample"] = np.asarray(downsample, dtype=np.float64)
        table.attrs["downsampled_level_dim"] = np.asarray(where.level_size_px)
        table.attrs["level_dim"] = np.asarray(where.size_px0)
        table.attrs["name"] = where.name
        table.attrs["save_path"] = str(coords.parent)

    def fill_features(file: h5py.File) -> None:
        table = _features(file, bag, rows=32)
        table.attrs[foreign.RECORD] = foreign.to_text(bag.origin)
        _table(file, "coords", bag, bag.xy_px0.astype(np.int32), rows=32)
        _add_nuclei(file, bag)

    _write_h5(coords, fill_coords)
    _write_h5(features, fill_features)
    write_pt(tensor, bag)
    return [coords, features, tensor]


def _trident_coords(file: h5py.File, bag: Bag, where: BagGeometry, folder: Path) -> None:
    table = _table(file, "coords", bag, bag.xy_px0.astype(np.int64), rows=1)
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


def _add_nuclei(file: h5py.File, bag: Bag) -> None:
    if bag.detector is None:
        return
    for name in ("class", "probability", "area_um2"):
        file.create_dataset(name, data=bag.of_nuclei(name))
    file["class"].attrs["names"] = list(bag.store.nuclei_record(bag.detector).classes)
    file["coords"].attrs["anchor"] = "centre"


def _features(file: h5py.File, bag: Bag, *, rows: int) -> h5py.Dataset:
    shape = (len(bag.xy_px0), bag.dim)
    chunks = _chunks(bag, shape, rows)
    table = file.create_dataset(
        "features", shape, np.float32, chunks=chunks, maxshape=(None, shape[1])
    )
    for first, values in bag.blocks():
        table[first : first + len(values)] = values
    return table


def _table(
    file: h5py.File, name: str, bag: Bag, values: NDArray[Any], *, rows: int
) -> h5py.Dataset:
    chunks = _chunks(bag, values.shape, rows)
    return file.create_dataset(name, data=values, chunks=chunks, maxshape=(None, *values.shape[1:]))


def _chunks(bag: Bag, shape: tuple[int, ...], rows: int) -> tuple[int, int]:
    """Return the chunk of a table: so many rows for tiles, as the other tools have it.

    Those tools know no bags of cells, whose hundred thousands of chunks would take gigabytes.
    """
    rows = rows if bag.unit == "tile" else max(rows, _CELL_ROWS)
    return min(rows, max(1, shape[0])), shape[1]


def _write_h5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    import h5py

    # Some cluster filesystems refuse HDF5's file locks; there is one writer by design.
    with replacing(path) as partial, h5py.File(partial, "w", locking=False) as file:
        fill(file)


PLUGIN = ExporterPlugin(
    make=products,
    summary="bags as h5, as TRIDENT or CLAM lay them out",
    what=("bags",),
    options=("layout", "encoder", "unit"),
    needs=("h5py",),
    sample=samples({}, {"layout": "clam"}, {"unit": "cell"}, {"layout": "clam", "unit": "cell"}),
)
