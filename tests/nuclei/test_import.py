"""Import takes what QuPath means: classes, objects, origins, units; and says what it leaves out."""

from __future__ import annotations

import json
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.nuclei import point_tables
from cytofm_cli.nuclei.detectors.imported import ImportedConfig, ImportedNuclei
from cytofm_cli.nuclei.place import SlidePlace
from cytofm_cli.tables import read_pieces
from cytofm_cli.units import Box, Size

SLIDE = SlidePlace(slide_id="s", size_px0=Size(1000, 800))
CROPPED = SlidePlace(slide_id="s", size_px0=Size(9000, 8000), bounds_px0=Box(4000, 2000, 1000, 800))


def square(x: float, y: float, r: float = 10) -> list[list[float]]:
    return [[x - r, y - r], [x + r, y - r], [x + r, y + r], [x - r, y + r], [x - r, y - r]]


def feature(x: float = 100, y: float = 50, *, geometry: dict | None = None, **properties) -> dict:
    shape = geometry or {"type": "Polygon", "coordinates": [square(x, y)]}
    return {"type": "Feature", "geometry": shape, "properties": properties}


def write(path: Path, features: list[dict], **members) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", **members, "features": features}))
    return path


def load(path: Path, place: SlidePlace | None = SLIDE, **settings):
    """Return the table and what was said."""
    notes: list[str] = []
    source = ImportedNuclei(ImportedConfig(nuclei=path, **settings))
    return source.read(0.25, place, notes.append), notes


def names(table) -> list[str]:
    return [table.classes[i] for i in table.class_id]


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor", "color": [1, 2, 3]}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [1, 2, 3]}, "Tumor: Positive"),
        ({"names": ["Tumor"]}, "Tumor"),
        ({"name": "Positive", "colorRGB": -1, "parentClass": {"name": "Tumor"}}, "Tumor: Positive"),
        ("Tumor: Positive", "Tumor: Positive"),
        (["Tumor", "Positive"], "Tumor: Positive"),
        (" Stroma ", "Stroma"),
        ({}, "nucleus"),
        (None, "nucleus"),
        ("", "nucleus"),
        ({"name": None}, "nucleus"),
    ],
)
def test_classes__of_every_form_keep_their_name(tmp_path, classification, name):
    table, _ = load(write(tmp_path / "a.geojson", [feature(classification=classification)]))
    assert names(table) == [name]


def test_classes__of_other_programs_stand_beside(tmp_path):
    features = [feature(10, 20, type="lymphocyte"), feature(30, 20, label="HSIL"),
                feature(50, 20, type="detection")]  # fmt: skip
    table, _ = load(write(tmp_path / "a.geojson", features))
    assert names(table) == ["lymphocyte", "HSIL", "nucleus"]


def test_objects__regions_are_left_out_and_counted(tmp_path):
    features = [
        feature(500, 400, objectType="annotation"),
        feature(500, 400, objectType="tile"),
        feature(500, 400, object_type="tma_core"),
        {**feature(500, 400), "id": "PathAnnotationObject"},
        feature(10, 20, objectType="detection"),
        feature(30, 20, objectType="cell"),
        {**feature(50, 20), "id": "PathDetectionObject"},
        feature(70, 20),
    ]
    path = write(tmp_path / "a.geojson", features)
    table, notes = load(path)
    np.testing.assert_array_equal(table.xy_px0, [[10, 20], [30, 20], [50, 20], [70, 20]])
    assert notes == [
        f"{path}: 2 annotation(s), 1 tile(s), 1 TMA core(s) left out: regions, no nuclei"
    ]
    assert len(load(path, annotations=True)[0]) == 6


def test_objects__nested_in_annotations_are_found(tmp_path):
    inner = [feature(10, 20, objectType="detection"), feature(30, 20, objectType="detection")]
    outer = feature(500, 400, objectType="annotation", childObjects=inner)
    table, _ = load(write(tmp_path / "a.geojson", [outer]))
    np.testing.assert_array_equal(table.xy_px0, [[10, 20], [30, 20]])


def test_objects__regions_alone_are_refused_and_points_of_the_counting_tool_are_not(tmp_path):
    path = write(tmp_path / "a.geojson", [feature(objectType="annotation")] * 2)
    with pytest.raises(InputError, match=r"2 annotation\(s\) and neither") as refused:
        load(path)
    assert "annotations=true" in str(refused.value.hint)
    points = {"type": "MultiPoint", "coordinates": [[5, 6], [7, 8], [9, 10]]}
    table, _ = load(write(path, [feature(geometry=points, objectType="annotation")]))
    np.testing.assert_array_equal(table.xy_px0, [[5, 6], [7, 8], [9, 10]])


