"""Splits that keep a patient together: outer test folds and inner validation sets.

The test part of a fold is touched once. Validation is carved from the training part and takes
turns over the seeds, so an ensemble over seeds has seen the whole training part.
Legend: N slides, G groups (patients), U units that stay together, C classes, P parts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError
from cytofm_cli.mil.bags import named

TEST, TRAIN = -1, -2  # other values of `Fold.part_N` count the validation sets
RESTARTS = 4
SWAP_LIMIT = 100  # beyond this many units, single moves balance well enough
Ints = NDArray[np.int64]


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


def balanced_parts(
    counts_UC: Ints, target_P: NDArray[np.float64], rng: np.random.Generator
) -> Ints:
    """Assign units to parts so that each part gets its share of every class.

    Greedy from the largest unit, then single moves and swaps while they help; the best of a
    few random orders. The cost is the squared deviation of each class's share (and of the
    size) from the target, and a class that a part lacks weighs more than any deviation.

    Args:
        counts_UC: slides of each class in each unit.
        target_P: share of each part; sums to 1.
        rng: decides order and ties.

    Returns:
        int64 (U,), the part of each unit.
    """
    share_UC = np.concatenate([counts_UC, counts_UC.sum(1, keepdims=True)], 1).astype(np.float64)
    share_UC /= np.maximum(share_UC.sum(0), 1)
    tries = [_one_assignment(share_UC, target_P, rng) for _ in range(RESTARTS)]
    return min(tries, key=lambda found: found[0])[1]


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


def read_csv(path: Path, slide_ids: Sequence[str], groups: Sequence[str]) -> list[Fold]:
    """Read folds written by `to_csv` for these slides, of any encoder.

    Raises:
        LabelError: damaged file, a slide that it lacks, or a group in test and outside it.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        row_of = {row["slide_id"]: row for row in rows}
        columns = [name for name in rows[0] if name.startswith("fold")]
    except (OSError, UnicodeDecodeError, KeyError, IndexError) as error:
        raise LabelError(f"{path}: not a splits.csv ({error}).") from error
    absent = [name for name in slide_ids if name not in row_of]
    if absent or not columns:
        what = f"lacks {len(absent)} slide(s): {named(absent)}" if absent else "has no fold columns"
        raise LabelError(f"{path}: {what}.", hint="make new splits: leave out `--splits`")
    folds = []
    for column in columns:
        part_N = np.array([_parse(path, row_of[name][column]) for name in slide_ids])
        in_test = {groups[i] for i in np.flatnonzero(part_N == TEST).tolist()}
        leaking = in_test & {groups[i] for i in np.flatnonzero(part_N != TEST).tolist()}
        if leaking:
            raise LabelError(
                f"{path}, {column}: group(s) both in test and outside: {named(leaking)}.",
                hint="put all slides of a patient into one part",
            )
        turns = sorted(set(part_N[part_N >= 0].tolist()))
        if not turns or turns != list(range(len(turns))) or not in_test:
            raise LabelError(f"{path}, {column}: needs test slides and validation0, 1, … slides.")
        folds.append(Fold(part_N.astype(np.int64)))
    return folds


def _cell(part: int) -> str:
    return {TEST: "test", TRAIN: "train"}.get(part, f"validation{part}")


def _parse(path: Path, cell: str) -> int:
    known = {"test": TEST, "train": TRAIN, "validation": 0}
    if cell in known:
        return known[cell]
    number = cell.removeprefix("validation")
    if number == cell or not number.isdigit():
        raise LabelError(f"{path}: {cell!r} is no part; use test, train, validation0, …")
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


def _cost(have_PC: NDArray[np.float64], target_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cost over the last two axes."""
    deviation = ((have_PC - target_P[:, None]) ** 2).sum((-2, -1))
    missing = (have_PC < 1e-12).sum((-2, -1))
    return np.asarray(deviation + 10.0 * missing)


def _one_assignment(
    share_UC: NDArray[np.float64], target_P: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, Ints]:
    n_units, n_parts = len(share_UC), len(target_P)
    order = np.argsort(-share_UC.max(1) * rng.uniform(0.7, 1.3, n_units), kind="stable")
    part_U = np.zeros(n_units, dtype=np.int64)
    have_PC = np.zeros((n_parts, share_UC.shape[1]))
    into_PPC = np.eye(n_parts)[:, :, None]  # candidate p: the unit goes into part p
    tie_P = rng.uniform(0, 1e-9, n_parts)
    for unit in order:
        cost_P = _cost(have_PC + into_PPC * share_UC[unit], target_P) + tie_P
        part_U[unit] = int(cost_P.argmin())
        have_PC[part_U[unit]] += share_UC[unit]
    best = float(_cost(have_PC, target_P))
    for _ in range(10):
        before = best
        best = _improve(share_UC, target_P, part_U, have_PC, best)
        if best >= before - 1e-12:
            break
    return best, part_U


def _improve(
    share_UC: NDArray[np.float64],
    target_P: NDArray[np.float64],
    part_U: Ints,
    have_PC: NDArray[np.float64],
    best: float,
) -> float:
    """Apply helpful moves and swaps in place; return the new cost."""
    n_units, n_parts = len(part_U), len(target_P)

    def attempt(changes: tuple[tuple[int, int], ...]) -> bool:
        nonlocal best
        trial = have_PC.copy()
        for unit, part in changes:
            trial[part_U[unit]] -= share_UC[unit]
            trial[part] += share_UC[unit]
        cost = float(_cost(trial, target_P))
        if cost >= best - 1e-12:
            return False
        best, have_PC[:] = cost, trial
        for unit, part in changes:
            part_U[unit] = part
        return True

    for unit in range(n_units):
        for part in range(n_parts):
            if part != part_U[unit]:
                attempt(((unit, part),))
    if n_units <= SWAP_LIMIT:
        for a in range(n_units):
            for b in range(a + 1, n_units):
                if part_U[a] != part_U[b]:
                    attempt(((a, int(part_U[b])), (b, int(part_U[a]))))
    return best
