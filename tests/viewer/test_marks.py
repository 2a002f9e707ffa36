"""Marks: what stands after what was done, on the disk as in memory."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.errors import InputError, TryAgainError, UsageError
from cytofm_cli.evaluate.points import read_points
from cytofm_cli.viewer.marks import Book, MarksFile, csv_text, geojson_text, read_book


def mark(x: float, key: int, slide: str = "a", y: float = 5.0) -> dict[str, object]:
    return {"do": "mark", "slide_id": slide, "x": x, "y": y, "key": key}


def standing(book: Book) -> list[tuple[str, float, int]]:
    return [(each.slide_id, each.x, each.key) for each in book.marks()]


UNDO = {"do": "undo"}


@pytest.mark.parametrize(
    ("actions", "stands"),
    [
        ([mark(1, 3), mark(2, 5)], [("a", 1, 3), ("a", 2, 5)]),
        ([mark(1, 3), mark(1, 5)], [("a", 1, 5)]),  # the later one counts …
        ([mark(1, 3), mark(1, 5), UNDO], [("a", 1, 3)]),  # … until it is undone
        ([mark(1, 3), mark(1, 0)], []),
        ([mark(1, 3), mark(1, 0), UNDO], [("a", 1, 3)]),
        ([mark(1, 3), UNDO, UNDO, mark(2, 1)], [("a", 2, 1)]),
        ([mark(1, 3, "b"), mark(1, 3)], [("a", 1, 3), ("b", 1, 3)]),
    ],
)
def test_book__says_what_stands(actions: list[dict], stands: list[tuple]) -> None:
    book = Book()
    for action in actions:
        book.apply(action)
    assert standing(book) == stands


@given(st.lists(st.one_of(st.just(UNDO), st.builds(mark, st.integers(0, 3), st.integers(0, 9)))))
def test_book__undone_to_the_end_is_empty_and_each_step_is_the_former_state(
    actions: list[dict],
) -> None:
    book, states = Book(), []
    for action in actions:
        before = standing(book)
        if action == UNDO:
            expected = states.pop() if states else []
            book.apply(action)
            assert sorted(standing(book)) == sorted(expected)
        else:
            states.append(before)
            book.apply(action)
    for expected in reversed(states):
        book.apply(UNDO)
        assert sorted(standing(book)) == sorted(expected)
    assert book.at == {}


def test_file__is_on_the_disk_after_every_action(tmp_path: Path) -> None:
    path = tmp_path / "run.marks.jsonl"
    with MarksFile(path) as kept:
        assert not path.exists()
        kept.do(mark(1.234, 3))
        assert standing(read_book(path)) == [("a", 1.23, 3)]
        kept.do({"do": "name", "key": 3, "name": "odd <b>"})
        kept.do(mark(2, 4))
        kept.do(UNDO)
        again = read_book(path)
        assert standing(again) == standing(kept.book) == [("a", 1.23, 3)]
        assert again.name(3) == "odd <b>"
    with MarksFile(path) as kept:
        kept.do(UNDO)  # what another session did can be undone
        assert standing(read_book(path)) == []


@pytest.mark.parametrize("cut", range(1, 40))
def test_file__a_line_that_a_kill_has_cut_is_dropped_and_the_next_begins_a_new_one(
    tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "marks.jsonl"
    with MarksFile(path) as kept:
        kept.do(mark(1, 3))
        kept.do(mark(2, 4))
    path.write_bytes(path.read_bytes()[:-cut])
    with MarksFile(path) as kept:
        assert standing(kept.book) == [("a", 1, 3)]
        kept.do(mark(7, 7))
    assert standing(read_book(path)) == [("a", 1, 3), ("a", 7, 7)]


def test_file__that_is_none_of_ours_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text('{"do":"mark","slide_id":"a","x":1,"y":2,"key":1}\nhello\n')
    with pytest.raises(InputError, match=r"marks\.jsonl:2: is no mark of cytofm"):
        MarksFile(path)
    assert path.read_text().endswith("hello\n")


def test_file__two_viewers_do_not_write_to_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    with MarksFile(path) as one, MarksFile(path) as other:
        one.do(mark(1, 3))
        with pytest.raises(TryAgainError):
            other.do(mark(2, 4))
        one.close()
        other.do(mark(2, 4))  # it has read what the first one wrote
        assert standing(other.book) == [("a", 1, 3), ("a", 2, 4)]


def test_file__a_full_disk_leaves_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "marks.jsonl"
    write = os.write
    with MarksFile(path) as kept:
        kept.do(mark(1, 3))
        monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:9]))
        with pytest.raises(TryAgainError, match="no space left"):
            kept.do(mark(2, 4))
        monkeypatch.undo()
        assert standing(kept.book) == standing(read_book(path)) == [("a", 1, 3)]
        kept.do(mark(5, 5))
    assert standing(read_book(path)) == [("a", 1, 3), ("a", 5, 5)]


@pytest.mark.parametrize(
    "action",
    [
        mark(1, 10), mark(1, -1), mark(1, True), mark(1, "3"), mark(float("nan"), 3),
        mark(float("inf"), 3), {"do": "mark"}, {"do": "erase"}, {},
        {"do": "name", "key": 0, "name": "x"}, {"do": "name", "key": 1, "name": "  "},
        {"do": "name", "key": 1, "name": "x" * 101},
    ],
)  # fmt: skip
def test_file__nonsense_is_refused_before_it_is_written(tmp_path: Path, action: dict) -> None:
    with MarksFile(tmp_path / "marks.jsonl") as kept:
        with pytest.raises(UsageError, match="not marked"):
            kept.do(action)
        assert standing(kept.book) == []
    assert not (tmp_path / "marks.jsonl").exists()


def test_csv__is_what_evaluate_probe_reads(tmp_path: Path) -> None:
    book = Book()
    hostile = 'a,"b\n<script>'
    for action in (mark(10.5, 1), mark(3, 5, "b"), {"do": "name", "key": 5, "name": hostile}):
        book.apply(action)
    path = tmp_path / "marks.csv"
    path.write_text(csv_text(book), newline="")
    assert path.read_text().splitlines()[0] == "slide_id,x,y,label"
    points, unknown = read_points(path, ["a", "b"])
    assert (points.slides, unknown) == (("a", "b"), [])
    assert points.labels[0] == "NILM"
    assert np.array_equal(points.xy_px0, [[10.5, 5], [3, 5]])
    rows = list(csv.reader(path.read_text().splitlines(keepends=True)))
    assert rows[2][3] == hostile


def test_geojson__counts_from_the_corner_of_the_scanned_part() -> None:
    book = Book()
    book.apply(mark(110.5, 4, y=220))
    book.apply(mark(1, 4, "b"))
    of = json.loads(geojson_text(book, "a", (100, 200)))
    assert of["cytofm"] == {"slide_id": "a", "origin_px0": [100, 200]}
    (feature,) = of["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [10.5, 20]}
    assert feature["properties"]["classification"]["name"] == "ASC-H"
