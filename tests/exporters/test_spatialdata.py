"""spatialdata reads what is written: shapes, both coordinate systems, the table and its regions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.store import commit, io
from cytofm_cli.testing.samples.stores import make_store

pytestmark = pytest.mark.filterwarnings("ignore")  # its dependencies warn of each other
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    spatialdata = pytest.importorskip("spatialdata", reason="needs cytofm[spatialdata]")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> io.Store:
    return make_store(tmp_path_factory.mktemp("stores"))


def read(path: Path) -> Any:
    return spatialdata.read_zarr(path)


def test_spatialdata__nuclei_are_the_outlines_and_the_table_is_that_of_h5ad(
    store: io.Store, tmp_path: Path
) -> None:
    import anndata

    files = cytofm.export(store.path, tmp_path, to=("spatialdata", "h5ad"))
    data, table = read(files[0]), anndata.read_h5ad(files[1])
    nuclei = store.nuclei()
    shapes = data.shapes["nuclei"]
    assert shapes.index.tolist() == list(range(len(nuclei)))
    for row, polygon in zip(range(len(nuclei)), shapes.geometry, strict=True):
        np.testing.assert_array_equal(np.asarray(polygon.exterior.coords)[:-1], nuclei.polygon(row))
    cells = data.tables["cells"]
    np.testing.assert_array_equal(cells.X, table.X)
    assert cells.obs_names.tolist() == table.obs_names.tolist()
    assert cells.obs["region"].unique().tolist() == ["nuclei"]
    assert cells.obs["instance"].tolist() == shapes.index.tolist()
    assert cells.uns["spatialdata_attrs"] == {
        "region": ["nuclei"], "region_key": "region", "instance_key": "instance"
    }  # fmt: skip
    assert cells.uns["cytofm"]["slide_mpp"] == table.uns["cytofm"]["slide_mpp"] == 0.25


def test_spatialdata__um_is_a_scale_of_level_0(store: io.Store, tmp_path: Path) -> None:
    (path,) = cytofm.export(store.path, tmp_path, to="spatialdata")
    data = read(path)
    assert sorted(data.coordinate_systems) == ["global", "um"]
    in_px0, in_um = (data.transform_to_coordinate_system(name) for name in ("global", "um"))
    areas = [frame.shapes["nuclei"].geometry.area.to_numpy() for frame in (in_px0, in_um)]
    np.testing.assert_allclose(areas[1], areas[0] / 16, rtol=1e-9)
    np.testing.assert_allclose(areas[1], store.nuclei().area_um2, rtol=0.2)


def test_spatialdata__a_picture_covers_the_slide(store: io.Store, tmp_path: Path) -> None:
    own = {"image_px": 64}
    (path,) = cytofm.export(store.path, tmp_path, to="spatialdata", exporter_settings=own)
    data = read(path)
    assert data.images["slide"].shape == (3, 32, 64)
    x0, x1 = spatialdata.get_extent(data["slide"], coordinate_system="um")["x"]
    assert (float(x0), float(x1)) == (0.0, 64.0)


def test_spatialdata__tiles_are_squares(store: io.Store, tmp_path: Path) -> None:
    (path,) = cytofm.export(store.path, tmp_path, to="spatialdata", unit="tile")
    data = read(path)
    assert data.shapes["tiles"].geometry[1].bounds == (128.0, 0.0, 256.0, 128.0)
    assert len(data.tables["cells"]) == 2


def test_spatialdata__without_outline_a_nucleus_is_a_circle_of_its_area(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    nuclei = store.nuclei()
    drawn = [nuclei.polygon(row) for row in range(len(nuclei))]
    drawn[1], drawn[2] = drawn[1][:2], drawn[2][:0]
    area = nuclei.area_um2.copy()
    area[1], area[2] = np.pi * 9, np.nan
    table = make_table(nuclei.xy_px0, area, polygons=drawn, probability=nuclei.probability)
    record = store.nuclei_record("classical")
    with io.staging(store.path.parent, store.slide_id, "nuclei") as staged:
        write_nuclei(staged, table)
        commit.commit_group(staged, store.path, "nuclei/classical", record)
    cytofm.embed(store.path, encoder="handcrafted", unit="cell", overwrite=True, device="cpu")
    (path,) = cytofm.export(store.path, tmp_path / "out", to="spatialdata", overwrite=True)
    data = read(path)
    circles = data.shapes["nuclei_circles"]
    assert circles.index.tolist() == [1, 2]
    np.testing.assert_allclose(circles["radius"], [3 / 0.25, 4 / 0.25], rtol=1e-6)
    assert data.tables["cells"].obs["region"].tolist()[:4] == [
        "nuclei", "nuclei_circles", "nuclei_circles", "nuclei"
    ]  # fmt: skip
    assert len(data.shapes["nuclei"]) == len(nuclei) - 2


def test_spatialdata__a_second_export_leaves_the_folder_and_a_killed_one_is_cleared(
    store: io.Store, tmp_path: Path
) -> None:
    (path,) = cytofm.export(store.path, tmp_path, to="spatialdata")
    before = (path / "zarr.json").stat().st_mtime_ns
    cytofm.export(store.path, tmp_path, to="spatialdata")
    assert (path / "zarr.json").stat().st_mtime_ns == before
    left = tmp_path / f".{path.name}.host-1-ab.partial"
    left.mkdir()
    cytofm.export(store.path, tmp_path, to="spatialdata", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [".cytofm", path.name]
