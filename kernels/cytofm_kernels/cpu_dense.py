"""The CPU path's problem, its gradients, and the dense formulas for heads with tied thresholds.

Shapes: G = batch * heads, N tokens, h kept keys, d channels a head, R buckets, C rows of a chunk.
Backward, with D_i = sum_j A_ij dA_ij and dA_ij = dO_i . (v_j + r^V[b_ij]):

    dS_ij = A_ij (dA_ij - D_i) * scale
    dQ = dS K + dQR r^K',  dQR[i, b] = sum of dS_ij over bucket b;  dr^K = Q' dQR
    dK = dS' Q + dKR r^Q', dKR[j, b] likewise over i;               dr^Q = K' dKR
    dV = A' dO,            dr^V = (A summed by bucket)' dO
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cytofm_kernels.reference import Ties, select, softmax_kept


@dataclass(frozen=True)
class Problem:
    """One call with batch and heads folded: q, k, v (G, N, d); tables (G or 1, ...) in their dtype.

    `group` counts heads, to find the table of a folded head; `mask` is (G, N) bool or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    h: int
    scale: float
    ties: Ties
    n_heads: int
    mask: Tensor | None = None
    bucket: Tensor | None = None
    table_q: Tensor | None = None
    table_k: Tensor | None = None
    table_v: Tensor | None = None

    def table(self, name: str, heads: slice) -> Tensor | None:
        """Return a table for these folded heads, (G or 1, ...), or None."""
        table: Tensor | None = getattr(self, name)
        if table is None or table.shape[0] == 1:
            return table
        return table[self._head_ids(heads)]

    def _head_ids(self, heads: slice) -> Tensor:
        return torch.arange(*heads.indices(self.q.shape[0])) % self.n_heads

    def scores(self, heads: slice, rows: slice) -> Tensor:
        """Compute unscaled scores of eq. 7 for a chunk: (G, C, N)."""
        q, k = self.q[heads, rows], self.k[heads]
        s = torch.bmm(q, k.mT)
        r_k, r_q = self.table("table_k", heads), self.table("table_q", heads)
        if r_k is not None or r_q is not None:
            index = self.buckets(rows).expand(s.shape)
            if r_k is not None:
                s += torch.matmul(q, r_k).gather(-1, index)
            if r_q is not None:
                s += torch.matmul(k, r_q).mT.gather(-2, index)
        if self.mask is not None:
            s.masked_fill_(~self.mask[heads, None], -math.inf)
        return s

    def buckets(self, rows: slice) -> Tensor:
        """Return the bucket of each (row, key) as int64 (C, N)."""
        assert self.bucket is not None  # callers hold a table
        return self.bucket[rows].long()

    def pair_buckets(self, at: Tensor, rows: slice) -> Tensor:
        """Return the bucket of each kept pair: (G, C, h) int64."""
        assert self.bucket is not None
        return self.bucket[rows].expand(at.shape[0], -1, -1).gather(-1, at).long()

    def value_term(self, p: Tensor, at: Tensor, heads: slice, rows: slice) -> Tensor | None:
        """Compute the r^V term of eq. 9, (G, C, d), or None without a table."""
        r_v = self.table("table_v", heads)
        if r_v is None:
            return None
        sums = p.new_zeros(*p.shape[:2], r_v.shape[1])
        return sums.scatter_add_(-1, self.pair_buckets(at, rows), p) @ r_v

    def score_gradient(self, p: Tensor, dp: Tensor, at: Tensor, do: Tensor, heads: slice) -> Tensor:
        """Compute dS of kept pairs from dP (whole rows): (G, N, h)."""
        r_v = self.table("table_v", heads)
        if r_v is not None:
            dp = dp + torch.matmul(do, r_v.mT).gather(-1, self.pair_buckets(at, slice(None)))
        return p * (dp - (p * dp).sum(-1, keepdim=True)) * self.scale

    def add_table_gradients(
        self, grads: Gradients, p: Tensor, ds: Tensor, at: Tensor, do: Tensor, heads: slice
    ) -> None:
        """Add what flows through the tables, from kept pairs of whole rows."""
        if self.bucket is None:
            return
        b = self.pair_buckets(at, slice(None))
        n = self.q.shape[1]
        if self.table_k is not None:
            r = self.table_k.shape[-1]
            d_qr = ds.new_zeros(*ds.shape[:2], r).scatter_add_(-1, b, ds)
            self._add_dot(grads, "k", d_qr, heads)
        if self.table_q is not None:
            r = self.table_q.shape[-1]
            d_kr = ds.new_zeros(ds.shape[0], n * r)
            d_kr.scatter_add_(-1, (at * r + b).flatten(1), ds.flatten(1))
            self._add_dot(grads, "q", d_kr.view(-1, n, r), heads)
        if self.table_v is not None:
            sums = p.new_zeros(*p.shape[:2], self.table_v.shape[1]).scatter_add_(-1, b, p)
            self._add_to_table(grads.dtable_v, sums.mT @ do, heads)

    def _add_dot(self, grads: Gradients, which: str, d_dot: Tensor, heads: slice) -> None:
        """Back-propagate `x @ table` where x is q (table_k) or k (table_q)."""
        table = self.table(f"table_{which}", heads)
        assert table is not None
        x, dx = (self.q, grads.dq) if which == "k" else (self.k, grads.dk)
        dtable = grads.dtable_k if which == "k" else grads.dtable_q
        dx[heads] += torch.matmul(d_dot, table.mT)
        self._add_to_table(dtable, x[heads].mT @ d_dot, heads)

    def _add_to_table(self, dtable: Tensor | None, by_head: Tensor, heads: slice) -> None:
        assert dtable is not None
        if dtable.shape[0] == 1:
            dtable += by_head.sum(0, keepdim=True)
        else:
            dtable.index_add_(0, self._head_ids(heads), by_head)


