"""Pieces of any size give the Features that Python's own reader gives, and the same nuclei."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei import geojson_reader
from cytofm_cli.regions import geojson_stream
from cytofm_cli.regions.geojson_stream import Pieces

WORDS = st.text('ab},{"[]\\ \n\u00fc\U0001f52c:', max_size=8)
VALUES = st.recursive(
    st.one_of(st.integers(-9, 9), WORDS, st.none(), st.floats(allow_nan=False)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
FEATURES = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("Feature")},
        optional={"a": VALUES, "children": st.lists(st.just({"type": "Feature"}), max_size=2)},
    ),
    max_size=12,
)


def pieces_of(path: Path, size: int) -> tuple[list, Pieces]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson_stream, "PIECE_BYTES", size)
        pieces = Pieces(path)
        return list(pieces), pieces


@given(
    features=FEATURES,
    before=st.dictionaries(st.sampled_from(["x", "y"]), VALUES),
    after=st.dictionaries(st.sampled_from(["cytofm", "z"]), VALUES),
    plain=st.booleans(),
    indent=st.sampled_from([None, 1]),
    size=st.integers(8, 400),
)
def test_pieces__are_the_features_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    features: list, before: dict, after: dict, plain: bool, indent: int | None, size: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("pieces") / "a.geojson"
    whole = {"type": "FeatureCollection", **before, "features": features, **after}
    text = json.dumps(features if plain else whole, indent=indent, ensure_ascii=plain)
    path.write_text(text, encoding="utf-8-sig" if size % 2 else "utf-8")
    found, pieces = pieces_of(path, size)
    assert [feature for piece in found for feature in piece] == features
    if not plain:
        assert pieces.content | {"features": None} == whole | {"features": None}


def test_pieces__of_a_large_file_are_many_and_small(tmp_path: Path) -> None:
    features = [{"type": "Feature", "id": row} for row in range(2000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    found, _ = pieces_of(path, 1000)
    assert len(found) > 50
    assert max(map(len, found)) < 100


def test_pieces__nan_and_halves_of_surrogates_are_read_as_python_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    features = [{"type": "Feature", "v": math.nan, "w": "\ud800"}] * 50
    path.write_text(json.dumps(features))
    for size in (200, 10**6):
        read = [feature for piece in pieces_of(path, size)[0] for feature in piece]
        assert len(read) == 50 and all(math.isnan(f["v"]) and f["w"] == "\ud800" for f in read)


@pytest.mark.parametrize("size", [64, 10**6])
def test_pieces__a_file_that_is_cut_or_no_text_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.json"
    whole = json.dumps([{"type": "Feature"}] * 40).encode()
    for damaged in (whole[:-9], whole + b"]", b"\xfd\xfe" + whole, whole.replace(b":", b";", 1)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
            pieces_of(path, size)


def nucleus(row: int, **more) -> dict:
    x, y = 30.0 * row, 100 - row
    ring = [[x, y], [x, y + 8], [x + 8, y + 8], [x + 8, y], [x, y]][:: 1 if row % 2 else -1]
    properties = {"objectType": "detection", "classification": {"name": f"c{row % 3}"}}
    if row == 7:  # crosses itself
        ring = [[x, y], [x + 9, y], [x + 3, y + 8], [x + 9, y + 8], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties | more,
    }


def read(path: Path, features: list, size: int, **settings):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson_stream, "PIECE_BYTES", size)
        return geojson_reader.read(path, 0.5, notes.append, **settings).table, notes


def test_read__pieces_give_the_table_of_the_whole(tmp_path: Path) -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 6]}}
    tile = nucleus(0) | {"properties": {"objectType": "tile"}}
    features = [nucleus(row) for row in range(20)] + [point, tile, nucleus(21)]
    whole, notes = read(tmp_path / "a.json", features, 10**6)
    parts, told = read(tmp_path / "a.json", features, 300)
    assert told == notes == [
        f"{tmp_path / 'a.json'}: 1 tile(s) left out: regions, no nuclei",
        f"{tmp_path / 'a.json'}: 1 polygon(s) crossed themselves; of these the largest loop is "
        "taken",
    ]  # fmt: skip
    assert whole.classes == parts.classes == ("c0", "c1", "c2", "nucleus")
    for name in ("xy_px0", "area_um2", "probability", "class_id", "contour_px0", "contour_start"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))
    np.testing.assert_array_equal(whole.xy_px0[1], [34, 103])
    assert whole.area_um2[1] == whole.area_um2[2] == 64 * 0.25
    # Either turn becomes counter-clockwise.
    x, y = whole.polygon(1).T, whole.polygon(2).T
    for px, py in (x, y):
        assert px @ np.roll(py, -1) - py @ np.roll(px, -1) > 0


@pytest.mark.parametrize("size", [150, 10**6])
def test_read__annotations_of_points_alone_are_nuclei_else_regions(
    tmp_path: Path, size: int
) -> None:
    point = {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [5, 6]},
        "properties": {"objectType": "annotation"},
    }
    table, notes = read(tmp_path / "a.json", [point] * 9, size)
    assert len(table) == 9 and not notes
    table, notes = read(tmp_path / "a.json", [*[point] * 9, nucleus(0)], size)
    assert len(table) == 1 and "9 annotation(s) left out" in notes[0]
    region = nucleus(0, objectType="annotation")
    with pytest.raises(InputError, match=r"holds 10 annotation\(s\) and neither"):
        read(tmp_path / "a.json", [*[point] * 9, region], size)


@pytest.mark.parametrize("size", [300, 10**6])
def test_read__a_feature_that_is_wrong_is_named_by_its_number(tmp_path: Path, size: int) -> None:
    for geometry, said in (
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "are not those of a Polygon"),
        ({"type": "LineString", "coordinates": []}, "is a LineString"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [4, 4], [8, 8]]]}, "encloses no area"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [4, None], [8, 8]]]}, "are not those"),
    ):
        features = [nucleus(row) for row in range(30)]
        features[17]["geometry"] = geometry
        with pytest.raises(InputError, match=f"feature 17:? .*{said}"):
            read(tmp_path / "a.json", features, size)
