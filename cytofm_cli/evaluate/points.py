"""Labelled points: reading their table, joining groups and slides, making tasks of labels.

Legend: N instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError, UsageError
from cytofm_cli.stats.classes import (
    BETHESDA,
    as_found,
    bethesda_rank,
    class_order,
    is_bethesda,
    merge_spellings,
    spelling_key,
)
from cytofm_cli.tables import (
    GROUP_NAMES,
    LABEL_NAMES,
    SLIDE_NAMES,
    X_NAMES,
    Y_NAMES,
    Table,
    match_slide,
    read_table,
)
from cytofm_cli.words import is_missing, named

Ints = NDArray[np.int64]
_EXPECTED = (*SLIDE_NAMES, *X_NAMES, *Y_NAMES, *LABEL_NAMES, *GROUP_NAMES)
_HEADER = "the header must be slide_id,x,y,label[,group]"
# Tasks by name: the mildest class that is positive, and the names of both sides.
BETHESDA_TASKS = {
    "abnormal": ("ASC-US", ("NILM", "abnormal")),
    "lsil_plus": ("LSIL", ("below_lsil", "lsil_plus")),
}


@dataclass(frozen=True, eq=False)
class Points:
    """Labelled instances, sorted by slide; all of length N.

    Attributes:
        slides: slide id of each.
        xy_px0: float64 (N, 2), level-0 pixels: the point, or the corner of the tile.
        labels: class name of each.
        groups: what never stands on both sides of a split: patient, block of staining.
        tile_N: number of the tile in its store; None for points.
        notes: what was assumed about the table, to be shown as warnings.
    """

    slides: tuple[str, ...]
    xy_px0: NDArray[np.float64]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    tile_N: Ints | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.slides)

    def take(self, rows: Iterable[int]) -> Points:
        """Return some of the instances, in the order of `rows`."""
        index = np.array(list(rows), dtype=np.int64)
        return replace(
            self,
            slides=tuple(self.slides[i] for i in index),
            xy_px0=self.xy_px0[index],
            labels=tuple(self.labels[i] for i in index),
            groups=tuple(self.groups[i] for i in index),
            tile_N=None if self.tile_N is None else self.tile_N[index],
        )

    def of_slide(self, slide_id: str) -> Ints:
        """Return the rows of one slide."""
        return np.flatnonzero(np.array(self.slides) == slide_id)


@dataclass(frozen=True, eq=False)
class Task:
    """Classes to tell apart.

    Attributes:
        name: `labels`, `abnormal`, `lsil_plus` or `positive`.
        classes: names; the last of two is the positive one.
        rows_N: the instances that take part.
        y_N: class index of each of them.
        left_out: instances of each class that no other group could teach.
    """

    name: str
    classes: tuple[str, ...]
    rows_N: Ints
    y_N: Ints
    left_out: dict[str, int]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many instances each class has."""
        return {name: int((self.y_N == c).sum()) for c, name in enumerate(self.classes)}


def read_points(
    path: Path, slide_ids: Collection[str], groups: Path | None = None
) -> tuple[Points, list[str]]:
    """Read `slide_id|image,x,y,label[,group]`, for the slides that are given.

    Args:
        path: the table; x and y in level-0 pixels. A slide is named by its id or its file.
        slide_ids: slides that are there.
        groups: table `slide_id|image,group`; else the column `group`, else the slide itself.

    Returns:
        the points sorted by slide (in a slide as in the file), and the slides of the table
        that are not there.

    Raises:
        LabelError: unreadable, a missing column or cell, a number that is none, no point of
            these slides, a slide without group, or a point with two labels or in two groups.
    """
    table = read_table(path, _EXPECTED, error=LabelError)
    names = table.columns[table.need(*SLIDE_NAMES, hint=_HEADER)]
    label = table.label_column(hint=_HEADER)
    slide_of = {name: match_slide(name, slide_ids) for name in set(names)}
    unknown = sorted(name for name, slide in slide_of.items() if slide is None)
    rows = [row for row, name in enumerate(names) if slide_of[name] is not None]
    if not rows:
        raise LabelError(
            f"{path}: none of its {len(unknown)} slide(s) is given ({named(unknown)}).",
            hint=f"the slides given are {named(slide_ids)}: names must agree",
        )
    given = [table.columns[label][row] for row in rows]
    for row, cell in zip(rows, given, strict=True):
        if is_missing(cell):
            raise LabelError(
                f"{table.place(row, label)}: empty label ({cell!r}).",
                hint="leave unlabelled points out",
            )
    labels, of_labels = merge_spellings(given, "label")
    slides = [str(slide_of[names[row]]) for row in rows]
    of_group, of_groups = _groups_of(table, rows, slides, label, groups)
    points = Points(
        tuple(slides),
        np.stack([_pixels(table, rows, of) for of in (X_NAMES, Y_NAMES)], 1),
        labels,
        of_group,
        notes=(*table.notes, *of_labels, *of_groups),
    )
    return _once(path, points.take(sorted(range(len(rows)), key=slides.__getitem__))), unknown


