"""The choice of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.errors import UsageError
from cytofm_cli.tiles.select import choose, slide_seed

SHARE = np.array([0.1, 0.9, 0.5, 0.9, 0.5, 0.9], np.float32)
FOCUS = np.array([0.9, 0.1, 0.2, 0.3, 0.2, 0.1], np.float32)


def test_choose__densest_breaks_ties_by_focus_then_by_place():
    assert choose(SHARE, FOCUS, 1, "densest", 0).tolist() == [3]
    assert choose(SHARE, FOCUS, 2, "densest", 0).tolist() == [1, 3]
    assert choose(SHARE, FOCUS, 4, "densest", 0).tolist() == [1, 2, 3, 5]
    assert choose(SHARE, None, 2, "densest", 0).tolist() == [1, 3]


def test_choose__random_is_the_same_everywhere():
    # Frozen: another numpy or platform must draw the same tiles.
    assert choose(np.ones(100, np.float32), None, 5, "random", 7, "slide_01").tolist() == [
        4,
        35,
        36,
        60,
        68,
    ]
    assert slide_seed(7, "slide_01") == 0xEBC13A306DE2C3C0E6FA34A63C3B4CD9


def test_choose__random_differs_between_slides_and_seeds():
    share = np.ones(1000, np.float32)
    draws = {
        tuple(choose(share, None, 20, "random", seed, slide)) for seed in (0, 1) for slide in "ab"
    }
    assert len(draws) == 4


def test_choose__random_takes_every_tile_about_as_often():
    share = np.ones(20, np.float32)
    counts = np.zeros(20)
    for seed in range(2000):
        counts[choose(share, None, 5, "random", seed)] += 1
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


@given(n=st.integers(0, 60), small=st.integers(1, 70), more=st.integers(0, 70), seed=st.integers())
def test_choose__a_larger_limit_keeps_what_a_smaller_one_kept(n, small, more, seed):
    share = np.random.default_rng(n).random(n).astype(np.float32)
    for how in ("random", "densest"):
        few = choose(share, share, small, how, seed, "s")
        many = choose(share, share, small + more, how, seed, "s")
        assert few.dtype == np.int64
        assert len(few) == min(n, small)
        assert (np.diff(few) > 0).all()
        assert set(few) <= set(many)
        assert choose(share, share, None, how, seed, "s").tolist() == list(range(n))


def test_choose__all_needs_no_limit():
    assert choose(SHARE, FOCUS, None, "all", 0).tolist() == list(range(6))
    assert choose(SHARE, FOCUS, 6, "all", 0).tolist() == list(range(6))
    with pytest.raises(UsageError, match="nothing says which"):
        choose(SHARE, FOCUS, 5, "all", 0)


def test_choose__refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match="sharpest"):
        choose(SHARE, FOCUS, 2, "sharpest", 0)
    with pytest.raises(UsageError, match="cannot keep 0"):
        choose(SHARE, FOCUS, 0, "random", 0)
