"""Rows, GeoJSON and label images: the same cells, drawn where they are painted."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from cytofm_cli.nuclei.geojson_reader import read
from cytofm_cli.simulate import truth
from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.render import Placed, Scene
from cytofm_cli.simulate.shapes import Shape, grow

from .simulated import PRESET, slides

SQUARE = np.array([(10, 20), (30, 20), (30, 40), (10, 40)], np.float32)


def placed(number: int, nuclei, cytoplasm=None, kind="squame", z_um=0.0) -> Placed:
    cell = Cell(x=20.0, y=30.0, kind=kind, angle=0.0, z_um=z_um, seed=1)
    own = grow(cell, PRESET)
    shape = Shape(
        **{
            **{name: getattr(own, name) for name in own.__dataclass_fields__},
            "nuclei": nuclei,
            "cytoplasm": cytoplasm,
            "box": (0, 0, 100, 100),
        }
    )
    return Placed(number, 1, cell, shape)


def scene(**settings) -> Scene:
    return Scene(slides(patients=1, slides_per_patient=1, **settings)[1][0], PRESET)


def test_labels__of_a_square_are_its_pixels() -> None:
    drawn = truth.labels([placed(70_000, (SQUARE,))], (0, 0, 64, 64), of="nuclei")
    assert drawn is not None and drawn.dtype == np.uint32
    inside = np.zeros((64, 64), bool)
    inside[20:40, 10:30] = True
    assert ((drawn == 70_000) == inside).mean() > 0.98  # the border's pixels are drawn, too
    assert (drawn[21:39, 11:29] == 70_000).all()
    assert set(np.unique(drawn)) == {0, 70_000}


def test_labels__later_cells_lie_above_and_nothing_is_none() -> None:
    cells = [placed(1, (SQUARE,)), placed(2, (SQUARE + 10,))]
    drawn = truth.labels(cells, (0, 0, 64, 64), of="nuclei")
    assert drawn is not None
    assert (drawn[35, 25], drawn[25, 15], drawn[45, 35]) == (2, 1, 2)
    assert truth.labels(cells, (0, 0, 64, 64), of="cytoplasm") is None
    assert truth.labels(cells, (50, 50, 64, 64), of="nuclei") is None


@pytest.mark.parametrize("of", ["nuclei", "cytoplasm"])
def test_labels__of_parts_are_those_of_the_whole(of: str) -> None:
    one = scene(size_px=1024, seed=5)
    whole = truth.labels(one.cells((0, 0, 1024, 1024)), (0, 0, 1024, 1024), of=of)
    assert whole is not None
    for x in (0, 300, 700):
        box = (x, 200, x + 300, 500)
        part = truth.labels(one.cells(box), box, of=of)
        part = np.zeros((300, 300), np.uint32) if part is None else part
        assert (part == whole[200:500, x : x + 300]).mean() > 0.9999
    numbers = {cell.number for cell in one.cells((0, 0, 1024, 1024))}
    assert set(np.unique(whole).tolist()) <= numbers | {0}


def test_rows__say_what_a_cell_is() -> None:
    text = truth.rows([placed(9, (SQUARE,), z_um=1.6)], PRESET, "p1_s1", [-1.5, 0.0, 1.5])
    (row,) = csv.DictReader([",".join(truth.COLUMNS), text])
    radius = (400 / np.pi) ** 0.5 * 0.25
    assert row == {
        "slide_id": "p1_s1", "x": "20.00", "y": "30.00", "class": "NILM", "kind": "squame",
        "radius_um": f"{radius:.2f}", "plane": "2", "z_um": "1.60", "marked": "1", "cell": "9",
        "sheet": "1", "x_nucleus": "20.00", "y_nucleus": "30.00",
    }  # fmt: skip


def test_rows__leave_out_the_nucleus_of_what_has_none_and_take_the_first_of_several() -> None:
    text = truth.rows([placed(1, (), SQUARE), placed(2, (SQUARE + 5, SQUARE))], PRESET, "a", [0.0])
    rows = list(csv.DictReader([",".join(truth.COLUMNS), *text.splitlines()]))
    nuclei = [(row["x_nucleus"], row["y_nucleus"]) for row in rows]
    assert nuclei == [("", ""), ("25.00", "35.00")]


def test_geojson__is_read_as_nuclei(tmp_path) -> None:
    one = scene(size_px=1024, seed=5)
    cells = one.cells((0, 0, 1024, 1024))
    path = tmp_path / "truth.geojson"
    path.write_bytes(truth.HEAD + truth.features(cells, PRESET, "p1_s1")[1:] + truth.FOOT)
    table = read(path, 0.25, lambda text: None).table
    assert len(table) == len(cells)
    areas = [np.pi * truth.radius_um(cell, 0.25) ** 2 for cell in cells]
    assert table.area_um2 == pytest.approx(areas, rel=0.02)
    assert {table.classes[i] for i in table.class_id} == {
        PRESET.kinds[cell.cell.kind].group for cell in cells
    }
    first = json.loads(path.read_text())["features"][0]
    assert first["properties"]["objectType"] == "cell"
    assert first["nucleusGeometry"]["type"] == "Polygon"
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1]


def test_geojson__of_what_has_no_nucleus_is_an_annotation() -> None:
    text = truth.features([placed(3, (), SQUARE)], PRESET, "a")
    feature = json.loads(text[1:])
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["geometry"]["coordinates"][0][0] in SQUARE.tolist()
    bare = json.loads(truth.features([placed(3, (SQUARE, SQUARE + 30))], PRESET, "a")[1:])
    assert bare["properties"]["objectType"] == "detection"
    assert bare["geometry"]["type"] == "MultiPolygon"
