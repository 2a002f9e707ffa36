"""A store as pandas tables and as AnnData.

Places are (x, y) in level-0 pixels, as in the store: corners of tiles, centres of nuclei.
pandas and anndata are optional: `pip install 'cytofm[frames]'`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.api.given import PathLike
from cytofm_cli.errors import MissingPackageError
from cytofm_cli.exporters.bags import nuclei_of
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store, open_store

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

    from cytofm_cli.store.tables import NucleusTable

StoreLike = Store | PathLike


def tiles_frame(store: StoreLike) -> pd.DataFrame:
    """Return the tiles, one row each in the order of the store: place, foreground, quality.

    Columns: x_px0, y_px0 (top-left corner), foreground and focus (0 to 1); plane (focal plane,
    from 0) where the slide has several; the other columns of quality, which old stores have not;
    and region, by name, where regions label tiles.

    Raises:
        MissingPackageError: pandas is not installed.
        StoreError: the store has no tiles.
    """
    pandas, tiles = require("pandas"), _opened(store).tiles()
    columns = _places(tiles.xy_px0) | {"foreground": tiles.foreground, "focus": tiles.focus}
    if tiles.plane is not None:
        columns["plane"] = tiles.plane
    columns |= tiles.quality
    if tiles.label is not None:
        columns["region"] = pandas.Categorical.from_codes(tiles.label, tiles.labels)
    return pandas.DataFrame(columns).rename_axis("tile")


def nuclei_frame(store: StoreLike, detector: str | None = None) -> pd.DataFrame:
    """Return the nuclei, one row each in the order of the store.

    Columns: x_px0, y_px0 (centroid), area_um2, probability, class (by name, categorical), and what
    the detector measured besides (`NucleusTable.columns`).
    Outlines: `store.nuclei(detector).polygon(row)`.

    Args:
        store: an open store, or its path.
        detector: whose nuclei; None takes the only ones there are.

    Raises:
        MissingPackageError: pandas is not installed.
        StoreError: no nuclei, or several detectors and none named.
    """
    pandas, table = require("pandas"), _opened(store).nuclei(detector)
    return pandas.DataFrame(_columns(table, pandas)).rename_axis("nucleus")


def embeddings_frame(
    store: StoreLike, encoder: str | None = None, unit: str = "tile"
) -> pd.DataFrame:
    """Return a bag: one row a tile or cell, one column a feature (0, 1, …).

    The index holds the row in the store and the place: (row, x_px0, y_px0).

    Args:
        store: an open store, or its path.
        encoder: whose; None takes the only one there is.
        unit: "tile" or "cell".

    Raises:
        MissingPackageError: pandas is not installed.
        StoreError: no such embeddings, or several encoders and none named.
    """
    pandas, bag = require("pandas"), _opened(store).embeddings(encoder, unit)
    places = _places(bag.xy_px0)
    rows = [np.arange(len(bag.values)), places["x_px0"], places["y_px0"]]
    index = pandas.MultiIndex.from_arrays(rows, names=[unit, "x_px0", "y_px0"])
    return pandas.DataFrame(bag.values, index=index)


def to_anndata(store: StoreLike, encoder: str | None = None, unit: str = "cell") -> ad.AnnData:
    """Return a bag as AnnData, for scanpy and squidpy.

    `X` holds the embeddings; `obs` what is known of the tiles or nuclei; `obsm["spatial"]` their
    places in level-0 pixels, float64 (n, 2); `uns["cytofm"]` slide, encoder, unit and µm/px.
    Rows are called `<slide_id>:<row>`, so slides can be joined by `anndata.concat`.

    Args:
        store: an open store, or its path.
        encoder: whose embeddings; None takes the only one there is.
        unit: "tile" or "cell".

    Raises:
        MissingPackageError: anndata is not installed.
        StoreError: no such embeddings, several encoders and none named, or nuclei that are
            others than the cells.
    """
    anndata, pandas, store = require("anndata"), require("pandas"), _opened(store)
    bag = store.embeddings(encoder, unit)
    store.require_all_rows(schema.embedding_step(bag.encoder, unit))
    nuclei = nuclei_of(store, bag.xy_px0) if unit == "cell" else None
    if unit == "tile":
        obs = tiles_frame(store)
    elif nuclei is not None:
        obs = pandas.DataFrame(_columns(nuclei, pandas))
    else:  # they were removed from the store
        obs = pandas.DataFrame(_places(bag.xy_px0))
    obs.index = [f"{store.slide_id}:{row}" for row in range(len(obs))]
    obs["slide_id"] = pandas.Categorical([store.slide_id] * len(obs))
    facts = {
        "slide_id": store.slide_id,
        "encoder": bag.encoder,
        "unit": unit,
        "slide_mpp": float(store.slide.mpp),
    }
    table: ad.AnnData = anndata.AnnData(
        X=bag.values,
        obs=obs,
        var=pandas.DataFrame(index=[f"{bag.encoder}_{i}" for i in range(bag.values.shape[1])]),
        obsm={"spatial": obs[["x_px0", "y_px0"]].to_numpy(np.float64)},
        uns={"cytofm": facts},
    )
    return table


def require(package: str) -> Any:
    """Import an optional package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{package} is not installed.", hint="pip install 'cytofm[frames]'"
        ) from error


def _opened(store: StoreLike) -> Store:
    return store if isinstance(store, Store) else open_store(Path(store))


def _places(xy_px0: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"x_px0": xy_px0[:, 0], "y_px0": xy_px0[:, 1]}


def _columns(table: NucleusTable, pandas: Any) -> dict[str, Any]:
    return _places(table.xy_px0) | {
        "area_um2": table.area_um2,
        "probability": table.probability,
        "class": pandas.Categorical.from_codes(table.class_id.astype(np.int16), table.classes),
        **table.columns,
    }
