"""Splits that keep a patient together: outer test folds and inner validation sets.

The test part of a fold is touched once. Validation is carved from the training part and takes
turns over the seeds, so an ensemble over seeds has seen the whole training part.
Legend: N slides, G groups (patients), U units that stay together, C classes, P parts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError
from cytofm_cli.stats.balance import balanced_parts
from cytofm_cli.tables import (
    GROUP_NAMES,
    SLIDE_NAMES,
    Table,
    match_slide,
    plain_name,
    read_table,
)
from cytofm_cli.words import named

TEST, TRAIN = -1, -2  # other values of `Fold.part_N` count the validation sets
_HEADER = "the header must be slide_id,group,fold0,fold1,…, as `mil train` writes it"
Ints = NDArray[np.int64]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Fold:
    """One outer fold.

    Attributes:
        part_N: int64; `TEST`, `TRAIN` (never validation), or the number of the validation
            set that the slide belongs to.
    """

    part_N: Ints

    @property
    def n_validation(self) -> int:
        """Return how many validation sets take turns."""
        return int(self.part_N.max()) + 1

    def test(self) -> Ints:
        """Return the indices of the test slides."""
        return np.flatnonzero(self.part_N == TEST)

    def development(self) -> Ints:
        """Return the indices of all slides that are not test slides."""
        return np.flatnonzero(self.part_N != TEST)

    def train_validation(self, seed_number: int) -> tuple[Ints, Ints]:
        """Return the training and validation indices of the model with this number (0, 1, …)."""
        turn = seed_number % self.n_validation
        validation = self.part_N == turn
        return np.flatnonzero((self.part_N != TEST) & ~validation), np.flatnonzero(validation)


def cross_validation(
    y_N: Ints,
    groups: Sequence[str],
    *,
    folds: int,
    inner_folds: int,
    repeats: int = 1,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> list[Fold]:
    """Make `repeats` × `folds` grouped, stratified folds.

    Raises:
        LabelError: a class occurs in fewer groups than there are folds.
    """
    group_N, counts_GC = _group_counts(y_N, groups)
    groups_C = (counts_GC > 0).sum(0)
    rarest = int(groups_C.argmin())
    if groups_C[rarest] < folds:
        name = repr(classes[rarest]) if classes else f"number {rarest}"
        few = int(groups_C[rarest])
        raise LabelError(
            f"class {name} occurs in {few} group(s), fewer than the {folds} folds.",
            hint=f"`--folds {few}`" if few > 1 else "label slides of more patients of that class",
        )
    made = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        fold_N = balanced_parts(counts_GC, np.full(folds, 1 / folds), rng)[group_N]
        made += [
            _with_validation(fold_N == fold, y_N, groups, inner_folds, rng) for fold in range(folds)
        ]
    return made


def holdout(
    y_N: Ints,
    groups: Sequence[str],
    *,
    test_fraction: float,
    inner_folds: int,
    repeats: int = 1,
    seed: int = 0,
) -> list[Fold]:
    """Make `repeats` grouped, stratified splits with one test part each (0.3: 70/30)."""
    group_N, counts_GC = _group_counts(y_N, groups)
    if (counts_GC > 0).sum(0).min() < 2:
        raise LabelError(
            "a class occurs in one group only: training or test part would lack it.",
            hint="label slides of more patients of that class",
        )
    made = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        target_P = np.array([test_fraction, 1 - test_fraction])
        part_N = balanced_parts(counts_GC, target_P, rng)[group_N]
        made.append(_with_validation(part_N == 0, y_N, groups, inner_folds, rng))
    return made


def from_column(
    splits: Sequence[str],
    y_N: Ints,
    groups: Sequence[str],
    *,
    inner_folds: int,
    seed: int = 0,
) -> list[Fold]:
    """Make the one fold that the user's `split` column describes.

    Without slides marked "validation" the validation sets come from the training part.

    Raises:
        LabelError: no test or no training slides, or a part that lacks a class.
    """
    split_N = np.array(splits)
    for part in ("train", "test"):
        absent = set(y_N.tolist()) - set(y_N[split_N == part].tolist())
        if absent:
            what = "no slides" if not (split_N == part).any() else "not all classes"
            raise LabelError(f"the {part} part of the `split` column has {what}.")
    if (split_N == "validation").any():
        part_N = np.where(split_N == "test", TEST, np.where(split_N == "train", TRAIN, 0))
        return [Fold(part_N.astype(np.int64))]
    rng = np.random.default_rng([seed, 0])
    return [_with_validation(split_N == "test", y_N, groups, inner_folds, rng)]


def tested(folds: Sequence[Fold]) -> Ints:
    """Return the indices of the slides that some fold tests, ascending."""
    return np.unique(np.concatenate([fold.test() for fold in folds]))


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


def only_class_carriers(y_N: Ints, groups: Sequence[str]) -> list[str]:
    """Name the groups that alone hold some class among these slides."""
    of_class = [{groups[i] for i in np.flatnonzero(y_N == c).tolist()} for c in np.unique(y_N)]
    return sorted({next(iter(found)) for found in of_class if len(found) == 1})


def to_csv(folds: Sequence[Fold], slide_ids: Sequence[str], groups: Sequence[str]) -> str:
    """Write folds as a table: a row a slide, a column `fold<i>` a fold.

    A cell is `test`, `train`, or `validation<k>`: validation for the seeds whose turn is k
    (seed number modulo the count of such sets) and training for the others.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
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


def _group_counts(y_N: Ints, groups: Sequence[str]) -> tuple[Ints, Ints]:
    names, group_N = np.unique(np.array(groups), return_inverse=True)
    counts_GC = np.zeros((len(names), int(y_N.max()) + 1), dtype=np.int64)
    np.add.at(counts_GC, (group_N, y_N), 1)
    return group_N.astype(np.int64), counts_GC


def _with_validation(
    in_test_N: NDArray[np.bool_],
    y_N: Ints,
    groups: Sequence[str],
    inner_folds: int,
    rng: np.random.Generator,
) -> Fold:
    index = np.flatnonzero(~in_test_N)
    inner_groups = [groups[i] for i in index.tolist()]
    # A group that alone holds a class would take it out of training altogether, so here, and
    # only between training and validation, its slides are split. The test part stays apart.
    alone = set(only_class_carriers(y_N[index], inner_groups))
    units = [f"{g}\0{i}" if g in alone else g for g, i in zip(inner_groups, index, strict=True)]
    unit_of, counts_UC = _group_counts(y_N[index], units)
    parts = min(inner_folds, len(counts_UC))
    if parts < 2 or (counts_UC > 0).sum(0).min() < 2:
        raise LabelError(
            "too few slides to set aside a validation part of the training part.",
            hint="label more slides, or use fewer folds",
        )
    part_N = np.full(len(y_N), TEST, dtype=np.int64)
    part_N[index] = balanced_parts(counts_UC, np.full(parts, 1 / parts), rng)[unit_of]
    return Fold(part_N)
