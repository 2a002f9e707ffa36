"""One file for QuPath: nuclei, classes, attention, measurements; valid, and in its coordinates."""

from __future__ import annotations

import csv
import json
import shutil
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely

from cytofm_cli.errors import ConfigMismatchError, StoreError
from cytofm_cli.exporters import nuclei as nuclei_export
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.product import Product, make
from cytofm_cli.mil.bags import load_bags
from cytofm_cli.nuclei import geojson
from cytofm_cli.nuclei.base import NucleusTable, empty_table, make_table
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei
from cytofm_cli.nuclei.place import SlidePlace
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.registry import exporters
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import LevelRecord, NucleiRecord, SlideRecord, StepRecord, TileRecord
from cytofm_cli.store.zarr3 import BYTES, ZSTD, write_array, zstd_encode
from cytofm_cli.units import Box, Size

BOUNDS = [4000, 2000, 512, 512]
CENTRES = np.array([[4030.25, 2030.5], [4100, 2200.75], [4300.5, 2300]])
ATTENTION = np.array([[0.5, 1.5], [2e-7, -2.0], [0.4999998, 0.25]], np.float32)


def circle(x: float, y: float, r: float = 9) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], 1)


def table() -> NucleusTable:
    rings = [circle(*xy) for xy in CENTRES]
    # Crosses itself: as stores of earlier versions hold them.
    rings[2] = np.array([[4290, 2290], [4320, 2290], [4300, 2310], [4320, 2310]], float)
    return make_table(CENTRES, np.array([15.7, 15.7, 12]), polygons=rings,
                      probability=np.array([0.25, 0.5, 1]), class_id=np.array([0, 1, 1]),
                      classes=("Tumor: Positive", "Stroma"))  # fmt: skip


def add(path: Path, step: str, values: dict[str, np.ndarray], **record) -> None:
    with io.staging(path.parent, path.stem, step) as staged:
        for name, array in values.items():
            arrays.write(staged, schema.kind_of(f"{step}/{name}"), array)
        config = record.pop("config", {})
        told = provenance.record(config, input_fingerprint=record.pop("mark"), **record)
        commit.commit_group(staged, path, step, StepRecord.from_json(told))


@pytest.fixture
def store(tmp_path: Path) -> io.Store:
    path = io.store_path(tmp_path / "stores", "s")
    slide = SlideRecord(
        slide_id="s", path="none.scn", size_px0=(9000, 8000), mpp=0.25, bounds_px0=BOUNDS,
        levels=(LevelRecord(size_px=(9000, 8000), downsample=1.0),),
    )  # fmt: skip
    tile = TileRecord(
        **provenance.stamp({"stride_px": None}, input_fingerprint="m"),
        n_tiles=1, tile_px=512, tile_px0=512.0, mpp=0.25, level=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (1, 512, 512, 3), dtype=np.uint8)
    with io.staging(path.parent, "s", "tile") as staged:
        corners = np.array([[4000, 2000]], np.int32)
        arrays.write(staged, schema.TILE_XY, corners)
        writer = arrays.open_shards(
            staged, schema.TILE_PIXELS, shape=pixels.shape, rows_per_shard=1,
            chunk=pixels.shape, codecs=[BYTES, ZSTD],
        )  # fmt: skip
        writer.write_shard(0, [zstd_encode(pixels.tobytes())])
        commit.commit_store(staged, path, slide=slide, record=tile)
    with io.staging(path.parent, "s", "n") as staged:
        write_nuclei(staged, table())
        record = NucleiRecord(
            **provenance.stamp({}, input_fingerprint="m"), n=3, classes=table().classes
        )
        commit.commit_group(staged, path, "nuclei/classical", record)
    cells = np.round(CENTRES).astype(np.int32)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    add(path, "embeddings/e/cell", {"values": values, "xy_px0": cells}, mark="c", n=3, dim=4,
        unit="cell", cell_um=20.0)  # fmt: skip
    bag = io.open_store(path).steps["embeddings/e/cell"]
    add(path, "attention/RUN/cell", {"values": ATTENTION}, n=3, dim=2,
        mark=bag.mark,
        config={"columns": ["attention", "score_HSIL"]})  # fmt: skip
    return io.open_store(path)


def products(store: io.Store, folder: Path, *kinds: str, **wanted) -> tuple[list[Product], list]:
    notes: list[str] = []
    request = ExportRequest(
        store=store, folder=folder, config=ExportConfig(**wanted), note=notes.append
    )
    return [product for kind in kinds for product in exporters.load(kind).make(request)], notes


def written(store: io.Store, folder: Path, **wanted) -> tuple[dict, list[str]]:
    (product,), notes = products(store, folder, "geojson", **wanted)
    make(product, folder, overwrite=True)
    return json.loads((folder / "s.geojson").read_text()), notes


