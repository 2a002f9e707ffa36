"""Top-h attention of short rows on the CPU, where nothing is saved for backward.

With few tokens the maps are small: scores, selection and softmax on whole (N, N) maps take a third
of the time of picking h keys out of each row. What needs more care is left to `cpu.forward`.

Shapes: G = batch * heads, N tokens, h kept keys, d channels a head, R buckets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cytofm_kernels import cpu
from cytofm_kernels.cpu_dense import Problem

SHORT = 64  # tokens up to which whole maps are faster (measured, see bench)


def forward(problem: Problem) -> Tensor | None:
    """Compute the output of every head, (G, N, d), or None where this is not the way.

    That is: long rows, masked keys, ties to be broken, tables that differ by head, scores that
    are not finite.
    """
    n = problem.q.shape[1]
    tables = [t for t in (problem.table_q, problem.table_k, problem.table_v) if t is not None]
    if n > SHORT or problem.mask is not None or problem.ties != "all":
        return None
    if any(table.shape[0] != 1 for table in tables):
        return None
    s = _scores(problem)
    if not math.isfinite(s.sum().item()):
        return None
    if problem.h < n:
        s.masked_fill_(s < _threshold(s, problem.h), -math.inf)
    p = torch.softmax(s * problem.scale, dim=-1)
    out = torch.bmm(p, problem.v)
    if problem.table_v is not None:
        index = problem.buckets(slice(None)).expand_as(p)
        sums = p.new_zeros(*p.shape[:2], problem.table_v.shape[1]).scatter_add_(-1, index, p)
        out += _by_row(sums, problem.table_v)
    return out


def _threshold(s: Tensor, h: int) -> Tensor:
    """Return the h-th largest score of each row, (G, N, 1)."""
    if cpu.np is None:
        return s.topk(h, dim=-1).values[..., -1:]
    ranked = cpu.np.sort(s.numpy(), axis=-1)  # with vector instructions, unlike torch's
    return torch.from_numpy(ranked[..., s.shape[-1] - h, None])


def _scores(problem: Problem) -> Tensor:
    """Compute unscaled scores of eq. 7, (G, N, N)."""
    q, k = problem.q, problem.k
    n_heads, n, _ = q.shape
    s = torch.bmm(q, k.mT)
    if problem.table_k is None and problem.table_q is None:
        return s
    bucket = problem.buckets(slice(None))
    for x, table, row in (
        (q, problem.table_k, torch.arange(n)[:, None]),
        (k, problem.table_q, torch.arange(n)[None, :]),
    ):
        if table is not None:
            # The term of pair (i, j) lies in the row of its query or key, at their bucket.
            at = (row * table.shape[-1] + bucket).flatten()
            terms = _by_row(x, table).reshape(n_heads, -1)
            s += terms.index_select(1, at).view(s.shape)
    return s


def _by_row(x: Tensor, table: Tensor) -> Tensor:
    """Multiply all rows at once: torch would copy the table for every head."""
    return (x.flatten(0, 1) @ table[0]).view(*x.shape[:2], -1)
