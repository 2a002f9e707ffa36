"""Cosine and top-k accuracy are PLISM's, without the faults of its reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cytofm_cli.errors import InputError
from cytofm_cli.evaluate.agreement import TIE, agreement, chance


def noise(n: int = 60, dim: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def brute(first: np.ndarray, second: np.ndarray, k: int) -> tuple[float, float, float]:
    """Return cosine, cosine of different places and top-k in float64, one row after the other."""
    both = np.concatenate([first, second]).astype(np.float64)
    length = np.linalg.norm(both, axis=1)
    both = np.array([row / size if size else row for row, size in zip(both, length, strict=True)])
    n = len(first)
    cosine = both[:n] @ both[n:].T
    hits = []
    for row in range(2 * n):
        near = both @ both[row]
        target = near[(row + n) % (2 * n)]
        others = [i for i in range(2 * n) if i != row]
        nearer = sum(near[i] > target + TIE for i in others)
        same = sum(abs(near[i] - target) <= TIE for i in others)
        hits.append(min(max((k - nearer) / same, 0), 1))
    apart = (cosine.sum() - np.trace(cosine)) / (n * (n - 1))
    return float(np.trace(cosine) / n), float(apart), float(np.mean(hits))


def test_agreement__has_the_cosine_of_plism() -> None:
    first = np.array([[0, 1], [1, 0], [1, 1], [1, 1]], np.float32)
    second = np.array([[0, 2], [2, 0], [-1, -1], [0, 1]], np.float32)
    assert agreement(first, second).cosine == pytest.approx(0.426776695, abs=1e-7)


def test_agreement__has_the_top_k_of_plism() -> None:
    first = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)
    second = np.array([[0.1, 1.1], [0.2, 1.1], [0.3, 1.1], [0.4, 1.1]], np.float32)
    assert agreement(first, second, ks=(1, 7)).top == {1: 0.125, 7: 1.0}


def test_agreement__by_hand() -> None:
    # At 0 and 90 degrees, and at 20 and 100: each is nearest to itself.
    def at(*degrees: float) -> np.ndarray:
        angle = np.deg2rad(degrees)
        return np.stack([np.cos(angle), np.sin(angle)], 1)

    compared = agreement(at(0, 90), at(20, 100), ks=(1, 2))
    assert compared.cosine == pytest.approx((np.cos(np.pi / 9) + np.cos(np.pi / 18)) / 2)
    cosines = np.cos(np.deg2rad([100, 70]))
    assert compared.apart == pytest.approx(cosines.mean(), abs=1e-7)
    assert compared.top == {1: 1.0, 2: 1.0}
    assert compared.chance == {1: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}


def test_agreement__of_identical_slides_is_one() -> None:
    values = noise()  # plism-benchmark: 0.50, as each row is its own neighbour
    assert agreement(values, values).top == {1: 1.0, 3: 1.0, 5: 1.0, 10: 1.0}
    assert agreement(values, values).cosine == pytest.approx(1.0, abs=1e-6)


def test_agreement__of_nearly_identical_slides_is_one() -> None:
    values = noise()
    near = values * (1 + 0.01 * noise(seed=1))
    assert agreement(values, near).top[1] == 1.0


def test_agreement__does_not_overflow() -> None:
    values = noise(dim=384) * 30  # norm 587: the dot product is above half precision's 65 504
    other = values + noise(dim=384, seed=1) * 3
    plain = agreement(values, other)
    assert plain.top[1] == 1.0
    for scale in (1e-30, 1e30):
        scaled = agreement(values * np.float32(scale), other * np.float32(scale))
        assert scaled.top == plain.top
        assert scaled.cosine == pytest.approx(plain.cosine, abs=1e-6)


def test_agreement__takes_half_precision() -> None:
    values = (noise(dim=384) * 30).astype(np.float16)
    assert agreement(values, values).top[1] == 1.0


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_agreement__of_any_chunks_is_the_same(rows: int) -> None:
    first, second = noise(), noise() + 2 * noise(seed=1)
    whole = agreement(first, second)
    assert 0.1 < whole.top[1] < 0.9
    assert agreement(first, second, rows=rows) == whole


def test_agreement__of_collapsed_features_is_chance() -> None:
    same = np.ones((40, 8), np.float32)
    compared = agreement(same, same)
    assert compared.cosine == pytest.approx(1.0)
    assert compared.apart == pytest.approx(1.0)
    assert compared.top == {k: pytest.approx(k / 79) for k in (1, 3, 5, 10)}
    assert compared.collapsed

    nearly = agreement(1 + 1e-3 * noise(200), 1 + 1e-3 * noise(200, seed=1))
    assert nearly.cosine > 0.999
    assert nearly.top[10] < 3 * nearly.chance[10]
    assert nearly.collapsed


def test_agreement__of_useful_features_is_not_collapse() -> None:
    values = noise()
    assert not agreement(values, values + 0.1 * noise(seed=1)).collapsed
    assert not agreement(values, noise(seed=1)).collapsed  # they move: no collapse either


def test_chance__is_at_most_one() -> None:
    assert chance(10, 2) == 1.0
    assert chance(10, 8139) == pytest.approx(10 / 16277)


whole_numbers = st.integers(-3, 3).map(float)


@given(
    pair=st.integers(2, 9).flatmap(
        lambda n: st.tuples(*[arrays(np.float32, (n, 3), elements=whole_numbers)] * 2)
    ),
    k=st.integers(1, 12),
    rows=st.integers(1, 20),
)
def test_agreement__equals_a_plain_computation_in_double_precision(
    pair: tuple[np.ndarray, np.ndarray], k: int, rows: int
) -> None:
    compared = agreement(*pair, ks=(k,), rows=rows)
    expected = brute(*pair, k)
    assert (compared.cosine, compared.apart, compared.top[k]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (noise(5), noise(6), "not of the same places"),
        (noise(5, 8), noise(5, 9), "not of the same places"),
        (noise(1), noise(1), "1 place"),
        (noise(5), np.full((5, 32), np.nan, np.float32), "5 of 5 places"),
        (np.full((5, 32), np.inf, np.float32), noise(5), "5 of 5 places"),
    ],
)
def test_agreement__refuses_what_cannot_be_compared(
    first: np.ndarray, second: np.ndarray, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        agreement(first, second)