def test_geojson__one_file_with_class_attention_and_measurements(store, tmp_path):
    content, notes = written(store, tmp_path)
    first, second, third = content["features"]
    assert content["cytofm"] == {"slide_id": "s", "detector": "classical",
                                 "origin_px0": [4000, 2000]}  # fmt: skip
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"]["name"] == "Tumor: Positive"
    assert len(first["properties"]["classification"]["color"]) == 3
    measured = second["properties"]["measurements"]
    assert measured["attention for the slide's answer"] == pytest.approx(2e-7, rel=1e-5)
    assert measured["attention for the slide's answer, percentile"] == pytest.approx(16.6667)
    assert measured["score for HSIL"] == -2
    assert measured["Detection probability"] == 0.5
    assert measured["Area µm^2"] == pytest.approx(15.7)
    assert measured["circularity"] == pytest.approx(1, abs=0.02)
    assert len({str(uuid.UUID(f["id"])) for f in (first, second, third)}) == 3
    assert len(notes) == 1 and "(4000, 2000); --origin slide otherwise" in notes[0]
    again, _ = written(store, tmp_path)
    assert again == content


def test_geojson__every_polygon_is_valid_and_counted_from_the_scanned_part(store, tmp_path):
    for origin, corner in (("bounds", (4000, 2000)), ("slide", (0, 0))):
        content, _ = written(store, tmp_path, origin=origin)
        for feature, xy in zip(content["features"][:2], CENTRES[:2], strict=True):
            shape = shapely.geometry.shape(feature["geometry"])
            np.testing.assert_allclose(shape.centroid.coords[0], xy - corner, atol=0.01)
        for feature in content["features"]:
            ring = feature["geometry"]["coordinates"][0]
            assert ring[0] == ring[-1] and len({tuple(p) for p in ring}) == len(ring) - 1
            shape = shapely.geometry.shape(feature["geometry"])
            assert shape.is_valid and shape.exterior.is_ccw


def test_geojson__comes_back_as_the_same_nuclei(store, tmp_path):
    place = SlidePlace(slide_id="s", size_px0=Size(9000, 8000), bounds_px0=Box(*BOUNDS))
    for origin in ("bounds", "slide"):
        written(store, tmp_path, origin=origin)
        source = ImportedNuclei(ImportedConfig(nuclei=tmp_path / "s.geojson"))
        back = source.read(0.25, place, print)
        np.testing.assert_allclose(back.xy_px0[:2], CENTRES[:2], atol=0.01)
        assert [back.classes[i] for i in back.class_id] == ["Tumor: Positive", "Stroma", "Stroma"]
        np.testing.assert_array_equal(back.probability, [0.25, 0.5, 1])


def test_geojson__a_feature_is_a_line_of_known_text(store, tmp_path):
    written(store, tmp_path, origin="slide", measure=False)
    lines = (tmp_path / "s.geojson").read_text().splitlines()
    assert lines[0] == (
        '{"type":"FeatureCollection","cytofm":{"slide_id":"s","detector":"classical",'
        '"origin_px0":[0,0]},"features":['
    )
    number = uuid.uuid5(uuid.UUID("6f1d2c52-7d0f-5a0e-9f0e-0c7f6d9a2b11"), "s/classical/2")
    # The ring crosses itself at (4308, 2302), where two loops meet: the larger one stays.
    ring = "[4290.0,2290.0],[4320.0,2290.0],[4308.0,2302.0],[4290.0,2290.0]"
    assert lines[3].startswith(
        f'{{"type":"Feature","id":"{number}",'
        f'"geometry":{{"type":"Polygon","coordinates":[[{ring}]]}},'
        '"properties":{"objectType":"detection","classification":{"name":"Stroma",'
        '"color":[213,94,0]},"measurements":{"Area µm^2":12.0,"Detection probability":1.0,'
    )
    assert lines[-1] == "]}"


def test_stored_columns__are_written_and_no_pixel_is_read(store, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(nuclei_export, "measure_all", never)
    group = store.path / "nuclei" / "classical"
    write_array(group / "chromatin", np.array([0.5, np.nan, 2], np.float32), axes=("nucleus",))
    write_array(group / "more" / "n_pieces", np.array([1, 2, 3], np.int32), axes=("nucleus",))
    write_array(group / "circularity", np.array([0.1, 0.2, 0.3], np.float32), axes=("nucleus",))
    write_array(group / "other", np.zeros(4, np.float32), axes=("thing",))
    content, _ = written(store, tmp_path)
    measured = [feature["properties"]["measurements"] for feature in content["features"]]
    assert [m.get("chromatin") for m in measured] == [0.5, None, 2]
    assert [m["more/n_pieces"] for m in measured] == [1, 2, 3]
    assert [m["circularity"] for m in measured] == [0.1, 0.2, 0.3]
    assert "other" not in measured[0] and "optical_density" not in measured[0]
    (product,), _ = products(store, tmp_path, "csv")
    make(product, tmp_path)
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["chromatin"] for row in rows] == ["0.5000", "", "2.0000"]
    assert [row["more/n_pieces"] for row in rows] == ["1", "2", "3"]


