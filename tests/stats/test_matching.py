"""Points matched one to one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.stats.matching import match_points

places = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda xy: (xy[0] / 2, xy[1] / 2)),
    max_size=4,
).map(lambda xy: np.array(xy, np.float64).reshape(-1, 2))


def best(first: np.ndarray, second: np.ndarray, distance: float) -> tuple[int, float]:
    """Try all pairings: the largest number of pairs, and their least total distance."""
    if len(first) > len(second):
        first, second = second, first
    away = np.linalg.norm(first[:, None] - second[None], axis=2)
    results = []
    for partners in itertools.permutations(range(len(second)), len(first)):
        near = [away[i, j] for i, j in enumerate(partners) if away[i, j] <= distance]
        results.append((-len(near), sum(near)))
    count, total = min(results)
    return -count, total


def test_match__of_two_detections_on_one_nucleus_one_is_wrong() -> None:
    nuclei = np.array([[10.0, 10.0], [50.0, 10.0]])
    found = np.array([[12.0, 10.0], [10.0, 11.0], [80.0, 80.0]])
    assert match_points(nuclei, found, 5.0).tolist() == [[0, 1]]


def test_match__more_pairs_come_before_nearer_ones() -> None:
    # The nearest pair (1, 0) alone would leave 0 and 1 without a partner.
    first, second = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[2.5, 0.0], [6.0, 0.0]])
    assert match_points(first, second, 3.0).tolist() == [[0, 0], [1, 1]]


def test_match__the_distance_is_included_and_nothing_beyond_it() -> None:
    first, second = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert match_points(first, second, 5.0).tolist() == [[0, 0]]
    assert match_points(first, second, 4.999).tolist() == []


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_match__nothing_matches_nothing(shape: tuple[int, int]) -> None:
    pairs = match_points(np.zeros((shape[0], 2)), np.zeros((shape[1], 2)), 1.0)
    assert pairs.shape == (0, 2)
    assert pairs.dtype == np.int64


@given(places, places, st.sampled_from([0.5, 1.0, 2.5, 20.0]))
def test_match__is_the_best_of_all_pairings(
    first: np.ndarray, second: np.ndarray, distance: float
) -> None:
    pairs = match_points(first, second, distance)
    for side in (0, 1):
        assert len(set(pairs[:, side].tolist())) == len(pairs)
    away = np.linalg.norm(first[pairs[:, 0]] - second[pairs[:, 1]], axis=1)
    assert (away <= distance).all()
    count, total = best(first, second, distance)
    assert len(pairs) == count
    assert away.sum() == pytest.approx(total)
