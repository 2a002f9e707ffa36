"""Bags as pt files: the tensor alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytofm_cli.exporters.bags import Bag, BagGeometry, open_bag, product
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import foreign
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.store.io import Store
from cytofm_cli.work.files import replacing


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the bag of a store."""
    return [product(request, "pt", _pt_files, export_pt)]


def _pt_files(where: BagGeometry, folder: Path, _encoder: str, _unit: str) -> list[Path]:
    return [folder / f"{where.name}.pt"]


def export_pt(store: Store, folder: Path, *, encoder: str | None, unit: str = "tile") -> list[Path]:
    """Write `<slide>.pt`: the float32 (n, d) tensor alone."""
    path = folder / f"{store.slide_id}.pt"
    write_pt(path, open_bag(store, encoder, unit))
    return [path]


def write_pt(path: Path, bag: Bag) -> None:
    """Write the float32 (n, d) tensor of a bag, and what it is made from."""
    import torch

    features = np.empty((len(bag.xy_px0), bag.dim), np.float32)
    for first, rows in bag.blocks():
        features[first : first + len(rows)] = rows
    tensor = torch.from_numpy(features)
    with replacing(path) as partial:
        with partial.open("wb") as file:  # by its name, host and process would be in the file
            torch.save(tensor, file)
        foreign.add_to_pt(partial, bag.origin)


PLUGIN = ExporterPlugin(
    make=products,
    summary="bags as pt: a float32 (n, d) tensor",
    what=("bags",),
    options=("encoder", "unit"),
    sample=samples({}, {"unit": "cell"}),
)