def test_measure__adds_what_is_not_stored_and_says_so_in_the_record(store, tmp_path):
    group = store.path / "nuclei" / "classical"
    write_array(group / "texture", np.array([7, 8, 9], np.float32), axes=("nucleus",))
    content, _ = written(store, tmp_path, measure=True)
    measured = [feature["properties"]["measurements"] for feature in content["features"]]
    assert [m["texture"] for m in measured] == [7, 8, 9]
    assert 0 < measured[0]["optical_density"] < 3
    (product,), _ = products(store, tmp_path, "geojson", measure=False)
    with pytest.raises(ConfigMismatchError, match="measure"):
        make(product, tmp_path)


def test_unknown_probability__is_left_out(store, tmp_path):
    probability = store.path / "nuclei" / "classical" / "probability"
    shutil.rmtree(probability)
    write_array(probability, np.array([0.5, np.nan, 1], np.float32), axes=("nucleus",))
    content, _ = written(store, tmp_path)
    found = [f["properties"]["measurements"] for f in content["features"]]
    assert [m.get("Detection probability") for m in found] == [0.5, None, 1]
    (product,), _ = products(store, tmp_path, "csv")
    make(product, tmp_path)
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["probability"] for row in rows] == ["0.5000", "", "1.0000"]


def test_coordinates_that_are_no_numbers__are_refused_and_nothing_is_left(store, tmp_path):
    xy = store.path / "nuclei" / "classical" / "xy_px0"
    shutil.rmtree(xy)
    write_array(xy, np.full((3, 2), np.nan, np.float32), axes=("nucleus", "xy"))
    shutil.rmtree(store.path / "attention")
    store = io.open_store(store.path)
    (product,), _ = products(store, tmp_path / "out", "geojson", measure=False)
    with pytest.raises(StoreError, match="a coordinate is not a finite number"):
        make(product, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))[1:]  # the folder of records alone


@pytest.mark.parametrize("kind", ["geojson", "csv"])
def test_blocks__of_any_size_give_the_same_file(store, tmp_path, monkeypatch, kind):
    (product,), _ = products(store, tmp_path / "a", kind)
    make(product, tmp_path / "a")
    for module, name in ((nuclei_export, "ROWS"), (geojson, "_BLOCK")):
        monkeypatch.setattr(module, name, 2)
    (product,), _ = products(store, tmp_path / "b", kind)
    make(product, tmp_path / "b")
    assert (tmp_path / "b" / f"s.{kind}").read_bytes() == (tmp_path / f"a/s.{kind}").read_bytes()


@pytest.mark.parametrize("kind", ["geojson", "csv"])
def test_no_nuclei__give_a_file_without_rows(store, tmp_path, kind):
    with io.staging(store.path.parent, "s", "n") as staged:
        write_nuclei(staged, empty_table())
        record = NucleiRecord(**provenance.stamp({}, input_fingerprint="m"), n=0, classes=("a",))
        commit.commit_group(staged, store.path, "nuclei/classical", record)
    (product,), _ = products(io.open_store(store.path), tmp_path, kind)
    make(product, tmp_path)
    text = (tmp_path / f"s.{kind}").read_text()
    if kind == "geojson":
        assert json.loads(text)["features"] == []
    else:
        assert len(text.splitlines()) == 1 and text.startswith("slide_id,x_px0,y_px0,class,")


def test_csv__has_attention_and_level_0_places(store, tmp_path):
    (product,), _ = products(store, tmp_path, "csv")
    make(product, tmp_path)
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [(row["x_px0"], row["y_px0"]) for row in rows] == [
        ("4030.25", "2030.50"), ("4100.00", "2200.75"), ("4300.50", "2300.00"),
    ]  # fmt: skip
    assert [row["class"] for row in rows] == ["Tumor: Positive", "Stroma", "Stroma"]
    assert [row["attention for the slide's answer"] for row in rows] == ["0.5", "2e-07", "0.5"]
    assert [row["score for HSIL"] for row in rows] == ["1.5", "-2", "0.25"]


