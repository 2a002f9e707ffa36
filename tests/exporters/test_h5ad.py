"""anndata reads what is written: values, places in pixels and µm, classes, provenance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.formats import h5ad
from cytofm_cli.exporters.product import make
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import (
    EmbeddingRecord,
    LevelRecord,
    NucleiRecord,
    SlideRecord,
    TileRecord,
)
from cytofm_cli.store.zarr3 import write_array

N = 5
XY = np.array([[10.25, 20.5], [30, 40], [50, 60], [70, 80], [90, 100]], np.float32)
VALUES = np.arange(N * 3, dtype=np.float16).reshape(N, 3) / 4


def add_cells(path: Path, xy: np.ndarray, values: np.ndarray) -> None:
    with io.staging(path.parent, path.stem, "e") as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, values)
        arrays.write(staged, schema.CELL_EMBEDDINGS_XY, np.round(xy).astype(np.int32))
        record = EmbeddingRecord(
            **provenance.stamp({}, input_fingerprint="m"), n=len(xy), dim=3, unit="cell",
            cell_um=20.0, licence="Apache-2.0",
        )  # fmt: skip
        commit.commit_group(staged, path, "embeddings/e/cell", record)


def make_store(folder: Path, n: int = N) -> io.Store:
    path = io.store_path(folder, "s 1")
    slide = SlideRecord(
        slide_id="s 1", path="none.svs", size_px0=(512, 512), mpp=0.5,
        levels=(LevelRecord(size_px=(512, 512), downsample=1.0),),
    )  # fmt: skip
    tile = TileRecord(
        **provenance.stamp({"stride_px": None}, input_fingerprint="m"),
        n_tiles=2, tile_px=256, tile_px0=256.0, mpp=0.5, level=0,
    )  # fmt: skip
    with io.staging(folder, "s 1", "tile") as staged:
        arrays.write(staged, schema.TILE_XY, np.array([[0, 0], [256, 0]], np.int32))
        for kind, values in ((schema.TILE_FOREGROUND, [0.5, 1]), (schema.TILE_FOCUS, [0.25, 0])):
            arrays.write(staged, kind, np.array(values, np.float32))
        commit.commit_store(staged, path, slide=slide, record=tile)
    table = make_table(
        XY[:n], np.array([1, 2, np.nan, 4, 5])[:n], probability=np.linspace(0, 1, N)[:n],
        class_id=np.array([0, 1, 1, 0, 1])[:n], classes=("NILM", "ASC/H"),
    )  # fmt: skip
    with io.staging(folder, "s 1", "n") as staged:
        write_nuclei(staged, table)
        record = NucleiRecord(
            **provenance.stamp({}, input_fingerprint="m"), n=n, classes=table.classes
        )
        commit.commit_group(staged, path, "nuclei/classical", record)
    write_array(
        path / "nuclei/classical/texture", np.arange(n, dtype=np.float32), axes=("nucleus",)
    )
    add_cells(path, XY[:n], VALUES[:n])
    return io.open_store(path)


def written(store: io.Store, folder: Path, **settings) -> anndata.AnnData:
    config = ExportConfig(to=("h5ad",), **settings)
    (product,) = h5ad.products(ExportRequest(store=store, folder=folder, config=config))
    assert make(product, folder) == "written"
    return anndata.read_h5ad(folder / "s 1.h5ad")


def test_h5ad__holds_what_the_store_holds(tmp_path: Path) -> None:
    data = written(make_store(tmp_path), tmp_path)
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, VALUES)
    assert list(data.obs_names) == [f"s 1:{row}" for row in range(N)]
    assert list(data.var_names) == ["e_0", "e_1", "e_2"]
    assert list(data.obs.columns[:8]) == [
        "slide_id", "x_px0", "y_px0", "x_um", "y_um", "class", "probability", "area_um2",
    ]  # fmt: skip
    assert data.obs["slide_id"].tolist() == ["s 1"] * N
    assert data.obs["class"].tolist() == ["NILM", "ASC/H", "ASC/H", "NILM", "ASC/H"]
    np.testing.assert_array_equal(data.obs["texture"], np.arange(N))
    np.testing.assert_array_equal(data.obs["area_um2"], [1, 2, np.nan, 4, 5])
    np.testing.assert_array_equal(data.obs["probability"], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(data.obs[["x_px0", "y_px0"]], XY)
    np.testing.assert_array_equal(data.obsm["spatial"], XY)
    np.testing.assert_array_equal(data.obsm["spatial_um"], XY / 2)
    np.testing.assert_array_equal(data.obs[["x_um", "y_um"]], XY / 2)
    facts = data.uns["cytofm"]
    assert facts["slide_id"] == "s 1" and facts["encoder"] == "e" and facts["unit"] == "cell"
    assert facts["detector"] == "classical" and facts["licence"] == "Apache-2.0"
    assert facts["slide_mpp"] == 0.5
    ids = [step["id"] for step in json.loads(facts["steps"])]
    store = io.open_store(tmp_path / "s 1.zarr")
    assert ids == [
        store.steps[name].id for name in ("tile", "embeddings/e/cell", "nuclei/classical")
    ]


def test_h5ad__agrees_with_to_anndata(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (tmp_path / "o").mkdir()
    data, frame = written(store, tmp_path / "o"), cytofm.to_anndata(store)
    np.testing.assert_array_equal(data.X, frame.X)
    np.testing.assert_array_equal(data.obsm["spatial"], frame.obsm["spatial"])
    assert list(data.obs_names) == list(frame.obs_names)
    assert list(data.var_names) == list(frame.var_names)
    for column in frame.obs.columns:
        assert data.obs[column].astype(str).tolist() == frame.obs[column].astype(str).tolist()
    assert frame.uns["cytofm"].items() <= data.uns["cytofm"].items()


def test_h5ad__slides_are_joined_and_written_again_by_anndata(tmp_path: Path) -> None:
    data = written(make_store(tmp_path), tmp_path)
    other = data.copy()
    other.obs_names = [f"t:{row}" for row in range(N)]
    both = anndata.concat([data, other])
    both.write_h5ad(tmp_path / "both.h5ad")
    assert anndata.read_h5ad(tmp_path / "both.h5ad").shape == (2 * N, 3)
    backed = anndata.read_h5ad(tmp_path / "s 1.h5ad", backed="r")
    np.testing.assert_array_equal(backed[1:3].to_memory().X, VALUES[1:3])
    backed.file.close()


def test_h5ad__of_tiles_has_foreground_and_focus(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    values = np.array([[1, 2], [3, 4]], np.float32)
    with io.staging(tmp_path, "s 1", "t") as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, values)
        arrays.write(staged, schema.EMBEDDINGS_XY, np.array([[0, 0], [256, 0]], np.int32))
        record = EmbeddingRecord(**provenance.stamp({}, input_fingerprint="m"), n=2, dim=2)
        commit.commit_group(staged, store.path, "embeddings/e/tile", record)
    data = written(io.open_store(store.path), tmp_path, unit="tile")
    np.testing.assert_array_equal(data.X, values)
    assert data.obs["foreground"].tolist() == [0.5, 1] and data.obs["focus"].tolist() == [0.25, 0]
    np.testing.assert_array_equal(data.obsm["spatial_um"], [[0, 0], [128, 0]])
    assert "class" not in data.obs


def test_h5ad__blocks_of_any_size_hold_the_same(tmp_path, monkeypatch) -> None:
    store = make_store(tmp_path)
    first = written(store, tmp_path / "a")
    monkeypatch.setattr("cytofm_cli.exporters.nuclei.ROWS", 2)
    second = written(store, tmp_path / "b")
    np.testing.assert_array_equal(first.X, second.X)
    assert first.obs.equals(second.obs) and first.uns == second.uns
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])


def test_h5ad__a_slide_without_nuclei_has_no_rows(tmp_path: Path) -> None:
    data = written(make_store(tmp_path, n=0), tmp_path)
    assert data.shape == (0, 3)
    assert {"x_px0", "class", "area_um2"} <= set(data.obs.columns)


def test_h5ad__nuclei_that_were_removed_leave_the_places(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    (store.path / "nuclei").rename(tmp_path / "away")
    data = written(io.open_store(store.path), tmp_path)
    np.testing.assert_array_equal(data.X, VALUES)
    np.testing.assert_array_equal(data.obsm["spatial"], np.round(XY))
    assert list(data.obs.columns) == ["slide_id", "x_px0", "y_px0", "x_um", "y_um"]


def test_h5ad__what_is_not_there_or_of_other_nuclei_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with pytest.raises(StoreError, match="no embeddings for unit tile"):
        written(store, tmp_path, unit="tile")
    moved = XY + np.float32(1)
    add_cells(store.path, moved, VALUES)
    with pytest.raises(StoreError, match="of other nuclei"):
        written(io.open_store(store.path), tmp_path / "x")
    assert not list((tmp_path / "x").glob("*.h5ad"))


def test_h5ad__needs_no_anndata(tmp_path: Path) -> None:
    make_store(tmp_path)
    code = (
        "import sys; sys.modules['anndata'] = None; import cytofm_cli as c;"
        f"c.export({str(tmp_path / 's 1.zarr')!r}, {str(tmp_path / 'o')!r}, 'h5ad')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with h5py.File(tmp_path / "o" / "s 1.h5ad") as file:
        assert dict(file.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
        assert file["obs/class"].attrs["encoding-type"] == "categorical"
