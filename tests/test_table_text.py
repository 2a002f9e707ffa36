"""A text in a table is never a formula, a number stays what it is, and we read what we wrote."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.mil.run_folder import parse_rows
from cytofm_cli.mil.splits import read_csv, to_csv
from cytofm_cli.stats.folds import TEST, TRAIN, Fold
from cytofm_cli.table_text import TableWriter, inert, meant
from cytofm_cli.tables import read_table

HOSTILE = '=HYPERLINK("http://x","y")'


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        (HOSTILE, f"'{HOSTILE}"),
        ("@SUM(1)", "'@SUM(1)"),
        ("+cmd|x", "'+cmd|x"),
        ("-2+3", "'-2+3"),
        ("'=1", "''=1"),
        ("-0.25", "-0.25"),
        ("+1e-3", "+1e-3"),
        ("a=b", "a=b"),
        ("'quoted'", "'quoted'"),
        (-3, -3),
        (-0.5, -0.5),
    ],
)
def test_inert__marks_formulas_and_leaves_numbers(cell: object, written: object) -> None:
    assert inert(cell) == written


@given(st.text(max_size=8))
def test_meant__undoes_inert(cell: str) -> None:
    assert meant(inert(cell)) == cell
    assert meant(inert(f"={cell}")) == f"={cell}"


def test_tables__are_read_as_they_were_meant(tmp_path: Path) -> None:
    text = io.StringIO()
    writer = TableWriter(text)
    writer.writerows([["slide_id", "label", "x"], [HOSTILE, "@a", -1.5]])
    assert list(csv.reader(io.StringIO(text.getvalue())))[1] == [f"'{HOSTILE}", "'@a", "-1.5"]
    (tmp_path / "t.csv").write_text(text.getvalue())
    table = read_table(tmp_path / "t.csv", ("slide_id", "label"))
    assert table.columns["slide_id"] == (HOSTILE,)
    assert table.columns["label"] == ("@a",)
    assert table.numbers("x") == [-1.5]
    assert parse_rows(text.getvalue()) == [{"slide_id": HOSTILE, "label": "@a", "x": "-1.5"}]


def test_splits__of_hostile_names_are_read_back(tmp_path: Path) -> None:
    names, groups = [HOSTILE, "-a", "@b", "c"], ["=1+1", "+g", "@h", "i"]
    part_N = np.array([TEST, 0, TRAIN, TRAIN])
    path = tmp_path / "splits.csv"
    path.write_text(to_csv([Fold(part_N)], names, groups))
    rows = list(csv.reader(path.read_text().splitlines()))
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@"))]
    (fold,) = read_csv(path, names, groups, np.array([0, 1, 0, 1]))
    np.testing.assert_array_equal(fold.part_N, part_N)
