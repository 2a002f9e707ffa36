"""Measures on sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.generate.measures import (
    distances,
    fidelity,
    frechet,
    manifold,
    nearest,
    radii,
)


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Return a sample whose mean is 0 and whose sample covariance is I, exactly."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T)


def test_frechet__of_a_shift_is_its_square() -> None:
    x, shift = whitened(50, 4, 0), np.array([1.0, -2.0, 0.5, 0.0])
    assert frechet(x, whitened(70, 4, 1) + shift) == pytest.approx(5.25, abs=1e-9)
    assert frechet(x, x) == pytest.approx(0.0, abs=1e-9)


def test_frechet__of_a_scale_is_the_square_of_what_it_differs() -> None:
    """N(0, I) and N(0, s² I): d (s - 1)²."""
    assert frechet(whitened(40, 3, 0), 2.5 * whitened(60, 3, 1)) == pytest.approx(3 * 1.5**2)


def test_frechet__is_symmetric_and_that_of_the_matrix_root() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(30, 5)) + 1
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)


def test_frechet__of_fewer_images_than_features() -> None:
    a = np.random.default_rng(4).normal(size=(6, 20))
    assert frechet(a, a + 1) == pytest.approx(20.0, abs=1e-8)
    with pytest.raises(UsageError, match="too few"):
        frechet(a[:1], a)


LINE = np.array([[0.0], [1.0], [3.0], [6.0]])


def test_radii__by_hand() -> None:
    assert radii(LINE, 1).tolist() == [1.0, 1.0, 2.0, 3.0]
    assert radii(LINE, 2).tolist() == [3.0, 2.0, 3.0, 5.0]
    assert distances(LINE, LINE[:1]).flatten().tolist() == [0.0, 1.0, 3.0, 6.0]


def test_manifold__by_hand() -> None:
    made = np.array([[0.5], [20.0], [21.0], [23.0]])
    of = manifold(LINE, made, k=1, density_k=1)
    # Real balls: [-1, 1], [0, 2], [1, 5], [3, 9]: 0.5 is in the first two, the others in none.
    assert (of.precision, of.density) == (0.25, 0.5)
    assert of.coverage == 0.5
    # The made ones' radii: 19.5, 1, 1, 2: that of 0.5 holds all real ones.
    assert of.recall == 1.0


def test_manifold__of_equal_sets_of_disjoint_ones_and_of_a_collapse() -> None:
    real = np.random.default_rng(5).normal(size=(60, 3))
    same = manifold(real, real)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    apart = manifold(real, real + 1000)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    collapsed = real[:1] + 1e-6 * np.random.default_rng(6).normal(size=(60, 3))
    one = manifold(real, collapsed)
    assert one.precision == 1.0 and one.recall <= 1 / 60 and one.coverage < 0.3


def test_nearest__a_planted_copy_is_found() -> None:
    rng = np.random.default_rng(7)
    real, group = rng.normal(size=(40, 16)), np.arange(40) // 10
    made = rng.normal(size=(10, 16))
    made[4] = 3 * real[23]
    near = nearest(real, made, group)
    assert near.row_M[4] == 23 and near.cosine_M[4] == pytest.approx(1.0)
    assert near.copies == pytest.approx(0.1)
    # Real ones are compared with those of other groups alone.
    cosine = (real / np.linalg.norm(real, axis=1, keepdims=True)) @ (
        real[0] / np.linalg.norm(real[0])
    )
    assert near.real_N[0] == pytest.approx(cosine[10:].max())
    with pytest.raises(InputError, match="single slide"):
        nearest(real, made, np.zeros(40))


def test_fidelity__of_what_was_asked_and_of_shuffled_conditions() -> None:
    asked = np.random.default_rng(8).normal(size=(50, 32))
    said = fidelity(asked, 2 * asked)
    assert (said.cosine, said.retrieval, said.chance) == (pytest.approx(1.0), 1.0, 0.02)
    turned = fidelity(np.roll(asked, 1, axis=0), asked)
    assert turned.retrieval == 0.0 and abs(turned.cosine) < 0.1
    with pytest.raises(UsageError, match="conditions"):
        fidelity(asked[:3], asked)


def test_measures__refuse_what_is_not_finite_or_of_other_features() -> None:
    x = np.ones((5, 2))
    with pytest.raises(InputError, match="not finite"):
        frechet(x * np.nan, x)
    with pytest.raises(UsageError, match="cannot be compared"):
        frechet(x, np.ones((5, 3)))
