"""Distance from normal cells: the shrunk covariance as its paper has it, and what follows."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.cells import outliers
from cytofm_cli.stats.covariance import shrunk_covariance


def test_shrunk_covariance__is_that_of_ledoit_and_wolf_sample_by_sample() -> None:
    rng = np.random.default_rng(0)
    x_ND = rng.normal(0, [1, 2, 3], (20, 3))
    x_ND -= x_ND.mean(0)
    n, d = x_ND.shape
    sample = x_ND.T @ x_ND / n
    m = np.trace(sample) / d
    d2 = ((sample - m * np.eye(d)) ** 2).sum() / d
    b2 = sum(((np.outer(x, x) - sample) ** 2).sum() / d for x in x_ND) / n**2
    share = min(b2, d2) / d2
    covariance, found = shrunk_covariance(x_ND)
    assert found == pytest.approx(share)
    assert covariance == pytest.approx((1 - share) * sample + share * m * np.eye(d))


def test_whitening__gives_the_mahalanobis_distance() -> None:
    rng = np.random.default_rng(1)
    x_ND = rng.normal(0, 1, (50, 4)) @ rng.normal(0, 1, (4, 4))
    covariance, _ = shrunk_covariance(x_ND)
    by_inverse = np.sqrt(np.einsum("nd,de,ne->n", x_ND, np.linalg.inv(covariance), x_ND))
    assert np.linalg.norm(x_ND @ outliers.whitening(x_ND), axis=1) == pytest.approx(by_inverse)


def test_whitening__of_fewer_cells_than_features_is_finite() -> None:
    x_ND = np.random.default_rng(2).normal(0, 1, (3, 10))
    assert np.isfinite(outliers.whitening(x_ND)).all()
    assert np.isfinite(outliers.whitening(np.zeros((3, 10)))).all()


def test_share_nearer__counts_equals_half_and_one_cell_more() -> None:
    reference = np.array([1.0, 2, 2, 3])
    found = outliers.share_nearer(reference, np.array([0.5, 1, 2, 2.5, 9]))
    assert found == pytest.approx(np.array([0, 0.5, 2, 3, 4]) / 5)


def test_neighbour_distance__by_hand() -> None:
    bank = np.array([[0.0, 0], [3, 4], [0, 1]], np.float32)
    x = np.array([[0.0, 0], [3, 0]])
    # from (0, 0): 0, 5, 1; from (3, 0): 3, 4, √10
    assert outliers.neighbour_distance(x, bank, 1) == pytest.approx([0, 3])
    assert outliers.neighbour_distance(x, bank, 2) == pytest.approx([1, np.sqrt(10)])
    assert outliers.neighbour_distance(x, bank, 9) == pytest.approx([5, 4])
