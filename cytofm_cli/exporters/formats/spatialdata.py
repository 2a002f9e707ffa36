"""Bags as SpatialData: the AnnData of `h5ad`, and what its rows are as shapes.

Nuclei with an outline are polygons (`nuclei`), those without are circles of their area
(`nuclei_circles`), tiles are squares (`tiles`). Shapes count in level-0 pixels, which is the
coordinate system `global`; a scale takes them to the one called `um`. The package `spatialdata`
writes the files: `pip install 'cytofm[spatialdata]'`. It holds all shapes in memory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.formats import h5ad
from cytofm_cli.exporters.product import Product
from cytofm_cli.registry import ExporterPlugin, samples
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import MIN_POLYGON_POINTS
from cytofm_cli.tiles.origin import find_slide
from cytofm_cli.work.files import replacing_folder

POLYGONS, CIRCLES, TILES, PICTURE = "nuclei", "nuclei_circles", "tiles", "slide"
TABLE: Final = "cells"
PX0, UM = "global", "um"


@dataclass(frozen=True, kw_only=True)
class SpatialDataConfig(Settings):
    """What goes along with the shapes."""

    image_px: int | None = option(
        None, "Longest side of a picture of the slide; none without.", low=16
    )


def products(request: ExportRequest) -> list[Product]:
    """Return the folder of the bag of a store."""
    table = h5ad.planned(request, "spatialdata")
    path = request.folder / f"{request.store.slide_id}.sd.zarr"
    settings = {**table.settings, "image_px": request.own.image_px}

    def write() -> None:
        # Its dependencies warn of each other, which is no news to a user of cytofm.
        with replacing_folder(path) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _data(request, table).write(partial)

    return [Product([path], settings, table.steps, write)]


def _data(request: ExportRequest, table: h5ad.Planned) -> Any:
    """Return the `spatialdata.SpatialData` of a store."""
    import anndata
    import spatialdata
    from spatialdata.models import TableModel

    with tempfile.TemporaryDirectory(prefix="cytofm-") as folder:
        file = Path(folder) / "table.h5ad"
        table.write(file)
        rows = anndata.read_h5ad(file)
    regions: NDArray[Any] = np.full(len(rows), CIRCLES, object)
    shapes = dict(_shapes(request.store, table, rows, regions))
    rows.obs["region"], rows.obs["instance"] = regions, np.arange(len(rows))
    rows.obs["region"] = rows.obs["region"].astype("category")
    whole = TableModel.parse(
        rows, region=list(shapes), region_key="region", instance_key="instance"
    )
    images = _images(request, spatialdata)
    return spatialdata.SpatialData(images=images, shapes=shapes, tables={TABLE: whole})


def _shapes(
    store: Store, table: h5ad.Planned, rows: Any, regions: NDArray[Any]
) -> Iterator[tuple[str, Any]]:
    """Yield name and shapes of each region there is; `regions` is filled with their names.

    The index of the shapes is the row in the table.
    """
    import geopandas
    import shapely

    places = np.asarray(rows.obsm["spatial"])
    if table.unit == "tile":
        side = store.tile.tile_px0
        squares = shapely.box(*places.T, *(places + side).T)
        regions[:] = TILES
        yield TILES, _parsed(geopandas.GeoDataFrame(geometry=squares), store)
        return
    outlines = _outlines(table, len(rows))
    has = outlines != None  # noqa: E711 - element by element
    regions[has] = POLYGONS
    numbers = np.arange(len(rows))
    if has.any():
        frame = geopandas.GeoDataFrame(geometry=outlines[has], index=numbers[has])
        yield POLYGONS, _parsed(frame, store)
    if not has.all():
        points = shapely.points(places[~has])
        frame = geopandas.GeoDataFrame(geometry=points, index=numbers[~has])
        frame["radius"] = _radius_px0(rows[~has], store)
        yield CIRCLES, _parsed(frame, store)


def _outlines(table: h5ad.Planned, n: int) -> NDArray[Any]:
    """Return the polygon of each nucleus, None where there is none: object (n,)."""
    import shapely

    outlines: NDArray[Any] = np.full(n, None, object)
    first = 0
    for part in table.nuclei.read().parts() if table.nuclei is not None else ():
        start = part.table.contour_start
        lengths = np.diff(start)
        drawn = np.flatnonzero(lengths >= MIN_POLYGON_POINTS)
        ring = np.repeat(np.arange(len(drawn)), lengths[drawn])
        kept = np.repeat(lengths >= MIN_POLYGON_POINTS, lengths)
        rings = shapely.linearrings(part.table.contour_px0[kept].astype(np.float64), indices=ring)
        outlines[first + drawn] = shapely.polygons(rings)
        first += len(lengths)
    return outlines


def _radius_px0(rows: Any, store: Store) -> NDArray[np.float64]:
    """Return the radius of a disk of the nucleus' area, of 4 µm where that is not known."""
    known = rows.obs.get("area_um2")
    area_um2 = np.full(len(rows), np.nan) if known is None else np.asarray(known, np.float64)
    radius_um = np.sqrt(area_um2 / np.pi)
    return np.where(radius_um > 0, radius_um, _RADIUS_UM) / store.slide.mpp


_RADIUS_UM: Final = 4.0  # of an ordinary nucleus


def _parsed(frame: Any, store: Store) -> Any:
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(frame, transformations=_transformations(store, 1.0))


def _transformations(store: Store, downsample: float) -> dict[str, Any]:
    """Return the ways from pixels of `downsample` level-0 pixels to both coordinate systems."""
    from spatialdata.transformations import Identity, Scale

    def scale(by: float) -> Any:
        return Identity() if by == 1 else Scale([by, by], axes=("x", "y"))

    return {PX0: scale(downsample), UM: scale(downsample * store.slide.mpp)}


def _images(request: ExportRequest, spatialdata: Any) -> dict[str, Any]:
    """Return the picture of the slide that is asked for."""
    if request.own.image_px is None:
        return {}
    store = request.store
    coarsest = max(1.0, max(store.slide.size_px0) / request.own.image_px)
    path = find_slide(store, request.config.slides)
    with open_slide(path, reader=store.slide.reader) as reader:
        image_HWC = reader.overview(coarsest)
    downsample = store.slide.size_px0[0] / image_HWC.shape[1]
    parsed = spatialdata.models.Image2DModel.parse(
        np.moveaxis(image_HWC, -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations=_transformations(store, downsample),
    )
    return {PICTURE: parsed}


PLUGIN = ExporterPlugin(
    make=products,
    config=SpatialDataConfig,
    summary="bags as SpatialData: the table of h5ad with nuclei as polygons",
    what=("bags", "nuclei"),
    options=("encoder", "unit", "detector", "run", "classes", "measure"),
    needs=("spatialdata",),
    extra="spatialdata",
    sample=samples({}, {"unit": "tile"}, {"own": {"image_px": 64}}),
)
