"""Tables of labels that `cells train` refuses, or says something of."""

from __future__ import annotations

from pathlib import Path

import pytest

import cytofm_cli as cytofm
from cytofm_cli.errors import (
    CytofmError,
    LabelError,
)

from .drawn_cells import HOW, Cohort, train


@pytest.mark.parametrize(
    ("change", "settings", "error", "said"),
    [
        (lambda row: row, {"order": ("NILM", "HSIL", "SCC")}, LabelError, "LSIL"),
        (lambda row: row, {"order": ("NILM", "LSIL", "HSIL", "SCC")}, LabelError, "SCC"),
        (lambda row: row.replace("LSIL", "odd"), {"ordinal": True}, LabelError, "order"),
        (lambda row: row.replace("LSIL", "NILM").replace("HSIL", "NILM"), {}, LabelError, "one"),
        (lambda row: row.replace("g1", "g0"), {}, LabelError, "one group"),
        (lambda row: row.replace("LSIL", "Abstained"), {}, LabelError, "of which nothing is said"),
        (lambda row: row.replace(",40,", ",4000,"), {}, LabelError, "outside"),
        (lambda row: row, {"encoder": "no-such"}, CytofmError, "no-such"),
    ],
)
def test_bad_labels__are_named_and_nothing_is_left(
    cohort: Cohort, tmp_path: Path, change, settings: dict, error: type, said: str
) -> None:
    table = tmp_path / "labels.csv"
    head, *rows = cohort.labels.read_text().splitlines()
    table.write_text("\n".join([head, *map(change, rows)]) + "\n")
    out = tmp_path / "run"
    with pytest.raises(error, match=said):
        cytofm.train_cells(cohort.stores, table, out, **(HOW | settings))
    assert not (out / "config.toml").exists()


def test_class_of_one_member__is_left_out_and_counted(cohort: Cohort, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(cohort.labels.read_text().replace("LSIL", "SCC", 1))
    said: list[str] = []
    out = tmp_path / "run"
    report = cytofm.train_cells(cohort.stores, table, out, **HOW, note=said.append)
    assert report.metrics["left_out"] == {"SCC": 1}
    assert report.metrics["instances"] == 35
    assert any("SCC (1)" in line for line in said)


def test_one_class__says_where_no_cell_can_be_an_outlier(cohort: Cohort, tmp_path: Path) -> None:
    how = {"model": "one-class", "penalty": None}
    said: list[str] = []
    # Six normal cells in each of two groups: none lies farther out than 6 / 7 of the others.
    few = train(cohort, tmp_path / "few", note=said.append, **how)
    (note,) = (line for line in said if line.startswith("one-class"))
    assert note.startswith("one-class: 6 normal cells of other folds are too few to place a cell")
    assert note.endswith("none is called an outlier (100 are needed, or --outlier 0.85)")
    assert few.metrics["classes"]["outlier"]["recall"]["value"] == 0
    said.clear()
    enough = train(cohort, tmp_path / "enough", note=said.append, outlier=0.85, **how)
    assert not [line for line in said if line.startswith("one-class")]
    assert enough.metrics["classes"]["outlier"]["recall"]["value"] > 0.5
    never = train(cohort, tmp_path / "never", note=said.append, outlier=1.0, **how)
    assert never.metrics["classes"]["outlier"]["recall"]["value"] == 0
    assert any(line.endswith("none is called an outlier (--outlier 0.85)") for line in said)


def test_more_classes_than_a_store_holds__are_refused(cohort: Cohort, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    places = [(slide, c, 20 + c % 100, 20 + c // 100) for slide in ("s0", "s2") for c in range(256)]
    rows = [f"{slide},{x},{y},class {c},{slide}" for slide, c, x, y in places]
    table.write_text("\n".join(["slide_id,x,y,label,group", *rows]) + "\n")
    with pytest.raises(LabelError, match="256 classes; a store holds 255"):
        cytofm.train_cells(cohort.stores, table, tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()


def test_groups_of_one_label_each__are_said(cohort: Cohort, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    head, *rows = cohort.labels.read_text().splitlines()
    named = [f"{row.rpartition(',')[0]},{row.split(',')[3]}{i % 2}" for i, row in enumerate(rows)]
    table.write_text("\n".join([head, *named]) + "\n")
    said: list[str] = []
    cytofm.train_cells(cohort.stores, table, tmp_path / "run", **HOW, note=said.append)
    assert any("each of the 6 groups holds one class only" in line for line in said)