def test_h5ad__has_level_0_places_whatever_was_scanned(store, tmp_path):
    anndata = pytest.importorskip("anndata")
    (product,), _ = products(store, tmp_path, "h5ad", measure=False)
    make(product, tmp_path)
    data = anndata.read_h5ad(tmp_path / "s.h5ad")
    np.testing.assert_array_equal(data.obs[["x_px0", "y_px0"]], CENTRES)
    np.testing.assert_array_equal(data.obsm["spatial"], CENTRES)
    np.testing.assert_array_equal(data.obsm["spatial_um"], CENTRES * 0.25)
    assert data.obs["class"].tolist() == ["Tumor: Positive", "Stroma", "Stroma"]


def test_spatialdata__has_level_0_outlines_whatever_was_scanned(store, tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="needs cytofm[spatialdata]")
    (product,), _ = products(store, tmp_path, "spatialdata", measure=False)
    make(product, tmp_path)
    shapes = spatialdata.read_zarr(tmp_path / "s.sd.zarr").shapes["nuclei"]
    places = [shape.centroid.coords[0] for shape in shapes.geometry[:2]]
    np.testing.assert_allclose(places, CENTRES[:2], atol=0.01)


def test_measuring__is_done_once_for_both_files(store, tmp_path, monkeypatch):
    calls = []
    plain = nuclei_export.measure_all
    monkeypatch.setattr(nuclei_export, "measure_all", lambda *a: calls.append(1) or plain(*a))
    both, _ = products(store, tmp_path, "geojson", "csv")
    assert [make(product, tmp_path) for product in both] == ["written", "written"]
    assert len(calls) == 1
    both, _ = products(store, tmp_path, "geojson", "csv")
    assert [make(product, tmp_path) for product in both] == ["skipped", "skipped"]
    assert len(calls) == 1


def test_run__that_is_not_there_or_of_other_cells_is_refused(store, tmp_path):
    with pytest.raises(StoreError, match="no scores of RUN other"):
        products(store, tmp_path, "geojson", run="other")
    add(
        store.path,
        "embeddings/e2/cell",
        {"xy_px0": np.zeros((3, 2), np.int32)},
        mark="d",
        n=3,
        dim=4,
    )
    bag = io.open_store(store.path).steps["embeddings/e2/cell"]
    add(store.path, "attention/RUN2/cell", {"values": ATTENTION},
        mark=bag.mark,
        config={"columns": ["attention", "score_HSIL"]})  # fmt: skip
    store = io.open_store(store.path)
    _, notes = products(store, tmp_path, "geojson")
    assert notes == ["s: scored by RUN, RUN2; --run NAME adds its scores"]
    with pytest.raises(StoreError, match="RUN2 are of other cells"):
        written(store, tmp_path, run="RUN2")
    content, _ = written(store, tmp_path, run="RUN")
    assert "score for HSIL" in content["features"][0]["properties"]["measurements"]


@pytest.mark.parametrize("layout", ["trident", "clam", "pt"])
def test_bags_of_cells__have_places_and_classes(store, tmp_path, layout):
    kind, layouts = ("pt", {}) if layout == "pt" else ("h5", {"layout": layout})
    ((product,), _) = products(store, tmp_path / "out", kind, unit="cell", **layouts)
    assert make(product, tmp_path / "out") == "written"
    assert all(path.is_file() for path in product.files)
    (bag,) = load_bags(product.files[-1], None, "cell")
    np.testing.assert_array_equal(bag.features_ND, np.arange(12).reshape(3, 4))
    if layout == "pt":
        return
    with h5py.File(product.files[1]) as file:
        np.testing.assert_array_equal(file["coords"][:], np.round(CENTRES))
        assert file["coords"].attrs["anchor"] == "centre"
        names = file["class"].attrs["names"]
        assert [names[i] for i in file["class"][:]] == ["Tumor: Positive", "Stroma", "Stroma"]
        np.testing.assert_array_equal(file["probability"][:], [0.25, 0.5, 1])
    if layout == "trident":
        assert product.files[1].relative_to(tmp_path / "out").as_posix() == (
            "cells_40x_80px_0px_overlap/features_e/s.h5"
        )
        with h5py.File(product.files[0]) as file:
            assert file["coords"].attrs["patch_size"] == 80  # 20 µm at 0.25 µm/px
            assert file["coords"].attrs["patch_size_level0"] == 80.0


def test_bags_of_cells__of_other_nuclei_are_refused(store, tmp_path):
    moved = np.round(CENTRES).astype(np.int32) + 1
    others = {"values": np.zeros((3, 4), np.float32), "xy_px0": moved}
    add(store.path, "embeddings/e/cell", others, mark="c", n=3, dim=4, cell_um=20.0)
    store = io.open_store(store.path)
    ((product,), _) = products(store, tmp_path, "h5", unit="cell")
    with pytest.raises(StoreError, match="of other nuclei"):
        make(product, tmp_path)
