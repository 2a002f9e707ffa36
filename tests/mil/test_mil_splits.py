"""Folds as a table: read back as written, refused where a patient stands on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytofm_cli.errors import LabelError
from cytofm_cli.mil import splits
from cytofm_cli.stats.folds import TEST, TRAIN, cross_validation


def test_read_csv__round_trip_and_reuse_for_fewer_slides(tmp_path: Path) -> None:
    y = np.tile([0, 1, 1, 0, 1], 8)
    groups = [f"g{i // 3}" for i in range(len(y))]
    ids = [f"s{i:03d}" for i in range(len(y))]
    folds = cross_validation(y, groups, folds=4, inner_folds=3)
    path = tmp_path / "splits.csv"
    path.write_text(splits.to_csv(folds, ids, groups))
    for before, after in zip(folds, splits.read_csv(path, ids, groups, y), strict=True):
        np.testing.assert_array_equal(before.part_N, after.part_N)
    fewer = splits.read_csv(path, ids[:-1], groups[:-1], y[:-1])
    np.testing.assert_array_equal(fewer[0].part_N, folds[0].part_N[:-1])
    with pytest.raises(LabelError, match=r"lacks 1 slide.*unknown"):
        splits.read_csv(path, [*ids, "unknown"], [*groups, "g"], np.append(y, 0))
    assert splits.unused(path, ids[2:]) == ids[:2]


def test_read_csv__group_in_two_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("slide_id,group,fold0\na,p,test\nb,p,train\nc,q,validation\n")
    with pytest.raises(LabelError, match="both in test and outside: p"):
        splits.read_csv(path, ["a", "b", "c"], ["p", "p", "q"], np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("parts", "torn"),
    [
        ("test test train validation train validation train train", "p2"),
        ("test test validation0 validation1 validation0 validation0 train train", "p1"),
        ("test test validation0 validation0 validation1 validation0 train train", "p2"),
    ],
)
def test_read_csv__patient_in_training_and_validation_is_refused(
    tmp_path: Path, parts: str, torn: str
) -> None:
    path = tmp_path / "splits.csv"
    ids, y = list("abcdefgh"), np.array([0, 1, 0, 1, 0, 1, 0, 1])
    groups = "p0 p0 p1 p1 p2 p2 p3 p3".split()
    rows = [f"{i},{part}\n" for i, part in zip(ids, parts.split(), strict=True)]
    path.write_text("slide_id,fold0\n" + "".join(rows))
    said = rf"fold0: group\(s\) both in training and validation.*{torn}"
    with pytest.raises(LabelError, match=said):
        splits.read_csv(path, ids, groups, y)
    # The table of labels knows no patients, but the file of folds does.
    rows = [f"{i},{g},{part}\n" for i, g, part in zip(ids, groups, parts.split(), strict=True)]
    path.write_text("slide_id,Patient ID,fold0\n" + "".join(rows))
    with pytest.raises(LabelError, match=said):
        splits.read_csv(path, ids, ids, y)


def test_read_csv__group_that_alone_holds_a_class_is_read_back_as_written(tmp_path: Path) -> None:
    y = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    groups = list("aabbcdefgh")
    ids = [f"s{i}" for i in range(10)]
    folds = cross_validation(y, groups, folds=2, inner_folds=2)
    (tmp_path / "splits.csv").write_text(splits.to_csv(folds, ids, groups))
    again = splits.read_csv(tmp_path / "splits.csv", ids, groups, y)
    np.testing.assert_array_equal(again[0].part_N, folds[0].part_N)


def test_read_csv__other_dialect_means_the_same(tmp_path: Path) -> None:
    ids, groups, y = list("abcd"), list("pqrs"), np.array([0, 1, 0, 1])
    path = tmp_path / "splits.csv"
    path.write_text("Slide;FOLD0\nd.svs;Test\nc.svs;val\nb.svs;Train\na.svs;training\n")
    (fold,) = splits.read_csv(path, ids, groups, y)
    assert fold.part_N.tolist() == [TRAIN, TRAIN, 0, TEST]
    path.write_text("Slide;FOLD0\na;Test\na.svs;val\nb;Train\nc;training\nd;train\n")
    with pytest.raises(LabelError, match="line 3: slide a comes twice"):
        splits.read_csv(path, ids, groups, y)


@pytest.mark.parametrize(
    "text",
    ["", "x,y\n1,2\n", "slide_id,group,fold0\na,p,dev\n", "slide_id,group,fold0\na,p,train\n"],
)
def test_read_csv__damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(text)
    with pytest.raises(LabelError, match=r"splits\.csv"):
        splits.read_csv(path, ["a"], ["p"], np.array([0]))
