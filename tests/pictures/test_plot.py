"""Charts: points lie where they should, words stay words, and everything has a title."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cytofm_cli.pictures.plot import Chart, line_colour, room_for, shortened

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>1</script> & \"'"


def parsed(chart: Chart) -> ET.Element:
    return ET.fromstring(chart.svg())


def test_chart__points_lie_where_the_axes_say() -> None:
    chart = Chart("t", "d", "x", width=200, height=100)
    chart.line([0, 0.5, 1], [0, 1, 1])
    (line,) = parsed(chart).iter(f"{SVG}polyline")
    assert line.get("points") == "52.0,112.0 152.0,12.0 252.0,12.0"


def test_chart__steps_are_level_back_to_the_point_before() -> None:
    chart = Chart("t", "d", "x", width=100, height=100, left=0)
    chart.line([0, 1], [1, 0], steps=True)
    (line,) = parsed(chart).iter(f"{SVG}polyline")
    assert line.get("points") == "0.0,12.0 0.0,112.0 100.0,112.0"


def test_chart__rows_are_listed_from_above() -> None:
    chart = Chart("t", "d", "x", height=90, y_range=(2.5, -0.5), y_names=("a", "b", "c"))
    assert [chart.y(row) for row in range(3)] == pytest.approx([27, 57, 87])


def test_chart__an_interval_beyond_the_plane_ends_at_its_edge() -> None:
    chart = Chart("t", "d", "x", width=100, left=0, x_range=(-1, 1))
    chart.interval(-5, 0, 0.5)
    assert re.search(r'd="M0\.0 \d+\.\dH50\.0', chart.svg())


def test_chart__words_stay_words_and_are_read_out() -> None:
    chart = Chart(HOSTILE, HOSTILE, HOSTILE, HOSTILE, y_names=(HOSTILE,), y_range=(0.5, -0.5))
    chart.line([0], [0], name=HOSTILE)
    chart.dot(0, 0, name=HOSTILE)
    root = parsed(chart)
    assert not list(root.iter(f"{SVG}script"))
    assert root.get("role") == "img"
    ids = (root.get("aria-labelledby") or "").split()
    told = {one.get("id"): one.text for one in root if one.tag in (f"{SVG}title", f"{SVG}desc")}
    assert told == {ids[0]: HOSTILE, ids[1]: HOSTILE}


def test_chart__its_ids_are_its_own_and_the_same_again() -> None:
    first, second = Chart("a", "d", "x"), Chart("b", "d", "x")
    assert first.svg() == Chart("a", "d", "x").svg()
    ids = [re.findall(r' id="([^"]+)"', chart.svg()) for chart in (first, second)]
    assert len({*ids[0], *ids[1]}) == 4


def test_lines__of_one_chart_differ_in_colour_and_dashes() -> None:
    chart = Chart("t", "d", "x")
    for index in range(6):
        chart.line([0, 1], [0, 1], index)
    looks = [
        (line.get("stroke"), line.get("stroke-dasharray"))
        for line in parsed(chart).iter(f"{SVG}polyline")
    ]
    assert len({colour for colour, _ in looks}) == len({dash for _, dash in looks}) == 6
    assert line_colour(0) == line_colour(6)


def test_names__have_room_and_are_cut_where_they_are_long() -> None:
    assert room_for(["abc"]) == 52
    assert room_for(["x" * 100]) == 190
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcd", 4) == "abcd"