def _once(path: Path, points: Points) -> Points:
    """Take points that come several times once.

    Raises:
        LabelError: one has two labels, or would be on both sides of a split.
    """
    first: dict[tuple[str, float, float], int] = {}
    twice = []
    for row, (slide, (x, y)) in enumerate(zip(points.slides, points.xy_px0.tolist(), strict=True)):
        before = first.setdefault((slide, x, y), row)
        if before == row:
            continue
        twice.append(row)
        for what, of in (("labels", points.labels), ("groups", points.groups)):
            if of[before] != of[row]:
                raise LabelError(
                    f"{path}: the point of slide {slide} at x {x:g}, y {y:g} has two {what}: "
                    f"{of[before]!r} and {of[row]!r}.",
                    hint="a cell has one class and is of one patient: leave one row of it",
                )
    if not twice:
        return points
    kept = points.take(sorted(first.values()))
    note = f"{path}: {len(twice)} point(s) come again and are taken once"
    return replace(kept, notes=(*kept.notes, note))


def make_tasks(
    points: Points, names: Sequence[str] | None, positive: Sequence[str] | None
) -> list[Task]:
    """Make the tasks that are asked for, `labels` and `abnormal` where they are possible.

    Raises:
        UsageError: no such task.
        LabelError: labels that the task does not know, one class only, one group only.
    """
    if len(set(points.groups)) < 2:
        raise LabelError(
            f"all {len(points)} instances belong to one group ({points.groups[0]!r}): none can "
            "be held out.",
            hint="give patients or blocks in a column `group` or with --groups",
        )
    classes = set(points.labels)
    if names is None:
        bethesda = (
            is_bethesda(points.labels) and 0 in map(bethesda_rank, classes) and len(classes) > 2
        )
        names = ([] if positive else ["labels"]) + (["abnormal"] if bethesda else [])
    wanted = [*names, *(["positive"] if positive else [])]
    tasks = []
    for name in dict.fromkeys(wanted):
        if name == "positive" and positive:
            labels = as_found(points.labels, positive, "--positive", what="point", whole=False)
            tasks.append(_binary(points, name, set(labels), ("other", "positive")))
        elif name in BETHESDA_TASKS:
            tasks.append(_bethesda(points, name))
        elif name == "labels":
            tasks.append(_as_given(points))
        else:
            raise UsageError(
                f"no task is called {name!r}.",
                hint=f"labels, {', '.join(BETHESDA_TASKS)}; or --positive LABEL",
            )
    return tasks


def _as_given(points: Points) -> Task:
    groups_of: dict[str, set[str]] = {}
    for label, group in zip(points.labels, points.groups, strict=True):
        groups_of.setdefault(label, set()).add(group)
    # A class of one group is either not learnt or not tested: it can only blur the others.
    left_out = {label: points.labels.count(label) for label, of in groups_of.items() if len(of) < 2}
    keep = [label for label in class_order(points.labels) if label not in left_out]
    if len(keep) < 2:
        what = "have one label" if len(groups_of) < 2 else "have fewer than two labels found in "
        more = f" ({points.labels[0]!r})" if len(groups_of) < 2 else "two or more groups"
        raise LabelError(f"the points {what}{more}: nothing to tell apart.")
    rows_N = np.array([i for i, name in enumerate(points.labels) if name in keep], dtype=np.int64)
    y_N = np.array([keep.index(points.labels[i]) for i in rows_N], dtype=np.int64)
    return Task("labels", tuple(keep), rows_N, y_N, left_out)


