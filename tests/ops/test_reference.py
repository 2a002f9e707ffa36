"""The plain-torch reference: the equations pair by pair, ties, autocast; it judges the kernels."""

import math

import pytest
import torch

from cytofm_kernels import (
    RelPos,
    last_backend,
    product_buckets,
    top_h_attention,
    top_h_attention_reference,
)
from cytofm_kernels.reference import select


def _random_case(grid_hw, n_prefix, *, heads=2, d=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    n = n_prefix + math.prod(grid_hw)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    qkv = [draw(2, heads, n, d) for _ in range(3)]
    tables = {"table_q": draw(1, d, 50), "table_k": draw(1, d, 50), "table_v": draw(1, 50, d)}
    return qkv, RelPos(bucket=product_buckets(grid_hw, n_prefix), **tables)


def test_reference__worked_by_hand():
    # one query with scores 3, 1, 2 (d = 1): h = 2 keeps the first and the third
    q = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    k = torch.tensor([[[[3.0], [1.0], [2.0]]]])
    v = torch.tensor([[[[10.0], [100.0], [20.0]]]])
    out = top_h_attention_reference(q, k, v, 2).out_BHND
    weight = math.exp(3) / (math.exp(3) + math.exp(2))
    assert float(out[0, 0, 0, 0]) == pytest.approx(10 * weight + 20 * (1 - weight), rel=1e-6)
    # the other queries score 0 everywhere: all three are kept (eq. 5)
    assert float(out[0, 0, 1, 0]) == pytest.approx(130 / 3, rel=1e-6)


def test_reference__pair_by_pair_with_relative_positions():
    (q, k, v), rel = _random_case((2, 3), 1, heads=1, d=4)
    h, n = 3, 7
    out = top_h_attention_reference(q, k, v, h, rel=rel).out_BHND
    r_q, r_k, r_v = rel.table_q[0], rel.table_k[0], rel.table_v[0]
    for b in range(2):
        for i in range(n):
            p = []
            for j in range(n):
                at = int(rel.bucket[i, j])
                r = q[b, 0, i] @ r_k[:, at] + k[b, 0, j] @ r_q[:, at]
                p.append((q[b, 0, i] @ k[b, 0, j] + r) / 2)
            p = torch.stack(p)
            kept = p >= p.sort(descending=True).values[h - 1]
            a = torch.where(kept, p.exp(), 0.0)
            a = a / a.sum()
            rows = torch.stack([v[b, 0, j] + r_v[int(rel.bucket[i, j])] for j in range(n)])
            torch.testing.assert_close(out[b, 0, i], a @ rows)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("ties", ["all", "first"])
@pytest.mark.parametrize(("grid_hw", "n_prefix", "h"), [((5, 7), 2, 6), ((3, 3), 1, 99)])
def test_reference__kernels_give_the_same_with_gradients(relative, ties, grid_hw, n_prefix, h):
    (q, k, v), rel = _random_case(grid_hw, n_prefix, dtype=torch.float32)
    leaves = [q, k, v, *((rel.table_q, rel.table_k, rel.table_v) if relative else ())]
    rel = rel if relative else None
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    plain = top_h_attention_reference(q, k, v, h, rel=rel, ties=ties).out_BHND
    fused = top_h_attention(q, k, v, h, rel=rel, ties=ties)
    assert last_backend() == "cpu"
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    for got, want in zip(
        torch.autograd.grad((fused * weight).sum(), leaves),
        torch.autograd.grad((plain * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_select__ties_are_all_kept_or_the_first_ones():
    p = torch.tensor([[[[2.0, 1.0, 2.0, 1.0, 1.0, 0.0]]]])
    assert select(p, 3).flatten().tolist() == [True, True, True, True, True, False]
    assert select(p, 3, "first").flatten().tolist() == [True, True, True, False, False, False]
    blank = torch.zeros(1, 1, 4, 4)
    assert select(blank, 1).all()
    assert select(blank, 4, "first").all()


def test_reference__under_autocast_selection_stays_in_float32():
    # scores rounded to bfloat16 would tie in a tenth of the rows; exact ones never do here
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, 3, 197, 64, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = top_h_attention_reference(q, k, k, 16)
        rounded = select((q @ k.mT).float(), 16).sum(-1)
    assert shown.attn_BHNN.dtype == torch.float32
    assert ((shown.attn_BHNN > 0).sum(-1) == 16).all()
    assert shown.out_BHND.dtype == torch.bfloat16
    assert (rounded > 16).float().mean() > 0.05


def test_reference__rows_sum_to_one_and_nan_shows():
    (q, k, v), rel = _random_case((4, 4), 1, dtype=torch.float32)
    a = top_h_attention_reference(q, k, v, 5, rel=rel).attn_BHNN
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert ((a > 0).sum(-1) == 5).all()
    with torch.no_grad():
        q[0, 0, 3, 0] = math.nan
    assert top_h_attention_reference(q, k, v, 5).attn_BHNN[0, 0, 3].isnan().all()
