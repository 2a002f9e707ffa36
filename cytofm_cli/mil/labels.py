"""The table of labels, and the cohort: bags and labels that belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.splits import SPLIT_NAMES
from cytofm_cli.stats.classes import choose_order, merge_spellings
from cytofm_cli.tables import (
    GROUP_NAMES,
    LABEL_NAMES,
    SLIDE_NAMES,
    Table,
    match_slide,
    read_table,
)
from cytofm_cli.words import is_missing, named

_HEADER = "the header must be slide_id,label[,group][,split]"


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table of labels; tuples of equal length, in file order.

    Attributes:
        slide_ids: unique.
        labels: class names; "" where the cell is empty or `NA`.
        groups: the patient of each slide; the slide itself if there is no such column.
        splits: "train", "validation" or "test" of each slide, if the column is there.
        label_column: the column that was taken for labels.
        group_column: the column that was taken for patients; None: there is none.
        notes: what was assumed, to be shown as warnings.
    """

    slide_ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...] | None
    label_column: str = "label"
    group_column: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Cohort:
    """Labelled bags, sorted by slide id.

    Attributes:
        bags: one bag a slide.
        y_N: int64 class index of each slide.
        groups: the patient of each slide.
        classes: class names; the last of two is the positive one.
        splits: the user's fixed split, if given.
        label_column: the column of the labels.
        group_column: the column of the patients; None: slides are taken as patients.
        notes: what was assumed about the table, to be shown as warnings.
    """

    bags: tuple[Bag, ...]
    y_N: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None = None
    label_column: str = "label"
    group_column: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def slide_ids(self) -> list[str]:
        """Return the slide ids in order."""
        return [bag.slide_id for bag in self.bags]

    @property
    def positive(self) -> str | None:
        """Return the positive class; None for more than two classes."""
        return self.classes[1] if len(self.classes) == 2 else None


def read_labels(
    path: Path, *, label_column: str = "label", group_column: str | None = None
) -> LabelTable:
    """Read slides, labels, and where they are there patients and splits; see `tables`.

    Args:
        path: a table `slide_id,label[,group][,split]`, or with the names of other tools.
        label_column: what to learn; "label" also finds `class`, `diagnosis` and the like.
        group_column: the patient; None: `group`, `patient`, `case_id` and the like.

    Raises:
        LabelError: unreadable file, missing column, a slide twice, an unknown split name, a
            patient in two splits, two columns of patients that differ.
    """
    expected = (*SLIDE_NAMES, *LABEL_NAMES, *GROUP_NAMES, label_column, group_column or "", "split")
    table = read_table(path, expected, error=LabelError)
    label = table.label_column(
        label_column, hint=f"--label COLUMN names it; or {_HEADER}", flag="--label"
    )
    group = table.group_column(group_column, besides=label, flag="--group")
    slide = table.need(*SLIDE_NAMES, hint=_HEADER)
    ids = table.columns[slide]
    for row, name in enumerate(ids):
        if not name:
            raise LabelError(f"{table.place(row)}: empty {slide}.")
    doubled = [name for name, count in Counter(ids).items() if count > 1]
    if doubled:
        raise LabelError(f"{path}: {len(doubled)} slide(s) come twice: {named(doubled)}.")
    given = ["" if is_missing(cell) else cell for cell in table.columns[label]]
    labels, of_labels = merge_spellings(given, "class")
    groups, of_groups = (ids, []) if group is None else _groups(table, group, ids)
    split = table.find("split")
    return LabelTable(
        slide_ids=ids,
        labels=labels,
        groups=groups,
        splits=_splits(table, split[0], ids, groups) if split else None,
        label_column=label,
        group_column=group,
        notes=(*table.notes, *of_labels, *of_groups),
    )