@dataclass(frozen=True)
class Gradients:
    """Gradients in the accumulation dtype, shaped like the problem's inputs."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dtable_q: Tensor | None
    dtable_k: Tensor | None
    dtable_v: Tensor | None

    @classmethod
    def zeros(cls, problem: Problem) -> Gradients:
        """Allocate; tables start at zero since heads add to them."""
        q = problem.q
        tables = (problem.table_q, problem.table_k, problem.table_v)
        blank = (torch.empty_like(q) for _ in range(3))
        return cls(*blank, *(None if t is None else torch.zeros_like(t) for t in tables))


def weights(problem: Problem, g: int) -> Tensor:
    """Compute the dense attention map of one folded head: (1, N, N)."""
    s = problem.scores(slice(g, g + 1), slice(None))
    return softmax_kept(s, select(s, problem.h, problem.ties), problem.scale)


def _every_key(problem: Problem) -> Tensor:
    n = problem.q.shape[1]
    return torch.arange(n).expand(1, n, n)


def forward(problem: Problem, g: int) -> Tensor:
    """Compute the output of one folded head densely: (N, d)."""
    heads = slice(g, g + 1)
    a = weights(problem, g)
    out = torch.bmm(a, problem.v[heads])
    term = problem.value_term(a, _every_key(problem), heads, slice(None))
    return (out if term is None else out + term)[0]


def backward(problem: Problem, g: int, do_ND: Tensor, grads: Gradients) -> None:
    """Compute and store the gradients of one folded head densely."""
    heads = slice(g, g + 1)
    a, do, at = weights(problem, g), do_ND[None], _every_key(problem)
    ds = problem.score_gradient(a, torch.bmm(do, problem.v[heads].mT), at, do, heads)
    grads.dv[heads] = torch.bmm(a.mT, do)
    grads.dq[heads] = torch.bmm(ds, problem.k[heads])
    grads.dk[heads] = torch.bmm(ds.mT, problem.q[heads])
    problem.add_table_gradients(grads, a, ds, at, do, heads)
