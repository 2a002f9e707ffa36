"""Splits: patients stay together, classes are balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import LabelError
from cytofm_cli.stats import balance
from cytofm_cli.stats.folds import cross_validation, from_column, holdout


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
