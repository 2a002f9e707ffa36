"""Top-h attention: the equations, their gradient, ties, and agreement with the kernels."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.encoders import top_h
from cytofm_cli.encoders.irpe import IrpeConfig, TokenGrid, buckets
from cytofm_kernels import RelPos, last_backend, top_h_attention

CPU = torch.device("cpu")


def _random_case(grid, *, heads=2, d=32, dtype=torch.float64, seed=0, shared=True):
    generator = torch.Generator().manual_seed(seed)
    n = grid.n_tokens

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    qkv = [draw(2, heads, n, d) for _ in range(3)]
    h_t = 1 if shared else heads
    tables = {
        "table_q": draw(h_t, d, 50),
        "table_k": draw(h_t, d, 50),
        "table_v": draw(h_t, 50, d),
    }
    bucket_NN = buckets(IrpeConfig(), grid, CPU)
    return qkv, tables, bucket_NN


def test_attend__worked_by_hand():
    # one query with scores 3, 1, 2 (d = 1): h = 2 keeps the first and the third
    q = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    k = torch.tensor([[[[3.0], [1.0], [2.0]]]])
    v = torch.tensor([[[[10.0], [100.0], [20.0]]]])
    out = top_h.attend(q, k, v, 2)
    weight = math.exp(3) / (math.exp(3) + math.exp(2))
    assert float(out[0, 0, 0, 0]) == pytest.approx(10 * weight + 20 * (1 - weight), rel=1e-6)
    # the other queries score 0 everywhere: all three are kept (eq. 5)
    assert float(out[0, 0, 1, 0]) == pytest.approx(130 / 3, rel=1e-6)


def test_attend__pair_by_pair_with_relative_positions():
    grid = TokenGrid((2, 3), 1)
    (q, k, v), tables, bucket = _random_case(grid, heads=1, d=4)
    h, n = 3, grid.n_tokens
    out = top_h.attend(q, k, v, h, top_h.RelativeTerms(bucket_NN=bucket, **tables))
    r_q, r_k, r_v = (tables[f"table_{x}"][0] for x in "qkv")
    for b in range(2):
        for i in range(n):
            p = []
            for j in range(n):
                at = int(bucket[i, j])
                r = q[b, 0, i] @ r_k[:, at] + k[b, 0, j] @ r_q[:, at]
                p.append((q[b, 0, i] @ k[b, 0, j] + r) / 2)
            p = torch.stack(p)
            kept = p >= p.sort(descending=True).values[h - 1]
            a = torch.where(kept, p.exp(), 0.0)
            a = a / a.sum()
            rows = torch.stack([v[b, 0, j] + r_v[int(bucket[i, j])] for j in range(n)])
            torch.testing.assert_close(out[b, 0, i], a @ rows)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    n_prefix=st.integers(0, 3),
    h=st.integers(1, 30),
    shared=st.booleans(),
)
def test_attend__one_hot_path_equals_gather_path_with_gradients(height, width, n_prefix, h, shared):
    grid = TokenGrid((height, width), n_prefix)
    (q, k, v), tables, bucket = _random_case(grid, d=8, shared=shared)
    leaves = [q, k, v, *tables.values()]
    terms = top_h.RelativeTerms(bucket_NN=bucket, **tables)
    weight = torch.randn(q.shape, dtype=torch.float64)
    results = []
    for path in ("gather", "one_hot"):
        out = top_h.attend(q, k, v, h, terms, path=path)
        results.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("ties", ["all", "first"])
@pytest.mark.parametrize(("grid", "h"), [(TokenGrid((5, 7), 2), 6), (TokenGrid((3, 3), 1), 99)])
def test_attend__kernels_give_the_same_with_gradients(relative, ties, grid, h):
    (q, k, v), tables, bucket = _random_case(grid, dtype=torch.float32, d=32)
    leaves = [q, k, v, *(tables.values() if relative else ())]
    weight = torch.randn(q.shape)
    terms = top_h.RelativeTerms(bucket_NN=bucket, **tables) if relative else None
    rel = RelPos(bucket=bucket, **tables) if relative else None
    one = top_h.attend(q, k, v, h, terms, ties=ties)
    other = top_h_attention(q, k, v, h, rel=rel, ties=ties)
    assert last_backend() == "cpu"
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for g1, g2 in zip(
        torch.autograd.grad((one * weight).sum(), leaves),
        torch.autograd.grad((other * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(g1, g2, rtol=1e-4, atol=1e-4)


def test_attend__gradient_is_zero_outside_the_mask():
    (q, k, v), _, _ = _random_case(TokenGrid((4, 5), 0), heads=1, d=8)
    h = 3
    kept = top_h.keep(top_h.scores(q, k, None), h)
    p = top_h.scores(q, k, None).detach().requires_grad_()
    a = torch.softmax(p.masked_fill(~top_h.keep(p, h), -math.inf), -1)
    (a @ v.detach()).pow(2).sum().backward()
    assert not p.grad[~kept].any()
    assert p.grad[kept].abs().min() > 0
    # and through the operator: a key that no query keeps gets no gradient at all
    unused = ~kept.any(-2)
    assert unused.any()
    top_h.attend(q, k, v, h).pow(2).sum().backward()
    assert not k.grad[unused].any()
    assert not v.grad[unused].any()
    assert k.grad[~unused].abs().sum() > 0


def test_keep__ties_are_all_kept_or_the_first_ones():
    p = torch.tensor([[[[2.0, 1.0, 2.0, 1.0, 1.0, 0.0]]]])
    assert top_h.keep(p, 3).flatten().tolist() == [True, True, True, True, True, False]
    assert top_h.keep(p, 3, "first").flatten().tolist() == [True, True, True, False, False, False]
    blank = torch.zeros(1, 1, 4, 4)
    assert top_h.keep(blank, 1).all()
    assert top_h.keep(blank, 4, "first").all()


def test_keep__under_autocast_selection_stays_in_float32():
    # scores rounded to bfloat16 would tie in a tenth of the rows; exact ones never do here
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, 3, 197, 64, generator=generator).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a = top_h.attention_map(q, k, 16)
        rounded = top_h.keep((q @ k.mT).float(), 16).sum(-1)
    assert a.dtype == torch.float32
    assert ((a > 0).sum(-1) == 16).all()
    assert (rounded > 16).float().mean() > 0.05


def test_attention_map__rows_sum_to_one_and_nan_shows():
    (q, k, _), tables, bucket = _random_case(TokenGrid((4, 4), 1), dtype=torch.float32)
    terms = top_h.RelativeTerms(bucket_NN=bucket, **tables)
    a = top_h.attention_map(q, k, 5, terms)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a[..., 0]))
    assert ((a > 0).sum(-1) == 5).all()
    with torch.no_grad():
        q[0, 0, 3, 0] = math.nan
    assert top_h.attention_map(q, k, 5)[0, 0, 3].isnan().all()


def test_scores__bias_is_added_after_scaling():
    (q, k, _), _, bucket = _random_case(TokenGrid((2, 2), 1), heads=2, d=8)
    bias = torch.arange(100, dtype=torch.float64).view(2, 50)
    with_bias = top_h.scores(q, k, top_h.RelativeTerms(bucket_NN=bucket, bias=bias))
    plain = top_h.scores(q, k, None)
    difference = (with_bias - plain).detach()
    assert float(difference[0, 1, 2, 4]) == pytest.approx(50 + int(bucket[2, 4]))
