"""Folds as a table: the splits.csv of a RUN, and those that the user brings.

Legend: N slides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from cytofm_cli.errors import LabelError
from cytofm_cli.stats.folds import TEST, TRAIN, Fold, Ints, only_class_carriers
from cytofm_cli.table_text import TableWriter
from cytofm_cli.tables import (
    GROUP_NAMES,
    SLIDE_NAMES,
    Table,
    match_slide,
    read_table,
)
from cytofm_cli.words import named, plain_name

_HEADER = "the header must be slide_id,group,fold0,fold1,…, as `mil train` writes it"

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def check_classes(folds: Sequence[Fold], y_N: Ints, classes: Sequence[str], source: Path) -> None:
    """Refuse folds of a file with a training part that lacks a class.

    Raises:
        LabelError: names fold and class.
    """
    for number, fold in enumerate(folds):
        for turn in range(fold.n_validation):
            train, _ = fold.train_validation(turn)
            absent = [name for c, name in enumerate(classes) if c not in y_N[train]]
            if absent:
                raise LabelError(
                    f"{source}, fold{number}: without test and validation{turn}, no slide of class "
                    f"{', '.join(map(repr, absent))} is left to train on.",
                    hint="move slides of that class there, or leave out `--splits`",
                )


def to_csv(folds: Sequence[Fold], slide_ids: Sequence[str], groups: Sequence[str]) -> str:
    """Write folds as a table: a row a slide, a column `fold<i>` a fold.

    A cell is `test`, `train`, or `validation<k>`: validation for the seeds whose turn is k
    (seed number modulo the count of such sets) and training for the others.
    """
    text = io.StringIO()
    writer = TableWriter(text)
    writer.writerow(["slide_id", "group", *(f"fold{i}" for i in range(len(folds)))])
    for i, (slide, group) in enumerate(zip(slide_ids, groups, strict=True)):
        writer.writerow([slide, group, *(_cell(int(fold.part_N[i])) for fold in folds)])
    return text.getvalue()


def read_csv(path: Path, slide_ids: Sequence[str], groups: Sequence[str], y_N: Ints) -> list[Fold]:
    """Read folds written by `to_csv` for these slides, of any encoder.

    A group that alone holds a class of the development part may stand in training and
    validation, as `cross_validation` puts it; no other.

    Raises:
        LabelError: damaged file, a slide that it lacks or names twice, or a group, by these
            groups or by those of the file, in two parts.
    """
    table = read_table(path, (*SLIDE_NAMES, *GROUP_NAMES, "fold0"), error=LabelError)
    columns = [name for name in table.columns if plain_name(name).startswith("fold")]
    row_of = _rows_of(table, slide_ids)
    absent = [name for name in slide_ids if name not in row_of]
    if absent or not columns:
        what = f"lacks {len(absent)} slide(s): {named(absent)}" if absent else "has no fold columns"
        raise LabelError(f"{path}: {what}.", hint="make new splits: leave out `--splits`")
    rows = [row_of[name] for name in slide_ids]
    of_file = table.group_column()
    groupings = [groups]
    if of_file is not None:
        groupings.append([table.columns[of_file][row] for row in rows])
    folds = []
    for column in columns:
        part_N = np.array([_parse(table, row, column) for row in rows], dtype=np.int64)
        for grouping in groupings:
            _refuse_leaks(f"{path}, {column}", part_N, grouping, y_N)
        turns = sorted(set(part_N[part_N >= 0].tolist()))
        if not turns or turns != list(range(len(turns))) or not (part_N == TEST).any():
            raise LabelError(f"{path}, {column}: needs test slides and validation0, 1, … slides.")
        folds.append(Fold(part_N))
    return folds


def unused(path: Path, slide_ids: Collection[str]) -> list[str]:
    """Name the slides of a file of folds that are none of these."""
    table = read_table(path, (*SLIDE_NAMES, "fold0"), error=LabelError)
    names = table.columns[table.need(*SLIDE_NAMES, hint=_HEADER)]
    return [name for name in names if match_slide(name, slide_ids) is None]


def _rows_of(table: Table, slide_ids: Collection[str]) -> dict[str, int]:
    row_of: dict[str, int] = {}
    for row, name in enumerate(table.columns[table.need(*SLIDE_NAMES, hint=_HEADER)]):
        slide = match_slide(name, slide_ids)
        if slide is None:
            continue
        if slide in row_of:
            raise LabelError(f"{table.place(row)}: slide {slide} comes twice.")
        row_of[slide] = row
    return row_of


def _refuse_leaks(where: str, part_N: Ints, groups: Sequence[str], y_N: Ints) -> None:
    parts_of: dict[str, set[int]] = {}
    for group, part in zip(groups, part_N.tolist(), strict=True):
        parts_of.setdefault(group, set()).add(part)
    development = np.flatnonzero(part_N != TEST).tolist()
    alone = only_class_carriers(y_N[development], [groups[i] for i in development])
    torn = {group for group, parts in parts_of.items() if len(parts) > 1}
    tested = {group for group in torn if TEST in parts_of[group]}
    hint = "put all slides of a patient into one part"
    if tested:
        raise LabelError(f"{where}: group(s) both in test and outside: {named(tested)}.", hint=hint)
    if torn := torn - set(alone):
        raise LabelError(
            f"{where}: group(s) both in training and validation, or in two validation sets: "
            f"{named(torn)}.",
            hint=hint,
        )


def _cell(part: int) -> str:
    return {TEST: "test", TRAIN: "train"}.get(part, f"validation{part}")


def _parse(table: Table, row: int, column: str) -> int:
    cell = table.columns[column][row]
    word = cell.lower()
    known = {"test": TEST, "train": TRAIN, "validation": 0}
    if word in SPLIT_NAMES:
        return known[SPLIT_NAMES[word]]
    number = word.removeprefix("validation")
    if number == word or not re.fullmatch(r"[0-9]{1,6}", number):
        raise LabelError(
            f"{table.place(row, column)}: {cell!r} is no part.",
            hint="use test, train, validation0, validation1, …",
        )
    return int(number)
