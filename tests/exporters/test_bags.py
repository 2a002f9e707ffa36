"""Exports have the datasets, dtypes and attributes that the other tools read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.formats import h5, pt
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import EmbeddingRecord, LevelRecord, SlideRecord, TileRecord

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)
XY = np.array([[0, 0], [512, 0], [0, 512]], dtype=np.int32)


@pytest.fixture
def store(tmp_path: Path) -> io.Store:
    stores = tmp_path / "stores"
    path = io.store_path(stores, "case 1")
    slide = SlideRecord(
        slide_id="case 1",
        path="none.svs",
        size_px0=(4096, 2048),
        mpp=0.25,
        levels=(
            LevelRecord(size_px=(4096, 2048), downsample=1.0),
            LevelRecord(size_px=(2048, 1024), downsample=2.0),
        ),
    )
    tile = TileRecord(
        **provenance.stamp({"stride_px": 192}, input_fingerprint="m"),
        n_tiles=3,
        tile_px=256,
        tile_px0=512.0,
        mpp=0.5,
        level=1,
    )
    with io.staging(stores, "case 1", "tile") as staged:
        arrays.write(staged, schema.TILE_XY, XY)
        commit.commit_store(staged, path, slide=slide, record=tile)
    with io.staging(stores, "case 1", "e") as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, VALUES)
        arrays.write(staged, schema.EMBEDDINGS_XY, XY)
        record = EmbeddingRecord(**provenance.stamp({}, input_fingerprint="m"), n=3, dim=4)
        commit.commit_group(staged, path, "embeddings/uni/tile", record)
    return io.open_store(path)


def test_export_trident__layout_names_and_attributes(store: io.Store, tmp_path: Path) -> None:
    coords, features = h5.export_trident(store, tmp_path / "out", encoder=None)
    job = tmp_path / "out" / "20x_256px_64px_overlap"
    assert coords == job / "patches" / "case 1_patches.h5"
    assert features == job / "features_uni" / "case 1.h5"
    with h5py.File(coords) as file:
        table = file["coords"]
        assert table.dtype == np.int64
        assert table.chunks == (1, 2)
        np.testing.assert_array_equal(table[:], XY)
        attributes = dict(table.attrs)
    assert attributes == {
        "patch_size": 256,
        "patch_size_level0": 512.0,
        "level0_magnification": 40,
        "target_magnification": 20.0,
        "overlap": 64,
        "name": "case 1",
        "savetodir": str(coords.parent),
        "level0_width": 4096,
        "level0_height": 2048,
    }
    with h5py.File(features) as file:
        assert file["features"].dtype == np.float32
        assert file["features"].attrs["encoder"] == "uni"
        np.testing.assert_array_equal(file["features"][:], VALUES)
        np.testing.assert_array_equal(file["coords"][:], XY)


def test_export_clam__layout_names_and_attributes(store: io.Store, tmp_path: Path) -> None:
    coords, features, tensor = h5.export_clam(store, tmp_path, encoder="uni")
    assert coords == tmp_path / "patches" / "case 1.h5"
    with h5py.File(coords) as file:
        attributes = dict(file["coords"].attrs)
        assert attributes["patch_size"] == 256
        assert attributes["patch_level"] == 1
        np.testing.assert_array_equal(attributes["downsample"], [2.0, 2.0])
        np.testing.assert_array_equal(attributes["downsampled_level_dim"], [2048, 1024])
        np.testing.assert_array_equal(attributes["level_dim"], [4096, 2048])
    with h5py.File(features) as file:
        assert file["coords"].dtype == np.int32
        assert file["features"].chunks == (3, 4)
        assert set(file["features"].attrs) == {"cytofm"}
    loaded = torch.load(tensor, weights_only=True)
    assert loaded.dtype == torch.float32
    np.testing.assert_array_equal(loaded.numpy(), VALUES)


@pytest.mark.parametrize("kind", ["trident", "clam", "pt"])
def test_exports__come_back_as_the_same_bags(store: io.Store, tmp_path: Path, kind: str) -> None:
    write = {
        "trident": h5.export_trident,
        "clam": h5.export_clam,
        "pt": pt.export_pt,
    }[kind]
    paths = write(store, tmp_path / "out", encoder=None)
    folder = next(path.parent for path in paths if path.parent.name != "patches")
    (bag,) = load_bags(folder, None, "tile")
    assert bag.slide_id == "case 1"
    np.testing.assert_array_equal(bag.features_ND, VALUES)
    if kind != "pt":
        np.testing.assert_array_equal(bag.xy_px0, XY)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_export_pt__says_nothing_of_the_machine_that_wrote_it(
    store: io.Store, tmp_path: Path
) -> None:
    (first,) = pt.export_pt(store, tmp_path / "a", encoder=None)
    (second,) = pt.export_pt(store, tmp_path / "b", encoder=None)
    assert first.read_bytes() == second.read_bytes()


def test_export__an_encoder_that_is_not_there_is_named(store: io.Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'virchow'"):
        pt.export_pt(store, tmp_path, encoder="virchow")
