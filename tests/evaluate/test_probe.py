"""Probes: worked by hand, against scikit-learn, and blind to what they are tested on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cytofm_cli.evaluate import probe
from cytofm_cli.stats import metrics

ONES = np.ones(2)


def test_knn__votes_by_hand() -> None:
    train = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]])  # cosine to (1, 0): 1, 0, 1/√2
    y = np.array([0, 1, 1])
    two, three, clamped = probe.knn_scores(
        train, y, np.array([[5.0, 0.0]]), 2, (2, 3, 200), 0.5, ONES
    )
    near, far = np.exp((1 / 2**0.5 - 1) / 0.5), np.exp(-1 / 0.5)
    assert two[0, 1] == pytest.approx(near / (1 + near), rel=1e-12)
    assert three[0, 1] == pytest.approx((near + far) / (1 + near + far), rel=1e-12)
    np.testing.assert_array_equal(three, clamped)


def test_knn__balanced_votes_weigh_inversely_to_frequency() -> None:
    train = np.ones((4, 2))
    y = np.array([0, 0, 0, 1])
    group = np.arange(4)
    answers = {
        balanced: probe.knn((4,), balanced=balanced)(train, y, group, np.ones((1, 2)), 2)["knn4"]
        for balanced in (True, False)
    }
    assert answers[True][0].tolist() == pytest.approx([0.5, 0.5])
    assert answers[False][0].tolist() == pytest.approx([0.75, 0.25])


def test_knn__chunks_and_order_of_neighbours_do_not_matter(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    train, test, y = rng.normal(size=(50, 6)), rng.normal(size=(23, 6)), np.arange(50) % 3
    whole = probe.knn_scores(train, y, test, 3, (5,), 0.07, np.ones(3))[0]
    monkeypatch.setattr(probe, "_CHUNK", 7)
    order = rng.permutation(50)
    parts = probe.knn_scores(train[order], y[order], test, 3, (5,), 0.07, np.ones(3))[0]
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [1e-3, 0.3])
def test_linear__is_scikit_learns_logistic_regression(classes: int, c: float) -> None:
    rng = np.random.default_rng(classes)
    y = rng.choice(classes, size=300, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    x = rng.normal(size=(300, 12)) + 0.4 * y[:, None] * rng.normal(size=12)
    weight = probe.class_weights(y, classes, balanced=True)
    found = probe.fit_logistic(x, y, c, weight, gtol=1e-8)
    theirs = LogisticRegression(C=c, class_weight="balanced", tol=1e-10, max_iter=5000).fit(x, y)
    np.testing.assert_allclose(
        probe.logistic_probabilities(x, found), theirs.predict_proba(x), atol=2e-5
    )
    np.testing.assert_allclose(found[:-1].T, theirs.coef_, atol=2e-4)


def test_linear__penalty_is_the_best_of_inner_grouped_folds() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(240) % 2
    groups = np.repeat(np.arange(6), 40)
    x = rng.normal(size=(240, 60))
    x[:, 0] += 1.5 * y
    penalties = (1e-4, 1e-2, 1e2)
    chosen = probe.choose_penalty(x, y, groups, ONES, penalties, 3, 0)
    fold = probe.grouped_folds(y, groups, 3, 0)
    aucs = []
    for c in penalties:
        p = np.zeros(240)
        for f in range(3):
            model = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(x[fold != f], y[fold != f])
            p[fold == f] = model.predict_proba(x[fold == f])[:, 1]
        aucs.append(float(metrics.auc(y, p)))
    assert sorted(aucs)[-1] - sorted(aucs)[0] > 0.01
    assert aucs[penalties.index(chosen)] >= max(aucs) - 2e-3


def test_standardise__uses_the_training_part_and_silences_constants() -> None:
    rng = np.random.default_rng(0)
    train = np.column_stack([rng.normal(5, 3, 40), np.full(40, 7.0)]).astype(np.float32)
    test = np.array([[8.0, 9.0]], np.float32)
    x, z = probe.standardise(train, test)
    reference = StandardScaler().fit(train.astype(np.float64))
    np.testing.assert_allclose(x[:, 0], reference.transform(train.astype(np.float64))[:, 0])
    np.testing.assert_allclose(z[0, 0], reference.transform(test.astype(np.float64))[0, 0])
    assert (x[:, 1] == 0).all()
    assert z[0, 1] == 0


def leaky(n_groups: int, size: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that tell the group, and labels that are mostly the group's."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), size)
    mostly = rng.permutation(n_groups) % 2
    y = np.where(rng.random(len(groups)) < 0.9, mostly[groups], 1 - mostly[groups])
    x = 3 * rng.normal(size=(n_groups, 32))[groups] + rng.normal(size=(len(groups), 32))
    return x, y, groups


def test_out_of_fold__group_specific_features_give_chance() -> None:
    for make in (probe.knn((10,)), probe.linear((1e-3,))):
        apart, leaking = [], []
        for seed in range(8):  # with few groups, one draw is far from chance by chance
            x, y, groups = leaky(30, 8, seed)
            mixed = np.random.default_rng(seed).permutation(len(y)) % 5
            for fold, found in ((probe.grouped_folds(y, groups, 5), apart), (mixed, leaking)):
                (p,) = probe.out_of_fold(x, y, groups, fold, make).values()
                found.append(float(metrics.macro_auc(y, p)))
        assert 0.4 < np.mean(apart) < 0.6
        assert np.mean(leaking) > 0.7


def test_out_of_fold__answers_do_not_depend_on_the_labels_that_they_are_judged_by() -> None:
    x, y, groups = leaky(8, 12)
    fold = probe.grouped_folds(y, groups, 8)
    other = np.where(fold == 2, 1 - y, y)
    for make in (probe.knn((5,)), probe.linear((1e-3, 1e-1))):
        for name, p in probe.out_of_fold(x, y, groups, fold, make).items():
            again = probe.out_of_fold(x, other, groups, fold, make)[name]
            np.testing.assert_array_equal(p[fold == 2], again[fold == 2])
            assert (p[fold == 3] != again[fold == 3]).any()
    few, again = (probe.few_shot(x, labels, fold, shots=(2,))[2] for labels in (y, other))
    np.testing.assert_array_equal(few[:, fold == 2], again[:, fold == 2])


def test_out_of_fold__class_that_training_lacks_has_probability_zero() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 10)
    y = np.array([0, 1] * 10 + [0, 2] * 5)
    x = rng.normal(size=(30, 4))
    for make in (probe.knn((5,)), probe.linear((1e-2,))):
        (p,) = probe.out_of_fold(x, y, groups, groups, make).values()
        assert (p[groups == 2, 2] == 0).all()
        assert (p[groups == 0, 2] > 0).all()
        np.testing.assert_allclose(p.sum(1), 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**16))
def test_grouped_folds__hold_every_group_out_once(n_groups: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, 60)]) * 3 + 1
    y = rng.integers(0, 3, len(groups))
    fold = probe.grouped_folds(y, groups, folds, seed)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    if folds >= n_groups:
        assert len(set(fold)) == n_groups


def test_few_shot__all_examples_are_the_nearest_class_mean() -> None:
    rng = np.random.default_rng(1)
    y, fold = np.arange(40) % 2, np.repeat([0, 1], 20)
    x = rng.normal(size=(40, 5)) + y[:, None]
    (p,) = probe.few_shot(x, y, fold, shots=(10,), draws_R=3).values()
    centre = x[20:].mean(0)
    z = (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)
    means = np.stack([z[20:][y[20:] == c].mean(0) for c in (0, 1)])
    d2 = ((z[:20, None] - means) ** 2).sum(-1)
    wanted = np.exp(-d2) / np.exp(-d2).sum(1, keepdims=True)
    for draw in p:
        np.testing.assert_allclose(draw[:20], wanted, rtol=1e-9)


def test_few_shot__draws_are_fixed_by_the_seed_and_differ() -> None:
    x, y, groups = leaky(8, 12)
    fold = probe.grouped_folds(y, groups, 8)
    one, same, other = (
        probe.few_shot(x, y, fold, shots=(1, 4), draws_R=5, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one[4], same[4])
    assert (one[4] != other[4]).any()
    assert (one[1][0] != one[1][1]).any()
    fewer = probe.few_shot(x, y, fold, shots=(4,), draws_R=2, seed=0)
    np.testing.assert_array_equal(fewer[4], one[4][:2])
