"""Maps for QuPath: places, names that say whose map it is, values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.errors import InputError
from cytofm_cli.exporters.maps import measurement, percentile, write_geojson
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.score import SlideScore

XY = np.array([[0, 0], [100, 0], [0, 50]], np.int32)


def scored(columns: tuple[str, ...], values: list[list[float]]) -> SlideScore:
    return SlideScore(
        slide_id="s",
        p_C=np.array([0.2, 0.8]),
        spread_C=np.zeros(2),
        predicted="HSIL",
        n_models=3,
        basis="new",
        columns=columns,
        instances_NK=np.array(values, np.float32),
        score_kind="logit of the instance alone",
    )


def test_write_geojson__squares_and_values_of_each_tile(tmp_path: Path) -> None:
    score = scored(("attention", "score_HSIL"), [[0.5, 1.25], [0.125, -2], [0.375, 0]])
    bag = Bag("s", np.zeros((3, 2), np.float32), XY)
    path = write_geojson(tmp_path / "maps", bag, score, 64.5)
    assert sorted(p.name for p in path.parent.iterdir()) == ["s.geojson"]
    content = json.loads(path.read_text())
    assert content["type"] == "FeatureCollection"
    second = content["features"][1]
    assert second["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[100, 0], [164.5, 0], [164.5, 64.5], [100, 64.5], [100, 0]]],
    }
    assert second["properties"]["objectType"] == "detection"
    name = "attention for the slide's answer"
    assert second["properties"]["measurements"] == {
        name: 0.125,
        "score for HSIL": -2,
        f"{name}, percentile": pytest.approx(100 / 6, abs=1e-3),
    }
    about = content["cytofm"]
    assert about["predicted"] == "HSIL"
    assert "speaks for no class" in about["measurements"][name]
    assert "here HSIL" in about["measurements"][name]
    assert about["measurements"]["score for HSIL"] == "logit of the instance alone"


def test_write_geojson__cells_are_points_and_maps_of_classes_are_named(tmp_path: Path) -> None:
    score = scored(("attention_NILM", "attention_HSIL"), [[0.5, 0.1], [0.2, 0.2], [0.3, 0.7]])
    path = write_geojson(tmp_path, Bag("s", np.zeros((3, 2), np.float32), XY), score, None)
    feature = json.loads(path.read_text())["features"][2]
    assert feature["geometry"] == {"type": "Point", "coordinates": [0, 50]}
    found = feature["properties"]["measurements"]
    assert found["attention for NILM"] == pytest.approx(0.3)
    assert found["attention for HSIL, percentile"] == pytest.approx(500 / 6, abs=1e-3)


def test_write_geojson__bag_without_coordinates_is_named(tmp_path: Path) -> None:
    score = scored(("attention",), [[1.0]])
    with pytest.raises(InputError, match="s: its file holds no coordinates"):
        write_geojson(tmp_path / "maps", Bag("s", np.zeros((1, 2), np.float32)), score, None)
    assert not (tmp_path / "maps").exists()


def test_percentile__equal_values_share_their_rank() -> None:
    assert percentile(np.array([1.0, 1.0, 5.0, 0.0])).tolist() == [50.0, 50.0, 87.5, 12.5]


def test_measurement__class_names_with_underscores_are_kept_whole() -> None:
    assert measurement("attention_high_grade") == "attention for high_grade"


def test_write_geojson__counts_from_the_scanned_part(tmp_path: Path) -> None:
    score = scored(("attention",), [[0.5], [0.25], [0.25]])
    bag = Bag("s", np.zeros((3, 2), np.float32), XY + np.array([4000, 2000], np.int32))
    path = write_geojson(tmp_path, bag, score, 50.0, origin_px0=(4000, 2000))
    content = json.loads(path.read_text())
    assert content["cytofm"]["origin_px0"] == [4000, 2000]
    assert content["features"][2]["geometry"]["coordinates"] == [
        [[0, 50], [50, 50], [50, 100], [0, 100], [0, 50]]
    ]
