"""Clustered DeLong: patients with unequal numbers of slides, against loops over every pair."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cytofm_cli.stats.intervals import delong_covariance, placements

pytestmark = pytest.mark.filterwarnings("error")  # what is undefined is not divided by zero

# Slides of 1 to 5 a patient; some patients have one class only, f has most of the slides.
GROUPS = list("aaabbcccccdeeffffffgh")
Y = np.array([1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0])
FIRST = np.array([9, 4, 2, 7, 8, 3, 3, 6, 5, 7, 1, 6, 6, 8, 2, 4, 1, 9, 7, 3, 2]) / 10
SECOND = np.array([6, 5, 5, 7, 4, 3, 1, 7, 5, 9, 2, 8, 3, 8, 6, 6, 0, 7, 2, 5, 8]) / 10

# AUC of both, then their covariance.
PINNED = [
    0.818181818182,
    0.8,
    0.00578830485818,
    -0.0025610174949,
    -0.0025610174949,
    0.00770342384888,
]


def obuchowski(y: np.ndarray, scores: list[np.ndarray], groups: list[str]) -> np.ndarray:
    """Obuchowski 1997, eq. 1 to 4, a number at a time: AUC of each model, then the covariance."""
    positive = [i for i in range(len(y)) if y[i] == 1]
    negative = [i for i in range(len(y)) if y[i] == 0]
    m, n = len(positive), len(negative)

    def beats(score: np.ndarray, i: int, j: int) -> float:
        return 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0

    auc = [sum(beats(s, i, j) for i in positive for j in negative) / (m * n) for s in scores]
    names = sorted(set(groups))
    # Of each model and patient: the sum over slides of placement minus AUC.
    of_positive = [
        [
            sum(
                sum(beats(s, i, j) for j in negative) / n - a for i in positive if groups[i] == name
            )
            for name in names
        ]
        for s, a in zip(scores, auc, strict=True)
    ]
    of_negative = [
        [
            sum(
                sum(beats(s, i, j) for i in positive) / m - a for j in negative if groups[j] == name
            )
            for name in names
        ]
        for s, a in zip(scores, auc, strict=True)
    ]
    i10 = len({groups[i] for i in positive})
    i01 = len({groups[j] for j in negative})
    both = len(names)
    cov = np.zeros((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = s01 = s11 = 0.0
            for g in range(both):
                s10 += of_positive[r][g] * of_positive[s][g]
                s01 += of_negative[r][g] * of_negative[s][g]
                s11 += of_positive[r][g] * of_negative[s][g]
                s11 += of_positive[s][g] * of_negative[r][g]
            s10 *= i10 / ((i10 - 1) * m)
            s01 *= i01 / ((i01 - 1) * n)
            s11 *= both / (both - 1)
            cov[r, s] = s10 / m + s01 / n + s11 / (m * n)
    return np.array([*auc, *cov.ravel()])


def test_delong_covariance__unequal_patients_equal_the_loops() -> None:
    auc, cov = delong_covariance(Y, np.stack([FIRST, SECOND]), GROUPS)
    wanted = obuchowski(Y, [FIRST, SECOND], GROUPS)
    np.testing.assert_allclose([*auc, *cov.ravel()], wanted, rtol=1e-12)
    # As the loops gave it once, so that both cannot drift together.
    np.testing.assert_allclose(auc, PINNED[:2], rtol=1e-9)
    np.testing.assert_allclose(cov, np.reshape(PINNED[2:], (2, 2)), rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_delong_covariance__drawn_patients_equal_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, 9)
    groups = [f"p{g}" for g in np.repeat(np.arange(9), sizes)]
    y = rng.integers(0, 2, len(groups))
    y[:2] = 0, 1
    y[-2:] = 1, 0
    scores = rng.normal(size=(3, len(groups))).round(1) + y
    order = rng.permutation(len(groups))  # slides of a patient need not stand together
    auc, cov = delong_covariance(y[order], scores[:, order], [groups[i] for i in order])
    np.testing.assert_allclose(
        [*auc, *cov.ravel()], obuchowski(y, [*scores], groups), rtol=1e-10, atol=1e-14
    )


def test_delong__too_few_patients_of_a_class_have_no_variance() -> None:
    y, score = np.array([1, 1, 0, 0]), np.array([0.9, 0.2, 0.4, 0.1])
    one = ["a", "a", "b", "c"]  # both positive slides are of one patient
    for labels, groups in ((y, one), (1 - y, one)):
        auc, cov = delong_covariance(labels, score[None], groups)
        assert auc[0] == (0.75 if labels is y else 0.25)
        assert np.isnan(cov).all() and cov.shape == (1, 1)
        parts = placements(labels, score, groups)
        assert parts is not None and math.isnan(parts.clustered)
    two = delong_covariance(y, score[None], ["a", "b", "a", "b"])[1]
    assert two[0, 0] == pytest.approx(obuchowski(y, [score], ["a", "b", "a", "b"])[1])


@pytest.mark.parametrize("label", [0, 1])
def test_delong__one_class_alone_has_no_auc(label: int) -> None:
    auc, cov = delong_covariance(np.full(3, label), np.zeros((2, 3)), list("abc"))
    assert np.isnan(auc).all() and auc.shape == (2,)
    assert np.isnan(cov).all() and cov.shape == (2, 2)


def test_placements__both_variances_and_how_many_slides_of_how_many_patients() -> None:
    parts = placements(Y, FIRST, GROUPS)
    assert parts is not None
    auc, clustered = obuchowski(Y, [FIRST], GROUPS)
    assert (parts.auc, parts.clustered) == (pytest.approx(auc), pytest.approx(clustered))
    alone = [str(i) for i in range(len(Y))]
    assert parts.independent == pytest.approx(obuchowski(Y, [FIRST], alone)[1])
    assert (parts.n_positive, parts.n_negative) == (10, 11)
    assert (parts.positive_groups, parts.negative_groups) == (6, 6)
    assert parts.slides_a_group == 11 / 6
    assert placements(np.ones(3, int), FIRST[:3], list("abc")) is None