def test_cell__gives_its_nucleus(tmp_path):
    cell = feature(100, 50, objectType="cell")
    cell["nucleusGeometry"] = {"type": "Polygon", "coordinates": [square(101, 52, 4)]}
    table, _ = load(write(tmp_path / "a.geojson", [cell]))
    np.testing.assert_array_equal(table.xy_px0, [[101, 52]])
    assert table.area_um2[0] == 4  # 8 x 8 px of 0.25 µm


@pytest.mark.parametrize("value", ["NaN", "null", '"NaN"'])
@pytest.mark.parametrize("form", ['{"Detection probability": %s}',
                                  '[{"name": "Detection probability", "value": %s}]'])  # fmt: skip
def test_probability__unknown_is_1(tmp_path, value, form):
    text = json.dumps([feature(measurements="HERE")]).replace('"HERE"', form % value)
    (tmp_path / "a.geojson").write_text(text)
    np.testing.assert_array_equal(load(tmp_path / "a.geojson")[0].probability, [1])


@pytest.mark.parametrize("value", [1.5, -0.1, 87, float("inf"), "high"])
def test_probability__that_is_none_names_the_feature(tmp_path, value):
    features = [feature(), feature(measurements={"Detection probability": value})]
    with pytest.raises(InputError, match="feature 1: Detection probability"):
        load(write(tmp_path / "a.geojson", features))


