"""Splits that keep a patient together: outer test folds and inner validation sets.

The test part of a fold is touched once. Validation is carved from the training part and takes
turns over the seeds, so an ensemble over seeds has seen the whole training part.
Legend: N slides, G groups (patients), U units that stay together, C classes, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import LabelError
from cytofm_cli.stats.balance import balanced_parts

TEST, TRAIN = -1, -2  # other values of `Fold.part_N` count the validation sets
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
    rounds = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        fold_N = balanced_parts(counts_GC, np.full(folds, 1 / folds), rng)[group_N]
        rounds += [
            _with_validation(fold_N == fold, y_N, groups, inner_folds, rng) for fold in range(folds)
        ]
    return rounds


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
    folds = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        target_P = np.array([test_fraction, 1 - test_fraction])
        part_N = balanced_parts(counts_GC, target_P, rng)[group_N]
        folds.append(_with_validation(part_N == 0, y_N, groups, inner_folds, rng))
    return folds


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


def only_class_carriers(y_N: Ints, groups: Sequence[str]) -> list[str]:
    """Name the groups that alone hold some class among these slides."""
    of_class = [{groups[i] for i in np.flatnonzero(y_N == c).tolist()} for c in np.unique(y_N)]
    return sorted({next(iter(classes_of)) for classes_of in of_class if len(classes_of) == 1})


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
