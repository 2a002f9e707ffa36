"""GeoJSON, label images, CSV: written, read back, and refused where damaged."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.nuclei import geojson, polygons
from cytofm_cli.nuclei.base import NucleusSource, empty_table, make_table
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei


def some_table():
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    centres = rng.uniform(50, 5000, (6, 2))
    rings = [c + circle * r for c, r in zip(centres, rng.uniform(8, 20, 6), strict=True)]
    rings[3] = np.zeros((0, 2))
    areas = np.array([polygons.area(r) * 0.0625 if len(r) else np.nan for r in rings])
    return make_table(
        centres, areas, polygons=rings, probability=rng.uniform(0, 1, 6),
        class_id=np.array([0, 1, 1, 0, 1, 0]), classes=("epithelial", "Plattenepithel ü"),
    ).sorted()  # fmt: skip


def imported(path, mpp=0.25, **settings):
    return ImportedNuclei(ImportedConfig(nuclei=path, **settings)).read(mpp)


def text_of(table, measurements=None) -> str:
    handle = io.BytesIO()
    geojson.write(handle, [geojson.Block(table, measurements or {})])
    return handle.getvalue().decode()


def test_geojson__round_trip(tmp_path):
    table = some_table()
    path = tmp_path / "nuclei.geojson"
    path.write_text(text_of(table), encoding="utf-8")
    back = imported(path)
    np.testing.assert_allclose(back.xy_px0, table.xy_px0, atol=0.02)
    np.testing.assert_allclose(back.area_um2, table.area_um2, rtol=2e-3)
    np.testing.assert_allclose(back.probability, table.probability, atol=1e-4)
    assert [back.classes[i] for i in back.class_id] == [table.classes[i] for i in table.class_id]
    np.testing.assert_array_equal(back.contour_start, table.contour_start)


def test_geojson__is_valid_and_as_qupath_has_it():
    table = some_table()
    measured = {"eccentricity": np.array([0.5, np.nan, 0.25, 0.1, np.inf, 0])}
    content = json.loads(text_of(table, measured))
    assert content["type"] == "FeatureCollection" and len(content["features"]) == len(table)
    for row, feature in enumerate(content["features"]):
        properties = feature["properties"]
        assert feature["type"] == "Feature" and properties["objectType"] == "detection"
        assert properties["classification"]["name"] in table.classes
        assert ("eccentricity" in properties["measurements"]) == (row not in {1, 4})
        if feature["geometry"]["type"] == "Polygon":
            ring = np.array(feature["geometry"]["coordinates"][0])
            np.testing.assert_array_equal(ring[0], ring[-1])
            x, y = ring[:-1].T  # RFC 7946: exterior rings turn counter-clockwise
            assert x @ np.roll(y, -1) - y @ np.roll(x, -1) > 0


def test_geojson__empty_table_is_an_empty_collection():
    assert json.loads(text_of(empty_table())) == {"type": "FeatureCollection", "features": []}


def test_geojson__reads_what_qupath_writes(tmp_path):
    square = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    small = [[9, 9], [10, 9], [10, 10], [9, 9]]
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]},
         "properties": {"objectType": "detection"}},
        {"type": "Feature", "geometry": {"type": "MultiPolygon",
         "coordinates": [[small], [[[x + 20, y] for x, y in square]]]},
         "properties": {"classification": {"names": ["a"], "name": "Tumor"},
                        "measurements": [{"name": "Detection probability", "value": 0.5}]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]},
         "nucleusGeometry": {"type": "Polygon", "coordinates": [[[x, y + 50] for x, y in square]]},
         "properties": None},
    ]  # fmt: skip
    path = tmp_path / "q.json"
    path.write_text(json.dumps(features))
    table = imported(path, mpp=0.5)
    np.testing.assert_array_equal(table.xy_px0, [[2, 2], [22, 2], [2, 52]])
    np.testing.assert_array_equal(table.area_um2, [4, 4, 4])
    assert [table.classes[i] for i in table.class_id] == ["nucleus", "Tumor", "nucleus"]
    np.testing.assert_array_equal(table.probability, [1, 0.5, 1])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("{}", "not GeoJSON"),
        ('{"type":"FeatureCollection"}', "not GeoJSON"),
        ('[{"type":"Feature"}]', "feature 0 has no geometry"),
        ('[{"geometry":{"type":"LineString","coordinates":[[0,0],[1,1]]}}]', "LineString"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[[0,0],[1,1]]]}}]', "feature 0"),
        ('[{"geometry":{"type":"Polygon","coordinates":[]}}]', "feature 0"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[[0,0],[1,"x"],[2,2]]]}}]', "feature 0"),
        ('[{"geometry":{"type":"Point","coordinates":[0]}}]', "feature 0"),
        ('[{"geometry":{"type":"Point","coordinates":[0,NaN]}}]', "feature 0"),
        ("[3]", "feature 0"),
    ],
)
def test_geojson__damage_is_named(tmp_path, text, word):
    path = tmp_path / "bad.geojson"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        imported(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.float32])
def test_label_image__tiff_of_every_depth(tmp_path, dtype):
    labels = np.zeros((20, 30), dtype)
    labels[2:6, 3:9] = 1
    labels[10:14, 20:26] = 200
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    table = imported(tmp_path / "labels.tif", mpp=0.25, scale=2.0)
    np.testing.assert_array_equal(table.xy_px0, [[12, 8], [46, 24]])
    np.testing.assert_array_equal(table.area_um2, [6, 6])  # 24 px of 0.5 µm


def test_label_image__png_16_bit(tmp_path):
    labels = np.zeros((20, 30), np.uint16)
    labels[2:6, 3:9] = 40_000
    Image.fromarray(labels).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(imported(tmp_path / "labels.png").xy_px0, [[6, 4]])


def test_label_image__refusals(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    tifffile.imwrite(tmp_path / "half.tif", np.full((4, 4), 0.5, np.float32))
    tifffile.imwrite(tmp_path / "minus.tif", np.full((4, 4), -1, np.int32))
    (tmp_path / "text.png").write_text("no image")
    words = {"colour": "channels", "half": "whole", "minus": "negative", "text": "readable"}
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=words[path.stem]):
            imported(path)


def test_csv__points_classes_probabilities(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("\ufeffX,Y,label,probability\n10,20.5,HSIL,0.5\n3,4,,1\n", encoding="utf-8")
    table = imported(path, scale=2.0)
    np.testing.assert_array_equal(table.xy_px0, [[6, 8], [20, 41]])
    assert [table.classes[i] for i in table.class_id] == ["nucleus", "HSIL"]
    np.testing.assert_array_equal(table.probability, [1, 0.5])
    assert np.isnan(table.area_um2).all() and len(table.contour_px0) == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [("a,b\n1,2\n", "no column x"), ("", "empty"), ("x,y\n1,two\n", "line 2, column y"),
     ("x,y\n1\n", "line 2: 1 cells"), ("x,y\nnan,2\n", "line 2, column x"),
     ("x,y,probability\n1,2,1\n1,2,7\n", "line 3, column probability: probability 7"),
     ("x,y,probability\n1,2,-0.5\n", "line 2, column probability")],
)  # fmt: skip
def test_csv__damage_is_named(tmp_path, text, word):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=word):
        imported(path)


def test_imported__missing_unknown_and_empty(tmp_path):
    with pytest.raises(UsageError, match="needs a file"):
        ImportedNuclei()
    with pytest.raises(InputError, match="no such file"):
        imported(tmp_path / "none.geojson")
    (tmp_path / "nuclei.xyz").touch()
    with pytest.raises(InputError, match="xyz"):
        imported(tmp_path / "nuclei.xyz")
    (tmp_path / "empty.csv").write_text("x,y\n")
    assert len(imported(tmp_path / "empty.csv")) == 0
    assert isinstance(ImportedNuclei(ImportedConfig(nuclei=tmp_path / "empty.csv")), NucleusSource)