def test_polygons__crossing_themselves_are_mended_and_counted(tmp_path):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [60, 0], [20, 40], [60, 40], [0, 0]]]}
    holed = {"type": "Polygon", "coordinates": [square(100, 100), square(100, 100, 3)]}
    clockwise = {"type": "Polygon", "coordinates": [square(200, 100)[::-1]]}
    doubled = {"type": "Polygon", "coordinates": [[p for p in square(300, 100) for _ in "ab"]]}
    features = [feature(geometry=shape) for shape in (bow, holed, clockwise, doubled)]
    table, notes = load(write(tmp_path / "a.geojson", features))
    rings = [table.polygon(row) for row in range(4)]
    assert all(shapely.Polygon(ring).is_valid for ring in rings)
    assert all(shapely.Polygon(ring).exterior.is_ccw for ring in rings)
    np.testing.assert_allclose(table.area_um2, [720 / 16, 25, 25, 25], rtol=1e-4)
    assert len(notes) == 1 and "1 polygon(s) crossed themselves" in notes[0]
    line = {"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [9, 9], [0, 0]]]}
    with pytest.raises(InputError, match="feature 1: its polygon encloses no area"):
        load(write(tmp_path / "a.geojson", [feature(), feature(geometry=line)]))


def test_outside__most_is_refused_and_few_are_left_out(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{x},100\n" for x in (10, 20, 30, 999, 1001)))
    table, notes = load(path)
    assert table.xy_px0[:, 0].tolist() == [10, 20, 30, 999]
    assert len(notes) == 1 and notes[0].startswith(f"warning: {path}: 1 of 5 nuclei lie outside")
    path.write_text("x,y\n" + "".join(f"{x * 100},100\n" for x in (5, 60, 120, 180)))
    with pytest.raises(InputError, match="3 of 4 nuclei lie outside the slide: x is to be 0 to"):
        load(path)
    assert len(load(path, scale=0.01)[0]) == 4
    assert len(load(write(tmp_path / "b.geojson", [feature(900, 700)]), CROPPED)[0]) == 1
    with pytest.raises(InputError, match="x is to be 4000 to 5000 and is 8500"):
        load(write(tmp_path / "b.geojson", [feature(4500, 2500)]), CROPPED)


def test_origin__qupath_counts_from_the_scanned_part(tmp_path):
    path = write(tmp_path / "a.geojson", [feature(100, 50)])
    table, notes = load(path, CROPPED)
    np.testing.assert_array_equal(table.xy_px0, [[4100, 2050]])
    np.testing.assert_array_equal(table.polygon(0)[0], [4090, 2040])
    assert len(notes) == 1 and "(4000, 2000)" in notes[0] and "origin=slide" in notes[0]
    np.testing.assert_array_equal(load(path, CROPPED, origin="slide")[0].xy_px0, [[100, 50]])
    # What our own export says of itself goes before.
    own = write(tmp_path / "own.geojson", [feature(100, 50)], cytofm={"origin_px0": [0, 0]})
    np.testing.assert_array_equal(load(own, CROPPED)[0].xy_px0, [[100, 50]])
    (tmp_path / "p.csv").write_text("x,y\n4100,2050\n")
    np.testing.assert_array_equal(load(tmp_path / "p.csv", CROPPED)[0].xy_px0, [[4100, 2050]])
    (tmp_path / "q.tsv").write_text("Image\tCentroid X px\tCentroid Y px\ns.scn\t100\t50\n")
    np.testing.assert_array_equal(load(tmp_path / "q.tsv", CROPPED)[0].xy_px0, [[4100, 2050]])


QUPATH = (
    "Image\tObject ID\tObject type\tName\tClassification\tParent\tROI\tCentroid X µm\t"
    "Centroid Y µm\tDetection probability\tArea µm^2\n"
    "s.svs\t1\tAnnotation\t\tROI\tRoot\tPolygon\t125\t100\t\t900\n"
    "s.svs\t2\tDetection\t\tTumor: Positive\tROI\tPolygon\t25\t12,5\t0,5\t40\n"
    "s.svs\t3\tCell\t\t\tROI\tPolygon\t50\t12,5\t\t30\n"
    "other.svs\t4\tDetection\t\tTumor\tROI\tPolygon\t75\t12,5\t0,25\t30\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_qupath_table__micrometres_classes_and_the_slide_alone(tmp_path, encoding):
    path = tmp_path / "m.txt"
    path.write_bytes(QUPATH.encode(encoding))
    table, notes = load(path)
    np.testing.assert_array_equal(table.xy_px0, [[100, 50], [200, 50]])
    assert names(table) == ["Tumor: Positive", "nucleus"]
    np.testing.assert_array_equal(table.probability, [0.5, 1])
    np.testing.assert_array_equal(table.area_um2, [40, 30])
    assert any("1 annotation(s) left out" in note for note in notes)
    with pytest.raises(UsageError, match="micrometres"):
        load(path, scale=2.0)
    with pytest.raises(InputError, match=r"no row is of slide x .*'other.svs'"):
        load(path, SlidePlace(slide_id="x", size_px0=Size(1000, 800)))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
def test_points__in_pieces_are_those_of_the_whole(tmp_path, monkeypatch, n_rows):
    path = tmp_path / "m.txt"
    path.write_text(QUPATH + "s.svs\t5\tDetection\t\tA\tROI\tPolygon\t60\t20\t0,75\t20\n")
    whole, said = load(path)
    assert whole.classes == ("A", "Tumor: Positive", "nucleus")
    monkeypatch.setattr(point_tables, "read_pieces", partial(read_pieces, n_rows=n_rows))
    table, notes = load(path)
    assert (notes, table.classes) == (said, whole.classes)
    for name in ("xy_px0", "area_um2", "probability", "class_id"):
        np.testing.assert_array_equal(getattr(table, name), getattr(whole, name))
    with pytest.raises(InputError, match=r"no row is of slide x .*'other.svs', 's.svs'"):
        load(path, SlidePlace(slide_id="x", size_px0=Size(1000, 800)))
    path.write_text(QUPATH.replace("0,25", "25"))  # a probability in a row of another slide
    assert len(load(path)[0]) == 2
    path.write_text(QUPATH.replace("0,5", "5"))
    with pytest.raises(InputError, match="line 3, column Detection probability: probability 5"):
        load(path)


def test_points__are_kept_as_numbers_not_as_text(tmp_path, monkeypatch):
    path, n = tmp_path / "p.csv", 20_000
    path.write_text("x,y\n" + "".join(f"{i % 990}.5,{i % 790}.5\n" for i in range(n)))
    monkeypatch.setattr(point_tables, "read_pieces", partial(read_pieces, n_rows=500))
    tracemalloc.start()
    try:
        points = point_tables.read_points(path, 0.25, None, print)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(points.table) == n
    # A row is 25 bytes of a table, 50 where pieces are joined; as text it was 400.
    assert peak < 100 * n + 1e6


@pytest.mark.parametrize(
    ("text", "xy"),
    [
        ("X;Y;Label\n10,5;20;a\n", [10.5, 20]),
        ("\ufeffCentroid_X, Centroid_Y\r\n10.5, 20\r\n", [10.5, 20]),
        ("x_um,y_um\n2.5,5\n", [10, 20]),
        ("Image Name,x,y\nslides/s.ome.tiff,10.5,20\nt.svs,1,1\n", [10.5, 20]),
        ("slide_id,x,y\ns.scn - image 2,10.5,20\n", [10.5, 20]),
    ],
)
def test_points__of_every_dialect(tmp_path, text, xy):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    np.testing.assert_allclose(load(tmp_path / "p.csv")[0].xy_px0, [xy])


def test_label_image__of_another_size_is_refused_with_the_scale_that_fits(tmp_path):
    labels = np.zeros((400, 500), np.uint16)
    labels[100:110, 200:210] = 1
    tifffile.imwrite(tmp_path / "half.tif", labels)
    with pytest.raises(InputError, match="500 x 400 px, but the slide has 1000 x 800") as refused:
        load(tmp_path / "half.tif")
    assert str(refused.value.hint).startswith("--set scale=2 ")
    table, notes = load(tmp_path / "half.tif", scale=2.0)
    np.testing.assert_array_equal(table.xy_px0, [[410, 210]])
    assert not notes
    tifffile.imwrite(tmp_path / "part.tif", labels[:200])
    table, notes = load(tmp_path / "part.tif")
    np.testing.assert_array_equal(table.xy_px0, [[205, 105]])
    assert len(notes) == 1 and "taken as its top left corner" in notes[0]
