"""iRPE's buckets: golden values of the paper's code, and what a bucket must mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_kernels import product_buckets, product_n_buckets
from cytofm_kernels.relpos import axis_bucket


@pytest.mark.parametrize(
    ("ratio", "golden"),
    [
        (1.9, [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (2.0, [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4]),
    ],
)
def test_axis_bucket__golden_values_of_the_paper_code(ratio, golden):
    assert [axis_bucket(x, ratio) for x in range(12)] == golden
    assert [axis_bucket(-x, ratio) for x in range(12)] == [-b for b in golden]


def test_product_buckets__vit_has_fifty_and_mirrors():
    bucket = product_buckets((14, 14), 1)
    assert bucket.dtype == torch.uint8
    assert bucket.shape == (197, 197)
    assert product_n_buckets(1) == 50
    assert bucket.unique().tolist() == list(range(50))
    assert (bucket[0] == 49).all()
    assert (bucket[:, 0] == 49).all()
    grid = bucket[1:, 1:].int()
    assert torch.equal(grid.T, 48 - grid)  # the swapped pair has the opposite offset


def test_product_buckets__worked_by_hand():
    bucket = product_buckets((1, 3), 0)  # offsets along columns only; centre 3 * 7 + 3
    assert bucket.tolist() == [[24, 23, 22], [25, 24, 23], [26, 25, 24]]
    bucket = product_buckets((2, 3), 0)
    # patch 0 is (0, 0), patch 5 is (1, 2): the offset is (-1, -2), so (-1 + 3) * 7 + (-2 + 3)
    assert int(bucket[0, 5]) == 15
    assert int(bucket[5, 0]) == (1 + 3) * 7 + (2 + 3)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), n_prefix=st.integers(0, 9))
def test_product_buckets__equal_those_computed_pair_by_pair(height, width, n_prefix):
    bucket = product_buckets((height, width), n_prefix)
    n_tokens = n_prefix + height * width
    assert bucket.shape == (n_tokens, n_tokens)
    for i in range(n_tokens):
        for j in range(n_tokens):
            if min(i, j) < n_prefix:
                assert int(bucket[i, j]) == product_n_buckets(n_prefix) - 1
                continue
            (y_i, x_i), (y_j, x_j) = (divmod(t - n_prefix, width) for t in (i, j))
            assert (
                int(bucket[i, j]) == (axis_bucket(y_i - y_j) + 3) * 7 + axis_bucket(x_i - x_j) + 3
            )


def test_product_buckets__wide_tables_need_more_than_a_byte():
    bucket = product_buckets((14, 14), 1, ratio=4.0)  # 17 x 17 buckets and the prefix's
    assert bucket.dtype == torch.int32
    assert int(bucket.max()) == product_n_buckets(1, 4.0) - 1 == 289
