"""Splits: patients stay together, classes are balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import LabelError
from cytofm_cli.stats import balance
from cytofm_cli.stats.folds import (
    TEST,
    TRAIN,
    Fold,
    cross_validation,
    from_column,
    holdout,
    only_class_carriers,
)
from cytofm_cli.stats.folds import tested as of_tests


def cohort(seed: int, n_groups: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    y, groups = [], []
    for group in range(n_groups):
        for _ in range(rng.integers(1, 6)):
            y.append(int(rng.random() < 0.5))
            groups.append(f"g{group}")
        y[-1] = group % 2
    return np.array(y), groups


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n_groups=st.integers(12, 30), repeats=st.integers(1, 2))
def test_cross_validation__no_group_leaks_and_every_slide_is_tested_once_a_repeat(
    seed: int, n_groups: int, repeats: int
) -> None:
    y, groups = cohort(seed, n_groups)
    names = np.array(groups)
    folds = cross_validation(y, groups, folds=3, inner_folds=3, repeats=repeats, seed=seed)
    assert len(folds) == 3 * repeats
    counts = np.zeros(len(y))
    for fold in folds:
        counts[fold.test()] += 1
        for turn in range(3):
            train, validation = fold.train_validation(turn)
            together = np.sort(np.concatenate([train, validation, fold.test()]))
            assert together.tolist() == list(range(len(y)))
            assert not set(names[train]) & set(names[fold.test()])
            assert not set(names[validation]) & set(names[fold.test()])
            assert not set(names[train]) & set(names[validation])
            assert set(y[train]) == {0, 1}
    assert (counts == repeats).all()


def test_cross_validation__every_development_slide_validates_exactly_one_turn() -> None:
    y, groups = cohort(3, 20)
    (fold, *_) = cross_validation(y, groups, folds=4, inner_folds=5)
    turns = np.concatenate([fold.train_validation(turn)[1] for turn in range(5)])
    assert np.sort(turns).tolist() == fold.development().tolist()
    np.testing.assert_array_equal(fold.train_validation(0)[1], fold.train_validation(5)[1])


def test_cross_validation__same_seed_same_folds_other_seed_others() -> None:
    y, groups = cohort(1, 30)
    make = [
        [
            fold.part_N.tolist()
            for fold in cross_validation(y, groups, folds=5, inner_folds=3, seed=seed)
        ]
        for seed in (0, 0, 1)
    ]
    assert make[0] == make[1]
    assert make[0] != make[2]


def test_balanced_parts__eight_uneven_groups_reach_the_best_partition() -> None:
    # The groups of a real collection: (negatives, positives). All 2^8 halvings are tried.
    counts = np.array([[9, 9], [12, 7], [0, 4], [12, 1], [2, 11], [9, 0], [1, 10], [1, 2]])
    target = np.array([0.5, 0.5])
    share = np.concatenate([counts, counts.sum(1, keepdims=True)], 1) / [46, 44, 90]

    def cost(part: np.ndarray) -> float:
        return float(sum(((share[part == p].sum(0) - 0.5) ** 2).sum() for p in (0, 1)))

    best = min(cost(np.array([code >> bit & 1 for bit in range(8)])) for code in range(1, 2**8 - 1))
    found = cost(balance.balanced_parts(counts, target, np.random.default_rng(0)))
    assert found <= 1.5 * best + 1e-3


def test_balanced_parts__many_groups_are_within_two_percent_of_the_target() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, size=(300, 3)) + np.eye(3, dtype=int)[rng.integers(0, 3, 300)]
    part = balance.balanced_parts(counts, np.array([0.3, 0.7]), rng)
    share = counts[part == 0].sum(0) / counts.sum(0)
    np.testing.assert_allclose(share, 0.3, atol=0.02)


def test_cross_validation__class_in_too_few_groups_says_how_many_folds_would_do() -> None:
    y = np.array([0, 0, 0, 1, 1, 0])
    with pytest.raises(LabelError, match="'bad' occurs in 2 group") as error:
        cross_validation(y, list("abcdef"), folds=3, inner_folds=2, classes=("good", "bad"))
    assert error.value.hint == "`--folds 2`"


def test_cross_validation__class_in_one_training_group_is_split_inside_training_only() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1])
    groups = ["p", "p", "p", "a", "b", "c", "d", "q", "q"]
    for fold in cross_validation(y, groups, folds=2, inner_folds=2):
        held_out = {groups[i] for i in fold.test()}
        assert not held_out & {groups[i] for i in fold.development()}
        for turn in (0, 1):
            assert set(y[fold.train_validation(turn)[0]]) == {0, 1}


def test_holdout__seventy_thirty() -> None:
    y, groups = cohort(0, 60)
    (fold,) = holdout(y, groups, test_fraction=0.3, inner_folds=4)
    assert len(fold.test()) / len(y) == pytest.approx(0.3, abs=0.03)
    assert y[fold.test()].mean() == pytest.approx(y.mean(), abs=0.05)


def test_from_column__parts_as_written() -> None:
    y = np.array([0, 1, 0, 1, 0, 1])
    column = ["train", "train", "validation", "validation", "test", "test"]
    (fold,) = from_column(column, y, list("abcdef"), inner_folds=3)
    assert fold.n_validation == 1
    train, validation = fold.train_validation(7)
    assert (train.tolist(), validation.tolist(), fold.test().tolist()) == ([0, 1], [2, 3], [4, 5])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["train"] * 4, "test part .* no slides"),
        (["train", "train", "train", "test"], "test part .* not all classes"),
    ],
)
def test_from_column__part_without_a_class_is_refused(column: list[str], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        from_column(column, np.array([0, 1, 0, 1]), list("abcd"), inner_folds=2)


# A cohort with one patient of many slides and some of both classes.
PINNED_Y = np.array([int(c) for c in "010011010110100101101100110101001011"])
PINNED_GROUPS = list("aaaaaaabbcccdeefghijjjklmnnopqrsttuu")

PINNED_CV = [
    ".......1122200010201112....11.202200",
    "2222222..000....10....11200.01.01111",
    "222222211...0000..2111.11001.00.....",
    ".......11000211...111120222.200.0022",
    "2222222..0002..100....010..11..01111",
    "222222211....000002111...001.011....",
]
PINNED_HOLDOUT = [
    "1111111220000..0.21...02....0.022222",
    "000000011........2022221122.2.1.1111",
]
PINNED_COLUMN = [
    ".......22222.001.00...11.112.02.0011",
]


def parts(folds: list[Fold]) -> list[str]:
    """Write the part of each slide as a letter: `.` test, `-` never validation, else its set."""
    letter = {TEST: ".", TRAIN: "-"}
    return ["".join(letter.get(p, str(p)) for p in fold.part_N.tolist()) for fold in folds]


def test_folds__of_a_seed_are_the_same_for_ever() -> None:
    # What these strings say is in published splits: a seed must draw them again.
    shared = {"inner_folds": 3, "seed": 11}
    crossed = cross_validation(PINNED_Y, PINNED_GROUPS, folds=3, repeats=2, **shared)
    assert parts(crossed) == PINNED_CV
    held_out = holdout(PINNED_Y, PINNED_GROUPS, test_fraction=0.3, repeats=2, **shared)
    assert parts(held_out) == PINNED_HOLDOUT
    column = ["test" if group in "adgjmps" else "train" for group in PINNED_GROUPS]
    assert parts(from_column(column, PINNED_Y, PINNED_GROUPS, **shared)) == PINNED_COLUMN


def test_folds__without_a_seed_are_those_of_zero() -> None:
    y, groups = PINNED_Y, PINNED_GROUPS
    assert parts(cross_validation(y, groups, folds=2, inner_folds=2)) == parts(
        cross_validation(y, groups, folds=2, inner_folds=2, repeats=1, seed=0)
    )
    assert parts(holdout(y, groups, test_fraction=0.5, inner_folds=2)) == parts(
        holdout(y, groups, test_fraction=0.5, inner_folds=2, repeats=1, seed=0)
    )
    column = ["test" if group < "f" else "train" for group in groups]
    assert parts(from_column(column, y, groups, inner_folds=2)) == parts(
        from_column(column, y, groups, inner_folds=2, seed=0)
    )


def test_holdout__class_of_one_patient_is_refused() -> None:
    with pytest.raises(LabelError, match="a class occurs in one group only"):
        holdout(np.array([0, 0, 1, 1]), list("abcc"), test_fraction=0.5, inner_folds=2)
    (fold,) = holdout(
        np.array([0, 0, 0, 1, 1, 1]), list("abcdef"), test_fraction=0.3, inner_folds=2
    )
    assert len(fold.test()) == 2
    pairs = np.array([0, 0, 0, 0, 1, 1, 1, 1])  # two patients of each class are enough
    (fold,) = holdout(pairs, list("aabbccdd"), test_fraction=0.5, inner_folds=2)
    assert sorted(pairs[fold.test()].tolist()) == [0, 0, 1, 1]


def test_folds__training_part_too_small_for_validation_is_refused() -> None:
    said = "too few slides to set aside a validation part"
    y, column = np.array([0, 1, 0, 1]), ["train", "train", "test", "test"]
    with pytest.raises(LabelError, match=said):  # one slide of each class
        from_column(column, y, list("abcd"), inner_folds=2)
    column = ["train"] * 4 + ["test"] * 2
    with pytest.raises(LabelError, match=said):  # one slide of the one class, three of the other
        from_column(column, np.array([0, 0, 0, 1, 0, 1]), list("abcdef"), inner_folds=2)
    column = ["train", "train", "test", "test"]
    with pytest.raises(LabelError, match=said):  # one patient
        from_column(column, y, list("aacd"), inner_folds=2)
    with pytest.raises(LabelError, match=said):  # one set is no validation in turns
        from_column(
            ["train"] * 4 + ["test"] * 2, np.array([0, 1] * 3), list("abcdef"), inner_folds=1
        )
    (fold,) = from_column(
        ["train"] * 4 + ["test"] * 2, np.array([0, 1] * 3), list("abcdef"), inner_folds=9
    )
    assert fold.n_validation == 4  # a patient a set, and no more


def test_only_class_carriers__groups_that_alone_hold_a_class() -> None:
    y = np.array([0, 0, 1, 1, 2, 2, 0])
    assert only_class_carriers(y, list("abccdea")) == ["c"]
    assert only_class_carriers(y, list("abccdda")) == ["c", "d"]


def test_tested__indices_of_all_folds_ascending() -> None:
    folds = [Fold(np.array([TRAIN, TEST, 0])), Fold(np.array([0, TEST, TEST]))]
    assert of_tests(folds).tolist() == [1, 2]
    assert folds[0].development().tolist() == [0, 2]


def test_balanced_parts__up_to_a_hundred_units_are_also_swapped() -> None:
    # Four units that single moves cannot improve: only a swap makes the halves equal.
    counts = np.array([[4, 0], [4, 0], [0, 4], [0, 4]])
    for seed in range(5):
        part = balance.balanced_parts(counts, np.array([0.5, 0.5]), np.random.default_rng(seed))
        assert part[0] != part[1] and part[2] != part[3]
