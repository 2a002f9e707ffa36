"""Top-h attention on the CPU: chunks of rows that fit the cache, sparse products for long rows.

Per chunk: scores (eq. 7), exact top-h of each row in two levels, softmax over h numbers (eq. 6),
weighted sum of h value rows (eq. 9). Heads that hold a tie at their threshold (eq. 5 then keeps
more than h keys) are computed again by the dense formulas of `cpu_dense`.

Shapes: G = batch * heads, N tokens, h kept keys, d channels a head, R buckets, C rows of a chunk.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from cytofm_kernels import cpu_dense
from cytofm_kernels.cpu_dense import Gradients, Problem

np: Any
try:
    import numpy as np
except ImportError:  # torch runs without it; topk then serves
    np = None

CHUNK_SCORES = 2**18  # 1 MiB of float32: the share of a core's second-level cache
SPARSE_FROM = 400  # tokens from which sparse products beat dense ones (measured, see bench)
TWO_LEVEL_FROM = 300  # tokens from which searching group maxima first pays


class Forward(NamedTuple):
    """What forward hands to backward; `index_GNh` is -1 in heads that were computed densely."""

    out_GND: Tensor
    p_GNh: Tensor
    index_GNh: Tensor  # int32


def top_values(s_MN: Tensor, h: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the h largest of each row, in any order, exactly.

    Returns:
        values (M, h), indices (M, h) int64, and tied (M) bool: another key of the row equals
        the smallest of the values and is not -inf.
    """
    n_rows, n = s_MN.shape
    if h >= n:
        index = torch.arange(n).expand(s_MN.shape)
        return s_MN, index, torch.zeros(n_rows, dtype=torch.bool)
    quick = _indices_of_largest(s_MN, h)
    if quick is not None:
        return s_MN.gather(-1, quick), quick, torch.zeros(n_rows, dtype=torch.bool)
    values, index = s_MN.topk(h + 1, dim=-1)
    threshold, runner_up = values[:, -2], values[:, -1]
    tied = (threshold == runner_up) & (threshold != -math.inf)
    return values[:, :-1], index[:, :-1], tied


def _indices_of_largest(s_MN: Tensor, h: int) -> Tensor | None:
    """Find the indices (M, h) of each row's h largest, or None where ties or NaN spoil a row.

    Long rows are cut into strided groups first. The h groups of largest maximum, if they are
    set off from the others, hold h entries larger than anything outside of them.
    """
    n = s_MN.shape[-1]
    n_groups = 16 * max(1, round(math.sqrt(h * n) / 16))
    depth = n // n_groups
    if n < TWO_LEVEL_FROM or depth < 3 or n_groups <= 2 * h:
        return _exactly(s_MN, h)
    head = s_MN[:, : depth * n_groups].reshape(-1, depth, n_groups)
    group_Mh = _exactly(head.amax(1), h)
    if group_Mh is None:
        return None
    n_rest = n - depth * n_groups
    at = torch.empty(s_MN.shape[0], h * depth + n_rest, dtype=torch.int64)
    first = at[:, : h * depth].view(-1, depth, h)
    torch.add(group_Mh[:, None], torch.arange(depth)[:, None] * n_groups, out=first)
    at[:, h * depth :] = torch.arange(depth * n_groups, n)
    place = _exactly(s_MN.gather(-1, at), h)
    return None if place is None else at.gather(-1, place)


def _exactly(x_MN: Tensor, h: int) -> Tensor | None:
    """Return the ascending indices of the entries >= the h-th largest if every row has h of them.

    NumPy sorts floats with vector instructions, several times faster than torch's topk.
    """
    if np is None:
        return None
    n_rows, n = x_MN.shape
    t_M1 = np.sort(x_MN.numpy(), axis=-1)[:, n - h, None]
    flat = np.flatnonzero(x_MN.numpy() >= t_M1)
    if flat.size != n_rows * h:
        return None
    index_Mh = flat.reshape(n_rows, h) - np.arange(0, n_rows * n, n)[:, None]
    # Ascending: h entries of one row each, unless a first or last one lies in another row.
    if (index_Mh[:, 0] < 0).any() or (index_Mh[:, -1] >= n).any():
        return None
    return torch.from_numpy(index_Mh)


def forward(problem: Problem) -> Forward:
    """Compute output, kept weights and kept indices."""
    q, v = problem.q, problem.v
    n_heads, n, _ = q.shape
    h = min(problem.h, n)
    out = torch.empty_like(q)
    p = q.new_empty(n_heads, n, h)
    index = torch.empty(n_heads, n, h, dtype=torch.int32)
    tied = torch.zeros(n_heads, dtype=torch.bool)
    for heads, rows in _chunks(n_heads, n):
        s = problem.scores(heads, rows)
        values, at, ties = top_values(s.flatten(0, 1), h)
        p_c = _softmax(values, problem.scale).view(*s.shape[:2], h)
        at = at.view(*s.shape[:2], h)
        tied[heads] |= ties.view(s.shape[:2]).any(1)
        if n < SPARSE_FROM:
            # The score buffer becomes the sparse weights: one N x N map a head, in cache.
            torch.bmm(s.zero_().scatter_(-1, at, p_c), v[heads], out=out[heads, rows])
        else:
            out[heads, rows] = embedding_bag(
                at[0], v[heads][0], mode="sum", per_sample_weights=p_c[0]
            )
        term = problem.value_term(p_c, at, heads, rows)
        if term is not None:
            out[heads, rows] += term
        p[heads, rows], index[heads, rows] = p_c, at.int()
    for g in tied.nonzero().flatten().tolist():
        index[g], p[g] = -1, 0.0  # no weight: the fast backward adds nothing to the tables
        out[g] = cpu_dense.forward(problem, g)
    return Forward(out, p, index)


