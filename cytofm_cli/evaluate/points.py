"""Labelled points: reading their table, joining groups and slides, making tasks of labels.

Legend: N instances.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError, UsageError
from cytofm_cli.mil.bags import named
from cytofm_cli.mil.labels import BETHESDA, class_order

Ints = NDArray[np.int64]
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
    """

    slides: tuple[str, ...]
    xy_px0: NDArray[np.float64]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    tile_N: Ints | None = None

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
            these slides, or a slide without group.
    """
    rows, key = _read_rows(path, ("x", "y", "label"))
    group_of = None if groups is None else _read_groups(groups, slide_ids)
    known, unknown = [], set()
    for line, row in enumerate(rows, start=2):
        slide = _slide_of(row[key], slide_ids)
        if slide is None:
            unknown.add(row[key])
            continue
        if not row["label"]:
            raise LabelError(
                f"{path}, row {line}: empty label.", hint="leave unlabelled points out"
            )
        group = row.get("group", slide) if group_of is None else group_of.get(slide, "")
        known.append((slide, *_xy(path, line, row), row["label"], group))
    if not known:
        raise LabelError(
            f"{path}: none of its {len(unknown)} slide(s) is given ({named(unknown)}).",
            hint=f"the slides given are {named(slide_ids)}: names must agree",
        )
    without = {point[0] for point in known if not point[4]}
    if without:
        raise LabelError(
            f"{groups or path}: {len(without)} slide(s) have no group: {named(without)}."
        )
    known.sort(key=lambda point: point[0])
    found, xs, ys, labels, of_group = zip(*known, strict=True)
    xy_px0 = np.stack([np.array(xs), np.array(ys)], 1)
    return Points(found, xy_px0, labels, of_group), sorted(unknown)


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
    found = set(points.labels)
    if names is None:
        bethesda = found <= set(BETHESDA) and "NILM" in found and len(found) > 2
        names = ([] if positive else ["labels"]) + (["abnormal"] if bethesda else [])
    wanted = [*names, *(["positive"] if positive else [])]
    made = []
    for name in dict.fromkeys(wanted):
        if name == "positive" and positive:
            absent = set(positive) - found
            if absent:
                raise LabelError(
                    f"no point has the label {named(absent)}.",
                    hint=f"labels: {', '.join(class_order(points.labels))}",
                )
            made.append(_binary(points, name, set(positive), ("other", "positive")))
        elif name in BETHESDA_TASKS:
            made.append(_bethesda(points, name))
        elif name == "labels":
            made.append(_as_given(points))
        else:
            raise UsageError(
                f"no task is called {name!r}.",
                hint=f"labels, {', '.join(BETHESDA_TASKS)}; or --positive LABEL",
            )
    return made


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
    unknown = set(points.labels) - set(BETHESDA)
    if unknown:
        raise LabelError(
            f"task {name} needs labels of the Bethesda system; these are others: {named(unknown)}.",
            hint=f"{', '.join(BETHESDA)}; or name the positive ones with --positive",
        )
    from_class, classes = BETHESDA_TASKS[name]
    return _binary(points, name, set(BETHESDA[BETHESDA.index(from_class) :]), classes)


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


def _read_rows(path: Path, needed: tuple[str, ...]) -> tuple[list[dict[str, str]], str]:
    """Return the rows and the name of the column that names the slide."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text.", hint="save the table as CSV UTF-8") from error
    delimiter = max(",;\t", key=(lines[0] if lines else "").count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [(name or "").strip() for name in reader.fieldnames or ()]
    reader.fieldnames = columns
    key = next((name for name in ("slide_id", "image") if name in columns), None)
    missing = [name for name in needed if name not in columns]
    if key is None or missing:
        raise LabelError(
            f"{path}: no column {', '.join([*([] if key else ['slide_id']), *missing])} "
            f"(found: {', '.join(columns) or 'nothing'}).",
            hint=f"the header must be slide_id,{','.join(needed)}",
        )
    rows = []
    for row in reader:
        if None in row or any(value is None for value in row.values()):
            raise LabelError(f"{path}, line {reader.line_num}: not as many cells as the header.")
        rows.append({name: value.strip() for name, value in row.items()})
    if not rows:
        raise LabelError(f"{path}: has a header but no rows.")
    return rows, key


def _read_groups(path: Path, slide_ids: Collection[str]) -> dict[str, str]:
    rows, key = _read_rows(path, ("group",))
    found: dict[str, str] = {}
    for row in rows:
        slide = _slide_of(row[key], slide_ids)
        if slide is not None and found.setdefault(slide, row["group"]) != row["group"]:
            raise LabelError(f"{path}: slide {slide} is in two groups.")
    return found


def _slide_of(name: str, slide_ids: Collection[str]) -> str | None:
    """Match a slide id, or a file name with its suffix, or with folders before it."""
    plain = PurePosixPath(name).name
    stem = PurePosixPath(plain).stem.removesuffix(".ome")
    return next((word for word in (name, plain, stem) if word in slide_ids), None)


def _xy(path: Path, line: int, row: dict[str, str]) -> tuple[float, float]:
    try:
        x, y = float(row["x"]), float(row["y"])
    except ValueError:
        x = y = float("nan")
    if not (np.isfinite(x) and np.isfinite(y)):
        raise LabelError(f"{path}, row {line}: x {row['x']!r}, y {row['y']!r} are no numbers.")
    return x, y


def count_labels(labels: Iterable[str]) -> dict[str, int]:
    """Return how often each label occurs, in the order of the classes."""
    counts = Counter(labels)
    return {name: counts[name] for name in class_order(list(counts))}
