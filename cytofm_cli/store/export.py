"""Write bags for other tools: h5 as TRIDENT and as CLAM lay it out, and pt.

The layouts were read off the tools' own output: names, dtypes, attributes. Files appear by
rename, so a killed export leaves no half file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.mil import foreign, origin
from cytofm_cli.store.io import Embeddings, Store, output_errors, read_embeddings

if TYPE_CHECKING:
    import h5py

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


def geometry_of(store: Store) -> BagGeometry:
    """Collect what the other tools record of a slide and its tiles."""
    tile, slide = store.steps["tile"], store.slide
    stride = tile["config"]["stride_px"] or tile["tile_px"]
    level = slide["levels"][tile["level"]]
    return BagGeometry(
        name=store.slide_id,
        tile_px=tile["tile_px"],
        tile_px0=tile["tile_px0"],
        overlap_px=tile["tile_px"] - stride,
        level=tile["level"],
        mpp=tile["mpp"],
        mpp0=slide["mpp"],
        size_px0=(slide["size_px0"][0], slide["size_px0"][1]),
        level_size_px=(level["size_px"][0], level["size_px"][1]),
    )


def export_trident(store: Store, folder: Path, *, encoder: str | None) -> list[Path]:
    """Write `<mag>x_<px>px_<overlap>px_overlap/{patches,features_<encoder>}/<slide>….h5`."""
    bag, where = read_embeddings(store.path, encoder, "tile"), geometry_of(store)
    job = folder / f"{where.magnification:g}x_{where.tile_px}px_{where.overlap_px}px_overlap"
    coords = job / "patches" / f"{where.name}_patches.h5"
    features = job / f"features_{bag.encoder}" / f"{where.name}.h5"
    _write_h5(coords, lambda file: _trident_coords(file, bag, where, coords.parent))

    def fill(file: h5py.File) -> None:
        _trident_coords(file, bag, where, features.parent)
        table = _table(file, "features", bag.values.astype(np.float32), rows=1)
        table.attrs["name"] = where.name
        table.attrs["savetodir"] = str(features.parent)
        table.attrs["encoder"] = bag.encoder
        table.attrs[foreign.RECORD] = foreign.to_text(_origin(store, bag, "tile"))

    _write_h5(features, fill)
    return [coords, features]


def export_clam(store: Store, folder: Path, *, encoder: str | None) -> list[Path]:
    """Write `patches/`, `h5_files/` and `pt_files/` as CLAM reads them."""
    bag, where = read_embeddings(store.path, encoder, "tile"), geometry_of(store)
    coords = folder / "patches" / f"{where.name}.h5"
    features = folder / "h5_files" / f"{where.name}.h5"
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
        table.attrs[foreign.RECORD] = foreign.to_text(_origin(store, bag, "tile"))
        _table(file, "coords", bag.xy_px0.astype(np.int32), rows=32)

    _write_h5(coords, fill_coords)
    _write_h5(features, fill_features)
    tensor = folder / "pt_files" / f"{where.name}.pt"
    _write_pt(tensor, bag, _origin(store, bag, "tile"))
    return [coords, features, tensor]


def export_pt(store: Store, folder: Path, *, encoder: str | None, unit: str = "tile") -> list[Path]:
    """Write `<slide>.pt`: the float32 (n, d) tensor alone."""
    path = folder / f"{store.slide_id}.pt"
    bag = read_embeddings(store.path, encoder, unit)
    _write_pt(path, bag, _origin(store, bag, unit))
    return [path]


def _origin(store: Store, bag: Embeddings, unit: str) -> origin.Origin:
    return origin.of_store(store.steps["tile"], {**bag.provenance, "unit": unit}, bag.encoder)


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


def _table(file: h5py.File, name: str, values: NDArray[Any], *, rows: int) -> h5py.Dataset:
    chunks = (min(rows, max(1, len(values))), values.shape[1])
    return file.create_dataset(name, data=values, chunks=chunks, maxshape=(None, *values.shape[1:]))


def _write_h5(path: Path, fill: Callable[[h5py.File], None]) -> None:
    import h5py

    def write(partial: Path) -> None:
        # Some cluster filesystems refuse HDF5's file locks; there is one writer by design.
        with h5py.File(partial, "w", locking=False) as file:
            fill(file)

    _replace(path, write)


def _write_pt(path: Path, bag: Embeddings, made_from: origin.Origin) -> None:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(bag.values.astype(np.float32)))

    def write(partial: Path) -> None:
        torch.save(tensor, partial)
        foreign.add_to_pt(partial, made_from)

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    with output_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        write(partial)
        partial.replace(path)
