"""Bags as pt files: the tensor alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytofm_cli.exporters.bags import BagGeometry, origin_of, product
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.product import Product
from cytofm_cli.mil import foreign, origin
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import Embeddings
from cytofm_cli.work.files import replacing


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the bag of a store."""
    return [product(request, "pt", _pt_files, export_pt)]


def _pt_files(where: BagGeometry, folder: Path, _encoder: str, _unit: str) -> list[Path]:
    return [folder / f"{where.name}.pt"]


def export_pt(store: Store, folder: Path, *, encoder: str | None, unit: str = "tile") -> list[Path]:
    """Write `<slide>.pt`: the float32 (n, d) tensor alone."""
    path = folder / f"{store.slide_id}.pt"
    bag = store.embeddings(encoder, unit)
    write_pt(path, bag, origin_of(store, bag, unit))
    return [path]


def write_pt(path: Path, bag: Embeddings, made_from: origin.Origin) -> None:
    """Write the float32 (n, d) tensor of a bag, and what it is made from."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(bag.values.astype(np.float32)))
    with replacing(path) as partial:
        with partial.open("wb") as file:  # by its name, host and process would be in the file
            torch.save(tensor, file)
        foreign.add_to_pt(partial, made_from)


PLUGIN = ExporterPlugin(
    make=products,
    summary="bags as pt: a float32 (n, d) tensor",
    what=("bags",),
    options=("encoder", "unit"),
    sample=samples({}, {"unit": "cell"}),
)