def _bethesda(points: Points, name: str) -> Task:
    unknown = {label for label in set(points.labels) if bethesda_rank(label) is None}
    if unknown:
        raise LabelError(
            f"task {name} needs labels of the Bethesda system; these are others: {named(unknown)}.",
            hint=f"{', '.join(BETHESDA)}; leave rows of other classes out of the table",
        )
    from_class, classes = BETHESDA_TASKS[name]
    mildest = BETHESDA.index(from_class)
    positive = {label for label in set(points.labels) if (bethesda_rank(label) or 0) >= mildest}
    return _binary(points, name, positive, classes)


def _binary(points: Points, name: str, positive: set[str], classes: tuple[str, str]) -> Task:
    y_N = np.array([label in positive for label in points.labels], dtype=np.int64)
    for side in (0, 1):
        count = int((y_N == side).sum())
        groups = {points.groups[i] for i in np.flatnonzero(y_N == side)}
        if len(groups) < 2:
            raise LabelError(
                f"task {name}: {count} instance(s) are {classes[side]}, in {len(groups)} group(s); "
                "two groups are needed, to learn from one and test on the other.",
                hint="label points of more groups, or choose another task",
            )
    return Task(name, classes, np.arange(len(points)), y_N, {})


def _pixels(table: Table, rows: Sequence[int], names: Sequence[str]) -> NDArray[np.float64]:
    column = table.need(*names, hint=_HEADER)
    values = table.numbers(column, default=np.nan)
    for row in rows:
        if np.isnan(values[row]):
            cell = table.columns[column][row]
            raise LabelError(f"{table.place(row, column)}: no number ({cell!r}).")
    return np.array([values[row] for row in rows])


def _groups_of(
    table: Table, rows: Sequence[int], slides: Sequence[str], label: str, groups: Path | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the group of each row, and what was assumed."""
    if groups is None:
        column = table.group_column(besides=label)
        if column is None:
            note = f"{table.path}: no column of patients or blocks: slides are taken as groups"
            return tuple(slides), [note]
        source, cells = table.path, [table.columns[column][row] for row in rows]
        notes = [] if column == "group" else [f"{table.path}: groups are those of column {column}"]
    else:
        source, (group_of, notes) = groups, read_groups(groups, set(slides))
        cells = [group_of.get(slide, "") for slide in slides]
    without = {slide for slide, cell in zip(slides, cells, strict=True) if is_missing(cell)}
    if without:
        raise LabelError(f"{source}: {len(without)} slide(s) have no group: {named(without)}.")
    merged, remarks = merge_spellings(cells, "group")
    return merged, [*notes, *remarks]


def read_groups(path: Path, slide_ids: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Read `slide_id|image,group` of these slides; return the group of each, and what was assumed.

    Raises:
        LabelError: unreadable, a missing column, or a slide in two groups.
    """
    table = read_table(path, (*SLIDE_NAMES, *GROUP_NAMES), error=LabelError)
    hint = "the header must be slide_id,group"
    slide_column = table.need(*SLIDE_NAMES, hint=hint)
    column = table.group_column() or table.need("group", hint=hint)
    group_of: dict[str, str] = {}
    for name, group in zip(table.columns[slide_column], table.columns[column], strict=True):
        slide = match_slide(name, slide_ids)
        if slide is not None and spelling_key(group_of.setdefault(slide, group)) != spelling_key(
            group
        ):
            raise LabelError(f"{path}: slide {slide} is in two groups.")
    return group_of, list(table.notes)


def count_labels(labels: Iterable[str]) -> dict[str, int]:
    """Return how often each label occurs, in the order of the classes."""
    counts = Counter(labels)
    return {name: counts[name] for name in class_order(list(counts))}
