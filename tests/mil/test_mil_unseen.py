"""Which models may judge a slide: patients are the same in any spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import LabelError
from cytofm_cli.mil.unseen import Known, read_splits


def known() -> Known:
    tested = {"a": frozenset({0}), "b": frozenset({0}), "c": frozenset({1})}
    return Known(tested, {"a": "P1", "b": "P1", "c": "7"})


def test_with_table__new_scan_of_a_patient_in_another_spelling(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("Slide ID;Case ID\nnew1;p1\nnew2;7.0\nnew3;p9\na.svs;p1\n")
    found = known().with_table(path, ["new1", "new2", "new3"])
    assert found.folds("new1") == (frozenset({0}), "out-of-fold (patient)")
    assert found.folds("new2") == (frozenset({1}), "out-of-fold (patient)")
    assert found.folds("new3") == (frozenset(), "new")


def test_with_table__columns_of_patients_that_disagree_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("slide_id,patient,case_id\nn1,p,c1\nn2,p,c2\n")
    with pytest.raises(LabelError, match="patient and case_id group the rows differently"):
        known().with_table(path, ["n1", "n2"])
    path.write_text("slide_id,patient\na,P2\n")
    with pytest.raises(LabelError, match="slide a is of patient 'P2', in the RUN also of 'P1'"):
        known().with_table(path, [])


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\u2028", "\x0c", "\x85"])
def test_read_splits__line_breaks_in_patients_are_kept(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "splits.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f'slide_id,group,fold0,fold1\na,"p{mark}1",test,train\nb,q,train,test\n')
    found = read_splits(path)
    assert found.group_of == {"a": f"p{mark}1", "b": "q"}
    assert found.folds("a") == (frozenset({0}), "out-of-fold")
    assert found.folds("b") == (frozenset({1}), "out-of-fold")