def backward(problem: Problem, saved: Forward, do_GND: Tensor) -> Gradients:
    """Compute every gradient from the kept pairs."""
    grads = Gradients.zeros(problem)
    dense = (saved.index_GNh[:, :1, 0] < 0).flatten()
    pass_back = _backward_dense_products if do_GND.shape[1] < SPARSE_FROM else _backward_sparse
    for heads, _ in _chunks(do_GND.shape[0], do_GND.shape[1], whole_rows=True):
        pass_back(problem, saved, do_GND, heads, grads)
    for g in dense.nonzero().flatten().tolist():
        cpu_dense.backward(problem, g, do_GND[g], grads)
    return grads


def _chunks(n_heads: int, n: int, whole_rows: bool = False) -> list[tuple[slice, slice]]:
    """Cut heads and rows so that a chunk's scores fit the cache."""
    budget = CHUNK_SCORES * torch.get_num_threads()
    per = max(1, budget // (n * n))
    if n < SPARSE_FROM or whole_rows:
        per = per if n < SPARSE_FROM else 1
        return [(slice(g, min(g + per, n_heads)), slice(0, n)) for g in range(0, n_heads, per)]
    rows = max(1, budget // n)
    return [
        (slice(g, g + 1), slice(i, min(i + rows, n)))
        for g in range(n_heads)
        for i in range(0, n, rows)
    ]


def _softmax(values_Mh: Tensor, scale: float) -> Tensor:
    """Take the softmax of the kept scores; a row without a valid key is all zeros."""
    if not torch.isneginf(values_Mh.amin()):
        return torch.softmax(values_Mh * scale, dim=-1)
    empty = (values_Mh == -math.inf).all(-1, keepdim=True)
    return torch.softmax(values_Mh.masked_fill(empty, 0.0) * scale, dim=-1).masked_fill(empty, 0.0)


def _backward_dense_products(
    problem: Problem, saved: Forward, do_GND: Tensor, heads: slice, grads: Gradients
) -> None:
    """Scatter the kept weights into N x N maps and use matrix products: best for short rows."""
    q, k, v, do = problem.q[heads], problem.k[heads], problem.v[heads], do_GND[heads]
    p, at = saved.p_GNh[heads], saved.index_GNh[heads].long().clamp_(min=0)
    dense = torch.bmm(do, v.mT)
    ds = problem.score_gradient(p, dense.gather(-1, at), at, do, heads)
    dense.zero_().scatter_(-1, at, p)
    torch.bmm(dense.mT, do, out=grads.dv[heads])
    dense.zero_().scatter_(-1, at, ds)
    torch.bmm(dense, k, out=grads.dq[heads])
    torch.bmm(dense.mT, q, out=grads.dk[heads])
    problem.add_table_gradients(grads, p, ds, at, do, heads)


def _backward_sparse(
    problem: Problem, saved: Forward, do_GND: Tensor, heads: slice, grads: Gradients
) -> None:
    """Walk the kept pairs by query for dQ, by key for dK and dV (a stable sort: repeatable)."""
    q, k, v, do = (x[heads][0] for x in (problem.q, problem.k, problem.v, do_GND))
    p_Nh, at_Nh = saved.p_GNh[heads][0], saved.index_GNh[heads][0].long().clamp_(min=0)
    n, h = at_Nh.shape
    v_of_pair = v.index_select(0, at_Nh.flatten()).view(n, h, -1)
    dp = torch.bmm(v_of_pair, do[:, :, None])[:, :, 0]
    ds = problem.score_gradient(p_Nh[None], dp[None], at_Nh[None], do[None], heads)
    grads.dq[heads] = embedding_bag(at_Nh, k, mode="sum", per_sample_weights=ds[0])
    order = _stable_order(at_Nh.flatten(), n)
    query = order // h
    count = torch.bincount(at_Nh.flatten(), minlength=n)
    start = count.cumsum(0) - count
    for grad, rows, weight in ((grads.dk, q, ds[0]), (grads.dv, do, p_Nh)):
        weights = weight.flatten().index_select(0, order)
        grad[heads] = embedding_bag(query, rows, start, mode="sum", per_sample_weights=weights)
    problem.add_table_gradients(grads, p_Nh[None], ds, at_Nh[None], do[None], heads)


def _stable_order(key_P: Tensor, n: int) -> Tensor:
    """Sort pairs by key, equals in the order of their queries."""
    if np is None or n > np.iinfo(np.int16).max:
        return key_P.argsort(stable=True)
    return torch.from_numpy(np.argsort(key_P.short().numpy(), kind="stable"))  # a radix sort
