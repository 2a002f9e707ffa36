"""The table of labels, and the cohort: bags and labels that belong together."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError
from cytofm_cli.mil.bags import Bag, named

# The Bethesda system, from normal to worst: the order in which ordinal metrics count.
BETHESDA = ("NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC")
SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class LabelTable:
    """The rows of a table of labels; tuples of equal length, in file order.

    Attributes:
        slide_ids: unique.
        labels: class names; "" where the cell is empty.
        groups: the patient of each slide; the slide itself if there is no such column.
        splits: "train", "validation" or "test" of each slide, if the column is there.
        grouped: whether the table has a group column.
    """

    slide_ids: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[str, ...] | None
    grouped: bool


@dataclass(frozen=True, eq=False)
class Cohort:
    """Labelled bags, sorted by slide id.

    Attributes:
        bags: one bag a slide.
        y_N: int64 class index of each slide.
        groups: the patient of each slide.
        classes: class names; the last of two is the positive one.
        splits: the user's fixed split, if given.
    """

    bags: tuple[Bag, ...]
    y_N: NDArray[np.int64]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...] | None = None

    @property
    def slide_ids(self) -> list[str]:
        """Return the slide ids in order."""
        return [bag.slide_id for bag in self.bags]


def read_labels(path: Path, *, label_column: str = "label") -> LabelTable:
    """Read `slide_id,label[,group][,split]` (comma, semicolon or tab; a byte-order mark is fine).

    Raises:
        LabelError: unreadable file, missing column, a slide twice, an unknown split name, a
            patient in two splits.
    """
    rows = _read_rows(path, ("slide_id", label_column))
    ids = tuple(row["slide_id"] for row in rows)
    doubled = [name for name, count in Counter(ids).items() if count > 1]
    if doubled:
        raise LabelError(f"{path}: {len(doubled)} slide(s) come twice: {named(doubled)}.")
    grouped = "group" in rows[0]
    empty = [row["slide_id"] for row in rows if grouped and not row["group"]]
    if empty:
        raise LabelError(f"{path}: {len(empty)} slide(s) have no group: {named(empty)}.")
    groups = tuple(row["group"] if grouped else row["slide_id"] for row in rows)
    splits = _read_splits(path, rows, groups) if "split" in rows[0] else None
    return LabelTable(ids, tuple(row[label_column] for row in rows), groups, splits, grouped)


def build_cohort(
    bags: Sequence[Bag],
    table: LabelTable,
    *,
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> Cohort:
    """Join bags and labels by slide id.

    Args:
        bags: loaded bags.
        table: labels.
        classes: order of the classes, the positive or the worst last; None: `class_order`.
        allow_missing: go on with the slides that have both a bag and a label.

    Raises:
        LabelError: a slide without bag or label, a single class, only one group.
    """
    row_of = {name: i for i, name in enumerate(table.slide_ids) if table.labels[i]}
    with_bag = {bag.slide_id for bag in bags}
    no_bag, no_label = set(row_of) - with_bag, with_bag - set(row_of)
    if not allow_missing or not (with_bag & set(row_of)):
        _refuse_unmatched(no_bag, no_label)
    kept = sorted((bag for bag in bags if bag.slide_id in row_of), key=lambda bag: bag.slide_id)
    rows = [row_of[bag.slide_id] for bag in kept]
    names = [table.labels[row] for row in rows]
    order = _checked_classes(names, classes)
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
    )


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Order class names: by number, by the Bethesda system, else by alphabet."""
    found = set(names)
    if found <= set(BETHESDA):
        return tuple(name for name in BETHESDA if name in found)
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def _checked_classes(names: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    order = tuple(classes) if classes else class_order(names)
    unknown = set(names) - set(order)
    if unknown:
        raise LabelError(f"labels hold classes that `--classes` does not name: {named(unknown)}.")
    absent = [name for name in order if name not in names]
    if absent and len(order) > 1:
        raise LabelError(f"no slide has class {named(absent)}.")
    if len(order) < 2:
        raise LabelError(
            f"all {len(names)} slides have the same label ({order[0]!r}): nothing to learn.",
            hint="training needs at least two classes",
        )
    return order


def _refuse_unmatched(no_bag: set[str], no_label: set[str]) -> None:
    parts = []
    if no_bag:
        parts.append(f"{len(no_bag)} labelled slide(s) have no bag: {named(no_bag)}")
    if no_label:
        parts.append(f"{len(no_label)} bag(s) have no label: {named(no_label)}")
    if not parts:
        return
    by_stem = {Path(name).stem for name in no_bag} & no_label
    hint = (
        "write slide ids without file extensions"
        if by_stem
        else "`--allow-missing` goes on with the slides that have both"
    )
    raise LabelError("; ".join(parts) + ".", hint=hint)


def _read_rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text.", hint="save the table as CSV UTF-8") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise LabelError(
            f"{path}: no column {named(missing)} (found: {', '.join(columns) or 'nothing'}).",
            hint="the header must be slide_id,label[,group][,split]",
        )
    reader.fieldnames = columns
    rows = []
    for row in reader:
        if None in row or any(value is None for value in row.values()):
            raise LabelError(
                f"{path}, line {reader.line_num}: not as many cells as the header has."
            )
        rows.append({key: value.strip() for key, value in row.items()})
        if not rows[-1]["slide_id"]:
            raise LabelError(f"{path}, line {reader.line_num}: empty slide_id.")
    if not rows:
        raise LabelError(f"{path}: has a header but no slides.")
    return rows


def _read_splits(
    path: Path, rows: Sequence[dict[str, str]], groups: Sequence[str]
) -> tuple[str, ...]:
    splits = []
    split_of: dict[str, str] = {}
    for row, group in zip(rows, groups, strict=True):
        split = SPLIT_NAMES.get(row["split"].lower())
        if split is None:
            raise LabelError(
                f"{path}: slide {row['slide_id']} has split {row['split']!r}.",
                hint="use train, validation (optional) and test",
            )
        if split_of.setdefault(group, split) != split:
            raise LabelError(
                f"{path}: group {group!r} is in two splits ({split_of[group]} and {split}): "
                "its slides would leak.",
                hint="put all slides of a patient into one split",
            )
        splits.append(split)
    return tuple(splits)
