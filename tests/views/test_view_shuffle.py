"""Orders: permutations of any length whose first part can be had alone, on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.units import Box
from cytofm_cli.views import shuffle
from cytofm_cli.views.draws import sample_keys


def order(n, key, length):
    return shuffle.deal(np.arange(n, dtype=np.int32), key, length)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63), st.floats(0, 1))
def test_order__is_a_permutation_and_starts_as_it_does_when_read_whole(n, seed, share):
    key = sample_keys(seed, [0])
    whole = order(n, key, n)
    assert np.array_equal(np.sort(whole), np.arange(n))
    length = max(1, int(share * n))
    assert np.array_equal(order(n, key, length), whole[:length])


def test_order__by_hand():
    """n = 19 is m = 18 and one that is left; 18 = 0b10010 keeps its four highest bits."""
    key = sample_keys(4, [0])
    table = shuffle._table(18)
    a, b, c = (
        int(u * size)
        for u, size in zip(shuffle.draws.uniform(key, 3)[0], (18, 19, 18), strict=True)
    )
    expected = [int(table[(k + a) % 18]) for k in range(18)] + [18]
    place = int(table[c])
    expected[place], expected[18] = expected[18], expected[place]
    assert order(19, key, 19).tolist() == [(number + b) % 19 for number in expected]


def test_orders__are_the_order_of_each():
    counts = [1, 2, 15, 16, 17, 19, 250, 511, 777, 1000]
    keys = sample_keys(1, np.arange(len(counts)))
    together = shuffle.orders(torch.tensor(counts), keys, 1000)
    for row, n in enumerate(counts):
        alone = order(n, keys[row : row + 1], n)
        assert together[row, :n].tolist() == alone.tolist()


@pytest.mark.parametrize("n", [4096, 4351, 4100])
def test_order__of_all_keys_is_uniform(n):
    """Every position gets every number equally often: chi² of 16 × 16 cells of both."""
    counts = np.zeros((16, 16))
    for seed in range(200):
        numbers = order(n, sample_keys(seed, [0]), n)
        np.add.at(counts, (np.arange(n) * 16 // n, numbers * 16 // n), 1)
    expected = np.outer(counts.sum(1), counts.sum(0)) / counts.sum()
    # 225 degrees of freedom; cells within one permutation are less scattered than free ones.
    assert ((counts - expected) ** 2 / expected).sum() < 225 + 4 * np.sqrt(450)


def test_order__neighbours_go_to_unrelated_places():
    numbers = order(70_000, sample_keys(2, [0]), 70_000)
    position = np.arange(len(numbers))
    four_sigma = 4 / np.sqrt(len(numbers))
    assert abs(np.corrcoef(numbers, position)[0, 1]) < four_sigma
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < four_sigma
    assert (np.abs(np.diff(numbers)) == 1).mean() < 1e-4


def test_deal_box__of_an_image_without_outside_is_the_image():
    word = torch.arange(30, dtype=torch.int32).view(5, 6)
    nothing = torch.zeros(5, 6, dtype=torch.bool)
    dealt = shuffle.deal_box(word, nothing, sample_keys(0, [0]), Box(0, 0, 6, 5))
    assert torch.equal(dealt, word)


def test_deal_box__leaves_its_input_as_it_was():
    word = torch.arange(900, dtype=torch.int32).view(30, 30)
    outside = torch.ones(30, 30, dtype=torch.bool)
    for box in (Box(0, 0, 30, 30), Box(0, 3, 30, 9), Box(4, 5, 6, 7)):
        dealt = shuffle.deal_box(word, outside, sample_keys(0, [0]), box)
        assert torch.equal(word, torch.arange(900, dtype=torch.int32).view(30, 30))
        assert (dealt != word[box.y : box.y + box.h, box.x : box.x + box.w]).float().mean() > 0.9