def build_cohort(
    bags: Sequence[Bag],
    table: LabelTable,
    *,
    classes: Sequence[str] | None = None,
    positive: str | None = None,
    allow_missing: bool = False,
) -> Cohort:
    """Join bags and labels by slide id; a label may also name a slide by its file.

    Args:
        bags: loaded bags.
        table: labels.
        classes: order of the classes, the positive or the worst last; None: `class_order`.
        positive: the positive one of two classes; None: the last.
        allow_missing: go on with the slides that have both a bag and a label.

    Raises:
        LabelError: a slide without bag or label, a single class, only one group.
    """
    row_of, no_bag = _match(bags, table)
    no_label = {bag.slide_id for bag in bags} - set(row_of)
    if not allow_missing or not row_of:
        _refuse_unmatched(no_bag, no_label)
    left = _unmatched(no_bag, no_label)
    kept = sorted((bag for bag in bags if bag.slide_id in row_of), key=lambda bag: bag.slide_id)
    rows = [row_of[bag.slide_id] for bag in kept]
    names = [table.labels[row] for row in rows]
    if len(set(names)) < 2:
        raise LabelError(
            f"all {len(names)} slides have the same label ({names[0]!r}): nothing to learn.",
            hint="training needs at least two classes",
        )
    order = choose_order(sorted(set(names)), classes, positive)
    groups = tuple(table.groups[row] for row in rows)
    if len(set(groups)) < 2:
        raise LabelError(
            f"all {len(kept)} slides belong to one group ({groups[0]!r}): no independent test set.",
            hint="give patients in the `group` column, or remove it to treat slides as independent",
        )
    return Cohort(
        bags=tuple(kept),
        y_N=np.array([order.index(name) for name in names], dtype=np.int64),
        groups=groups,
        classes=order,
        splits=None if table.splits is None else tuple(table.splits[row] for row in rows),
        label_column=table.label_column,
        group_column=table.group_column,
        notes=(*table.notes, *([f"left out: {left}"] if left else [])),
    )


def _groups(table: Table, column: str, ids: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    cells = table.columns[column]
    empty = [name for name, cell in zip(ids, cells, strict=True) if is_missing(cell)]
    if empty:
        raise LabelError(
            f"{table.path}: {len(empty)} slide(s) have no {column}: {named(empty)}.",
            hint="give every slide its patient",
        )
    return merge_spellings(cells, "group")


def _match(bags: Sequence[Bag], table: LabelTable) -> tuple[dict[str, int], set[str]]:
    """Return the row of each bag that has a label, and the labelled slides without a bag."""
    known = {bag.slide_id for bag in bags}
    row_of: dict[str, int] = {}
    no_bag = set()
    for row, name in enumerate(table.slide_ids):
        slide = match_slide(name, known)
        if slide in row_of:
            raise LabelError(
                f"labels: {table.slide_ids[row_of[slide]]!r} and {name!r} are one slide, {slide}."
            )
        if slide is not None and table.labels[row]:
            row_of[slide] = row
        elif slide is None and table.labels[row]:
            no_bag.add(name)
    return row_of, no_bag


def _unmatched(no_bag: set[str], no_label: set[str]) -> str:
    parts = []
    if no_bag:
        parts.append(f"{len(no_bag)} labelled slide(s) have no bag: {named(no_bag)}")
    if no_label:
        parts.append(f"{len(no_label)} bag(s) have no label: {named(no_label)}")
    return "; ".join(parts)


def _refuse_unmatched(no_bag: set[str], no_label: set[str]) -> None:
    what = _unmatched(no_bag, no_label)
    if not what:
        return
    zeros = {name.lstrip("0") for name in no_bag} & {name.lstrip("0") for name in no_label}
    hint = (
        "the table lost the leading zeros of its slide ids (Excel does that)"
        if zeros
        else "`--allow-missing` goes on with the slides that have both; NA is no label"
    )
    raise LabelError(f"{what}.", hint=hint)


def _splits(
    table: Table, column: str, ids: Sequence[str], groups: Sequence[str]
) -> tuple[str, ...]:
    splits = []
    split_of: dict[str, str] = {}
    for row, (cell, group) in enumerate(zip(table.columns[column], groups, strict=True)):
        split = SPLIT_NAMES.get(cell.lower())
        if split is None:
            raise LabelError(
                f"{table.place(row)}: slide {ids[row]} has split {cell!r}.",
                hint="use train, validation (optional) and test",
            )
        if split_of.setdefault(group, split) != split:
            raise LabelError(
                f"{table.path}: group {group!r} is in two splits ({split_of[group]} and {split}): "
                "its slides would leak.",
                hint="put all slides of a patient into one split",
            )
        splits.append(split)
    return tuple(splits)
