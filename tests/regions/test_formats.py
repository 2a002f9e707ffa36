"""Files of other programs give the same region in level-0 pixels, with its class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import Place
from cytofm_cli.regions.chosen import Polygons, RegionSet
from cytofm_cli.regions.read import read_regions
from cytofm_cli.units import Box, Size

PLACE = Place(slide_id="s", size_px0=Size(1000, 800), mpp=0.25, centre_nm=(12_000_000.0, -50_000.0))
SQUARE = [(100, 200), (300, 200), (300, 300), (100, 300)]


def aperio(regions: str, layer: str = 'Id="2" Name="Tumor"', mpp: str = "0.2500") -> str:
    return (
        f'<?xml version="1.0"?><Annotations MicronsPerPixel="{mpp}"><Annotation {layer}>'
        f"<Attributes/><Regions>{regions}</Regions></Annotation></Annotations>"
    )


def aperio_region(points: list, kind: int = 0, negative: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    return (
        f'<Region Id="1" Type="{kind}" Text="" NegativeROA="{negative}">'
        f"<Vertices>{vertices}</Vertices></Region>"
    )


def asap(points: list, group: str = "Tumor", kind: str = "Polygon", name: str = "x") -> str:
    # The file need not list points in their order.
    at = list(enumerate(points))[::-1]
    told = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in at)
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{told}</Coordinates></Annotation>"
    )


def asap_file(*annotations: str) -> str:
    return (
        f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{"".join(annotations)}</Annotations>'
        '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E"/>'
        "</AnnotationGroups></ASAP_Annotations>"
    )


def nm(x: float, y: float) -> tuple[int, int]:
    """Return a place of `PLACE` as NDP.view counts it: by hand, 250 nm a pixel."""
    return round((x - 500) * 250) + 12_000_000, round((y - 400) * 250) - 50_000


def ndpa(*annotations: str, title: str = "Tumor", unit: str = "nanometers") -> str:
    states = "".join(
        f'<ndpviewstate id="{i}"><title>{title}</title><coordformat>{unit}</coordformat>'
        f"<x>1</x><y>2</y>{one}</ndpviewstate>"
        for i, one in enumerate(annotations, 1)
    )
    return f'<?xml version="1.0" encoding="utf-8"?><annotations>{states}</annotations>'


def freehand(points: list, closed: int = 1) -> str:
    told = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in (nm(*p) for p in points))
    return (
        '<annotation type="freehand" displayname="AnnotateFreehand" color="#ff0000">'
        f"<closed>{closed}</closed><pointlist>{told}</pointlist></annotation>"
    )


def feature(ring: list, name: object = "Tumor", **properties: object) -> dict:
    closed = [[*point] for point in [*ring, ring[0]]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [closed]},
        "properties": {"objectType": "annotation", "classification": name, **properties},
    }


def geojson(*features: dict, **members: object) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features), **members})


def read(path: Path, text: str, place: Place = PLACE, **how: str) -> tuple[RegionSet, list[str]]:
    path.write_text(text, encoding="utf-8")
    notes: list[str] = []
    return read_regions(path, place, notes.append, **how), notes


def rings(there: RegionSet) -> list:
    assert isinstance(there, Polygons)
    return [sorted(map(tuple, region.rings[0].round(6).tolist())) for region in there.regions]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.geojson", geojson(feature(SQUARE, {"name": "Tumor"}))),
        ("s.xml", asap_file(asap(SQUARE))),
        ("s.xml", asap_file(asap(SQUARE, "None", "Rectangle", "Tumor"))),
        ("s.xml", aperio(aperio_region(SQUARE))),
        ("s.xml", aperio(aperio_region([SQUARE[0], SQUARE[2]], kind=1))),
        ("s.ndpi.ndpa", ndpa(freehand(SQUARE))),
    ],
)
def test_square__is_the_same_in_every_format(tmp_path: Path, name: str, text: str) -> None:
    there, notes = read(tmp_path / name, text)
    assert there.classes == ("Tumor",) and there.counts == {"Tumor": 1}
    assert rings(there) == [sorted(map(tuple, np.array(SQUARE, float).tolist()))]
    assert notes == []


def test_mask__is_scaled_to_the_slide(tmp_path: Path) -> None:
    values = np.zeros((80, 100), np.uint8)  # ten pixels of level 0 a pixel
    values[20:30, 10:30] = 7
    values[0, 0] = 2
    Image.fromarray(values).save(tmp_path / "s.png")
    there = read_regions(tmp_path / "s.png", PLACE, lambda _: None)
    assert there.counts == {"2": 1, "7": 200}
    points = np.array([[100.0, 200], [299.9, 299.9], [300.1, 250], [5, 5], [5000, 10]])
    assert there.inside(["7"], points).tolist() == [True, True, False, False, False]
    assert there.smallest(["2", "7"], points).tolist() == [1, 1, -1, 0, -1]
    xy = np.array([[50, 150], [100, 200], [295, 195], [950, 750]])
    # By hand: half of each side; all; 5 x 95 px0 of 100 x 100; nothing.
    assert there.shares(["7"], (), xy, 100).tolist() == pytest.approx([0.25, 1, 0.0475, 0])
    assert there.shares(None, ["7"], xy, 100).tolist() == pytest.approx([0.75, 0, 0.9525, 1])
    assert there.shares(["7", "2"], ["7"], xy[:2], 100).tolist() == [0, 0]


def test_mask_of_bits__and_of_16_bits_are_read(tmp_path: Path) -> None:
    values = np.zeros((80, 100), np.uint16)
    values[:40] = 300
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray((values > 0).astype(np.uint8) * 255).convert("1").save(tmp_path / "b.png")
    for name, classes in (("a.tif", ("300",)), ("b.png", ("255",))):
        assert read_regions(tmp_path / name, PLACE, lambda _: None).classes == classes


def test_aperio__hole_and_ellipse(tmp_path: Path) -> None:
    hole = [(150, 220), (200, 220), (200, 260), (150, 260)]
    text = aperio(
        aperio_region(SQUARE) + aperio_region(hole, negative=1)
        + aperio_region([(500, 500), (600, 540)], kind=2) + aperio_region(SQUARE[:2], kind=4)
    )  # fmt: skip
    there, notes = read(tmp_path / "a.xml", text)
    points = np.array([[120.0, 250], [170, 240], [550, 520], [505, 503]])
    assert there.inside(["Tumor"], points).tolist() == [True, False, True, False]
    assert notes == [f"{tmp_path / 'a.xml'}: 1 ruler(s) left out: no regions"]


def test_class__of_aperio_and_asap_is_found_where_it_stands(tmp_path: Path) -> None:
    named = 'Id="3" Name=""'
    text = aperio(aperio_region(SQUARE), named)
    assert read(tmp_path / "a.xml", text)[0].classes == ("layer 3",)
    text = text.replace("<Attributes/>", '<Attributes><Attribute Name="Necrosis"/></Attributes>')
    assert read(tmp_path / "a.xml", text)[0].classes == ("Necrosis",)
    text = asap_file(asap(SQUARE, "None", name="Annotation 0"))
    assert read(tmp_path / "a.xml", text)[0].classes == ("unclassified",)


def test_geojson__nuclei_points_and_lines_are_no_regions(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}
    text = geojson(
        feature(SQUARE, {"names": ["Tumor", "Positive"]}),
        feature(SQUARE, "Stroma"),
        feature(SQUARE, None),
        feature(SQUARE, objectType="detection"),
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}},
        {"type": "Feature", "geometry": line},
        {"type": "Feature", "geometry": None, "properties": {"objectType": "annotation"}},
    )
    there, notes = read(tmp_path / "g.geojson", text)
    assert there.classes == ("Tumor: Positive", "Stroma", "unclassified")
    told = "1 line(s), 1 nuclei, 1 object(s) without a place, 1 point(s) left out: no regions"
    assert notes[0].endswith(told)


def test_geojson__holes_and_parts(tmp_path: Path) -> None:
    square = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
    hole = [[40, 40], [60, 40], [60, 60], [40, 60], [40, 40]]
    apart = [[[200, 0], [300, 0], [300, 50], [200, 0]]]
    shape = {"type": "MultiPolygon", "coordinates": [[square, hole], apart]}
    text = geojson({"type": "Feature", "geometry": shape, "properties": {}})
    there, _ = read(tmp_path / "g.geojson", text)
    points = np.array([[10.0, 10], [50, 50], [290, 20], [150, 20]])
    assert there.inside(["unclassified"], points).tolist() == [True, False, True, False]


def test_geojson__counts_from_the_corner_of_what_was_scanned(tmp_path: Path) -> None:
    glass = Place(
        slide_id="s", size_px0=Size(9000, 8000), mpp=0.25, bounds_px0=Box(4000, 2000, 1000, 800)
    )
    path, text = tmp_path / "g.geojson", geojson(feature(SQUARE))
    there, notes = read(path, text, glass)
    assert rings(there)[0][0] == (4100, 2200)
    assert "(4000, 2000); --region-origin slide for the other" in notes[0]
    assert rings(read(path, text, glass, origin="slide")[0])[0][0] == (100, 200)
    own = geojson(feature(SQUARE), cytofm={"origin_px0": [10, 20]})  # as cytofm exports
    assert rings(read(path, own, glass)[0])[0][0] == (110, 220)
    assert rings(read(tmp_path / "a.xml", asap_file(asap(SQUARE)), glass)[0])[0][0] == (100, 200)
    mask = np.zeros((80, 100), np.uint8)
    mask[20:30, 10:30] = 1
    Image.fromarray(mask).save(tmp_path / "m.png")  # of the shape of the scanned part
    there = read_regions(tmp_path / "m.png", glass, notes.append)
    assert there.inside(["1"], np.array([[4100.5, 2200.5], [100.5, 200.5]])).tolist() == [
        True,
        False,
    ]


def test_ndpa__circle_open_line_and_unit(tmp_path: Path) -> None:
    x, y = nm(500, 400)
    circle = f'<annotation type="circle"><x>{x}</x><y>{y}</y><radius>25000</radius></annotation>'
    ruler = '<annotation type="linearmeasure"><x1>1</x1></annotation>'
    there, notes = read(tmp_path / "s.ndpa", ndpa(circle, ruler, freehand(SQUARE, closed=0)))
    points = np.array([[500.0, 400], [599, 400], [601, 400], [571, 471]])  # radius 100 px0
    assert there.inside(["Tumor"], points).tolist() == [True, True, False, False]
    assert "1 open line(s), 1 ruler(s) left out" in notes[0]
    with pytest.raises(InputError, match="is in pixels; NDPA files are read in nanometers"):
        read(tmp_path / "s.ndpa", ndpa(circle, unit="pixels"))
    nowhere = Place(slide_id="s", size_px0=Size(1000, 800), mpp=0.25)
    with pytest.raises(InputError, match="does not state where its picture lies"):
        read(tmp_path / "s.ndpa", ndpa(circle), nowhere)
    # Asking for micrometres changes nothing: the file says nanometres.
    same, _ = read(tmp_path / "s.ndpa", ndpa(circle), unit="um")
    assert same.inside(["Tumor"], points).tolist() == [True, True, False, False]
