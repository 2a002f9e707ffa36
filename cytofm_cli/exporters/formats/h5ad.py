"""Bags as h5ad files: AnnData, which scanpy, squidpy and R read.

`X` holds the embeddings, `obs` what is known of the cells or tiles, `obsm["spatial"]` their places
in level-0 pixels and `obsm["spatial_um"]` in µm, `uns["cytofm"]` where all of it comes from. Rows
are called `<slide_id>:<row>`, so slides can be joined by `anndata.concat`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import cytofm_cli
from cytofm_cli.exporters import anndata
from cytofm_cli.exporters.bags import other_nuclei
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.nuclei import Nuclei, NucleiSource, source_of
from cytofm_cli.exporters.product import Product
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.store import schema
from cytofm_cli.store.blocks import ROWS
from cytofm_cli.store.io import Store
from cytofm_cli.store.records import EmbeddingRecord, StepRecord
from cytofm_cli.work.files import replacing

if TYPE_CHECKING:
    import h5py

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class _Bag:
    """What is written: the step of the embeddings, and what is known of their instances.

    Attributes:
        names: of the columns of `obs` besides the places, in order.
        classes: names of the classes of `class`; () without.
        columns: gives these columns block by block, with `xy_px0` (m, 2) and, where `classes`
            are, `class`.
    """

    store: Store
    step: str
    encoder: str
    unit: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    columns: Callable[[], Iterator[Columns]]

    @property
    def record(self) -> EmbeddingRecord:
        return self.store.embedding_record(self.encoder, self.unit)


@dataclass(frozen=True)
class Planned:
    """An AnnData file that is still to be written.

    Attributes:
        unit: "cell" or "tile".
        nuclei: those that cells were cut around; None for tiles, or where the store keeps none.
        settings: what else would have made another file.
        steps: provenance records of what it is made from.
        write: writes it to a path.
    """

    unit: str
    nuclei: NucleiSource | None
    settings: dict[str, Any]
    steps: list[StepRecord]
    write: Callable[[Path], None]


def planned(request: ExportRequest, layout: str) -> Planned:
    """Return the AnnData of the bag of a store; `layout` is what the files are called."""
    store, unit = request.store, request.config.unit or "cell"
    key = store.which_encoder(request.config.encoder, unit)
    step = schema.embedding_step(key, unit)
    store.require_fresh(step)
    store.require_all_rows(step)
    if request.config.detector is not None:
        store.which_detector(request.config.detector)
    nuclei = _nuclei_of(request, store.embedding_record(key, unit)) if unit == "cell" else None
    settings: dict[str, Any] = {"layout": layout, "encoder": key, "unit": unit}
    steps: list[StepRecord] = [store.tile, store.steps[step]]
    if nuclei is not None:
        settings |= nuclei.settings
        steps += nuclei.steps[1:]

    def write(path: Path) -> None:
        bag = _bag_of(store, step, key, unit, nuclei)
        told = _provenance(bag, settings, steps)
        # Some cluster filesystems refuse HDF5's file locks; there is one writer by design.
        with h5py_file(path) as file:
            _fill(file, bag, told, request)

    return Planned(unit, nuclei, settings, steps, write)


def products(request: ExportRequest) -> list[Product]:
    """Return the file of the bag of a store."""
    table, path = planned(request, "h5ad"), request.folder / f"{request.store.slide_id}.h5ad"

    def write() -> None:
        with replacing(path) as partial:
            table.write(partial)

    return [Product([path], table.settings, table.steps, write)]


def h5py_file(path: Path) -> h5py.File:
    """Open a new file; h5py is imported when something is written."""
    import h5py

    return h5py.File(path, "w", locking=False)


def _nuclei_of(request: ExportRequest, record: EmbeddingRecord) -> NucleiSource | None:
    """Return the nuclei that cells were cut around; None if the store keeps none."""
    made_of = [name for name in record.made_from or () if name.startswith("nuclei/")]
    there = any(step.startswith("nuclei/") for step in request.store.steps)
    if request.config.detector or not made_of:
        return source_of(request) if there or request.config.detector else None
    return source_of(request, made_of[0].partition("/")[2]) if there else None


def _bag_of(store: Store, step: str, key: str, unit: str, source: NucleiSource | None) -> _Bag:
    make = functools.partial(_Bag, store, step, key, unit)
    if unit == "tile":
        return make(("foreground", "focus"), (), functools.partial(_tiles, store, step))
    if source is None:
        return make((), (), functools.partial(_places, store, step))
    nuclei = source.read()
    names = ("probability", "area_um2", *nuclei.shapes, *nuclei.scores)
    return make(names, nuclei.classes, functools.partial(_cells, store, step, nuclei))


def _cells(store: Store, step: str, nuclei: Nuclei) -> Iterator[Columns]:
    with store.rows(f"{step}/xy_px0") as places:
        first = 0
        if places.shape[0] != nuclei.n:
            raise other_nuclei(store)
        for part in nuclei.parts():
            table, stop = part.table, first + len(part.table)
            cells = np.round(table.xy_px0).astype(np.int32)
            if not np.array_equal(places.read(first, stop), cells):
                raise other_nuclei(store)
            first = stop
            yield {
                "xy_px0": table.xy_px0,
                "class": table.class_id,
                "probability": table.probability,
                "area_um2": table.area_um2,
                **part.shapes,
                **part.scores,
            }


def _tiles(store: Store, step: str) -> Iterator[Columns]:
    tiles = store.tiles()
    for first, places in zip(range(0, len(tiles), ROWS), _places(store, step), strict=True):
        rows = slice(first, first + ROWS)
        yield places | {"foreground": tiles.foreground[rows], "focus": tiles.focus[rows]}


def _places(store: Store, step: str) -> Iterator[Columns]:
    with store.rows(f"{step}/xy_px0") as places:
        for first in range(0, places.shape[0], ROWS):
            yield {"xy_px0": places.read(first, first + ROWS)}


def _provenance(bag: _Bag, settings: Mapping[str, Any], steps: list[StepRecord]) -> dict[str, Any]:
    """Say where the file comes from; whole records as JSON, for they hold lists."""
    slide = bag.store.slide
    told = {key: value for key, value in settings.items() if isinstance(value, str)}
    record = bag.record
    more = {"licence": record.licence, "weights_sha256": record.weights_sha256}
    return told | {
        "slide_id": bag.store.slide_id,
        "slide_mpp": float(slide.mpp),
        "tool": f"cytofm {cytofm_cli.__version__}",
        "steps": json.dumps([step.to_json() for step in steps], ensure_ascii=False),
        **{key: value for key, value in more.items() if value is not None},
    }


def _fill(file: h5py.File, bag: _Bag, told: Mapping[str, Any], request: ExportRequest) -> None:
    count, dim = bag.store.shape(f"{bag.step}/values")
    var = [f"{bag.encoder}_{i}" for i in range(dim)]
    anndata.begin(file, n_obs=count, var=var, uns={"cytofm": told})
    room = _obs_room(file, bag, count)
    first = 0
    with bag.store.rows(f"{bag.step}/values") as values:
        for columns in bag.columns():
            stop = first + len(columns["xy_px0"])
            file["X"][first:stop] = values.read(first, stop).astype(np.float32)
            _fill_rows(room, bag, columns, first, stop)
            first = stop
            request.report(stop, count)


def _obs_room(file: h5py.File, bag: _Bag, count: int) -> dict[str, h5py.Dataset]:
    """Make the columns of `obs` and the places, to be filled; by name."""
    places = ("x_px0", "y_px0", "x_um", "y_um")
    classes = ("class",) if bag.classes else ()
    keys = {name: name.replace("/", "|") for name in bag.names}  # HDF5 would make groups of it
    obs = anndata.frame(file, "obs", ["slide_id", *places, *classes, *keys.values()])
    room = {anndata.INDEX: anndata.strings(obs, anndata.INDEX, count)}
    codes = anndata.categorical(obs, "slide_id", count, [bag.store.slide_id])
    room["slide_id"] = codes  # all 0, as the file is made
    for name in places:
        room[name] = anndata.array(obs, name, (count,), np.float64)
    if classes:
        room["class"] = anndata.categorical(obs, "class", count, bag.classes)
    for name, key in keys.items():
        room[name] = anndata.array(obs, key, (count,), np.float32)
    for name in ("spatial", "spatial_um"):
        room[name] = anndata.array(file["obsm"], name, (count, 2), np.float64)
    return room


def _fill_rows(
    room: Mapping[str, h5py.Dataset], bag: _Bag, columns: Columns, first: int, stop: int
) -> None:
    xy_px0 = columns["xy_px0"].astype(np.float64)
    xy_um = xy_px0 * bag.store.slide.mpp
    index = [f"{bag.store.slide_id}:{row}" for row in range(first, stop)]
    filled: dict[str, Any] = {
        anndata.INDEX: np.array(index, object),
        "spatial": xy_px0,
        "spatial_um": xy_um,
        **dict(zip(("x_px0", "y_px0"), xy_px0.T, strict=True)),
        **dict(zip(("x_um", "y_um"), xy_um.T, strict=True)),
        **{name: columns[name] for name in bag.names},
    }
    if bag.classes:
        filled["class"] = columns["class"]
    for name, column in filled.items():
        room[name][first:stop] = column


PLUGIN = ExporterPlugin(
    make=products,
    summary="bags as h5ad: AnnData with embeddings, places and measurements",
    what=("bags", "nuclei"),
    options=("encoder", "unit", "detector", "run", "classes", "measure"),
    needs=("h5py",),
    sample=samples({}, {"unit": "tile"}, {"measure": False}),
)
