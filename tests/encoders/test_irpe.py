"""iRPE: golden values of the paper's code, and what a bucket must mean."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.encoders.irpe import (
    IrpeConfig,
    RelativeTable,
    TokenGrid,
    buckets,
    n_buckets,
    piecewise_index,
    table_rows,
)
from cytofm_cli.errors import UsageError

CPU = torch.device("cpu")
METHODS = ("product", "cross", "euclidean", "quantised")


@pytest.mark.parametrize(
    ("ratio", "golden"),
    [
        (1.9, [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]),
        (2.0, [0, 1, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4]),
    ],
)
def test_piecewise_index__golden_values_of_the_paper_code(ratio, golden):
    assert [piecewise_index(x, ratio) for x in range(12)] == golden
    assert [piecewise_index(-x, ratio) for x in range(12)] == [-b for b in golden]


@pytest.mark.parametrize(
    ("method", "used", "rows"),
    [
        ("product", 50, (49,)),  # the paper calls these 50, 56 (27 + 27 + 2), 20 and 51
        ("cross", 27 * 27 + 1, (81, 81)),
        ("euclidean", 20, (81,)),
        ("quantised", 51, (133,)),
    ],
)
def test_buckets__used_on_14_by_14_with_class_token(method, used, rows):
    config = IrpeConfig(method=method)
    grid = TokenGrid((14, 14), 1)
    found = buckets(config, grid, CPU)
    assert len(found.unique()) == used
    assert int(found.max()) == n_buckets(config, grid) - 1
    assert table_rows(method, config.alpha) == rows


def test_buckets__product_worked_by_hand_on_two_by_three():
    found = buckets(IrpeConfig(), TokenGrid((2, 3), 0), CPU)
    # patch 0 is (0, 0), patch 5 is (1, 2): Δ = (-1, -2), so (-1 + 3) · 7 + (-2 + 3) = 15
    assert int(found[0, 5]) == 15
    assert int(found[5, 0]) == (1 + 3) * 7 + (2 + 3)
    assert int(found[0, 0]) == 24
    assert found.dtype == torch.uint8


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    n_prefix=st.integers(0, 9),
)
def test_buckets__equal_those_computed_pair_by_pair(method, height, width, n_prefix):
    config, grid = IrpeConfig(method=method), TokenGrid((height, width), n_prefix)
    found = buckets(config, grid, CPU)
    a, last = config.alpha, n_buckets(config, grid) - 1
    reach_x = piecewise_index(width - 1, a)
    reach_y = piecewise_index(height - 1, a)
    for i in range(grid.n_tokens):
        for j in range(grid.n_tokens):
            if min(i, j) < n_prefix:
                assert int(found[i, j]) == last
                continue
            (yi, xi), (yj, xj) = (divmod(t - n_prefix, width) for t in (i, j))
            dy, dx = yi - yj, xi - xj
            expected = {
                "product": (piecewise_index(dy, a) + 3) * 7 + piecewise_index(dx, a) + 3,
                "cross": (piecewise_index(dy, a) + reach_y) * (2 * reach_x + 1)
                + piecewise_index(dx, a)
                + reach_x,
                "euclidean": piecewise_index(round(math.hypot(dy, dx)), a),
                "quantised": piecewise_index(dy * dy + dx * dx, a),
            }[method]
            assert int(found[i, j]) == expected


def test_buckets__may_be_made_in_inference_mode_and_trained_with_later():
    config, grid = IrpeConfig(), TokenGrid((3, 4), 2)
    with torch.inference_mode():
        found = buckets(config, grid, CPU)
    table = torch.zeros(50, requires_grad=True)
    table.gather(0, found.long().flatten()).sum().backward()
    assert float(table.grad.sum()) == grid.n_tokens**2


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("n_prefix", [0, 1])
def test_table__cross_is_the_sum_of_a_row_and_a_column(transposed, n_prefix):
    config, grid = IrpeConfig(method="cross", share_heads=False), TokenGrid((3, 5), n_prefix)
    module = RelativeTable(config, 2, 4, n_prefix, transposed=transposed)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    table = module.table(grid)
    rows, columns = module.rp_rows.lookup_table_weight, module.rp_cols.lookup_table_weight
    if transposed:
        table, rows, columns = table.mT, rows.mT, columns.mT
    assert table.shape == (2, n_buckets(config, grid), 4)
    found = buckets(config, grid, CPU)
    # query at (2, 1), key at (0, 4): Δ = (2, -3); the middle of the 81 rows is 40
    i, j = n_prefix + 2 * 5 + 1, n_prefix + 4
    torch.testing.assert_close(table[:, int(found[i, j])], rows[:, 42] + columns[:, 37])
    if n_prefix:
        torch.testing.assert_close(table[:, int(found[0, j])], rows[:, 81] + columns[:, 81])


def test_table__starts_at_zero_under_the_names_of_the_paper_code():
    module = RelativeTable(IrpeConfig(), 3, 64, 1, transposed=True)
    assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == {
        "lookup_table_weight": (1, 64, 50)
    }
    assert not module.lookup_table_weight.any()


@pytest.mark.parametrize(
    "settings_",
    [
        {"method": "polar"},
        {"mode": "both"},
        {"on": ""},
        {"on": "qx"},
        {"mode": "bias", "on": "qkv"},
        {"ratio": 0.5},
    ],
)
def test_config__impossible_settings_are_usage_errors(settings_):
    with pytest.raises(UsageError):
        IrpeConfig(**settings_)
