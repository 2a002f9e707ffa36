"""Launch the kernels that walk kept pairs: relative values, and the sparse backward.

Shapes: B batch, H heads, N tokens, d channels a head, R buckets, W = ceil(N / 32) words.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cytofm_kernels import triton_pairs
from cytofm_kernels.launch_common import (
    LOG2_E,
    Relative,
    Tables,
    device_of,
    head_stride,
    or_dummy,
)
from cytofm_kernels.plan import SUMMARY_ROWS, TRANSPOSE_KEYS, padded_dim, pair_rows, power_of_two


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    words: Tensor,
    rel: Relative,
    scale: float,
) -> None:
    """Fill `out` from the selection, with the relative values."""
    n_batch, n_heads, n, dim = q.shape
    owned = pair_rows(dim, q.element_size())
    grid = (-(-n // owned) * n_batch * n_heads,)
    with device_of(q):
        triton_pairs.pairs_forward[grid](
            q, k, v, out, lse, words, *_summary(words, n), or_dummy(rel.qr, lse),
            or_dummy(rel.kr, lse), or_dummy(rel.bucket, lse), or_dummy(rel.rows_v, lse),
            *_strides(q, k, v), head_stride(rel.rows_v), n_heads, n, scale * LOG2_E,
            D=dim, BD=padded_dim(dim), R=rel.n_buckets, BP=owned, HAS_QR=rel.qr is not None,
            HAS_KR=rel.kr is not None, HAS_RV=rel.rows_v is not None, num_warps=4,
        )  # fmt: skip


def backward(
    do: Tensor,
    out: Tensor,
    lse: Tensor,
    words: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel: Relative,
    tables: Tables,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """Compute every gradient from the kept pairs; cost grows with N h, not with N x N."""
    n_heads, n, dim = q.shape[1:]
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    delta = torch.empty_like(lse)
    dqr, dkr, sums = (
        None if x is None else lse.new_empty(*q.shape[:3], rel.n_buckets)
        for x in (rel.qr, rel.kr, rel.rows_v)
    )
    owned = pair_rows(dim, q.element_size())
    grid = (-(-n // owned) * q.shape[0] * n_heads,)
    sizes = (n_heads, n, scale, scale * LOG2_E)
    qr, kr, bucket = (or_dummy(x, lse) for x in (rel.qr, rel.kr, rel.bucket))
    rows_v, sv = or_dummy(rel.rows_v, lse), head_stride(rel.rows_v)
    constants: dict[str, Any] = {
        "D": dim, "BD": padded_dim(dim), "R": rel.n_buckets,
        "BR": power_of_two(rel.n_buckets), "BP": owned,
        "HAS_QR": rel.qr is not None, "HAS_KR": rel.kr is not None,
        "HAS_RV": rel.rows_v is not None, "num_warps": 4,
    }  # fmt: skip
    strides = _strides(q, k, v)
    with device_of(q):
        by_key = _transpose(words, n)
        triton_pairs.pairs_backward_queries[grid](
            q, k, v, out, do, lse, words, *_summary(words, n), qr, kr, bucket,
            or_dummy(rel.rows_k, lse), rows_v, delta, dq, or_dummy(dqr, lse),
            or_dummy(sums, lse), *strides, head_stride(rel.rows_k), sv, *sizes, **constants,
        )  # fmt: skip
        triton_pairs.pairs_backward_keys[grid](
            q, k, v, do, lse, by_key, *_summary(by_key, n), qr, kr, bucket,
            or_dummy(rel.rows_q, lse), rows_v, delta, dk, dv, or_dummy(dkr, lse), *strides,
            head_stride(rel.rows_q), sv, *sizes, **constants,
        )  # fmt: skip
    d_tables = _table_gradients(tables, q, k, do, dqr, dkr, sums)
    return dq, dk, dv, *d_tables


def _transpose(words: Tensor, n: int) -> Tensor:
    """Turn keys-of-a-query bits into queries-of-a-key bits."""
    out = torch.empty_like(words)
    n_groups = words.shape[0] * words.shape[1]
    grid = (-(-n // TRANSPOSE_KEYS) * n_groups, words.shape[-1])
    triton_pairs.transpose_bits[grid](words.view(torch.int16), out, n, BJ=TRANSPOSE_KEYS)
    return out


def _summary(words: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Index the non-empty words of each row, and count the steps of a walk over it."""
    groups = words.new_empty(*words.shape[:3], (words.shape[-1] + 31) // 32)
    steps = words.new_empty(words.shape[:3])
    grid = (-(-n // SUMMARY_ROWS) * words.shape[0] * words.shape[1],)
    triton_pairs.summarise_words[grid](words, groups, steps, n, BP=SUMMARY_ROWS)
    return groups, steps


def _table_gradients(
    tables: Tables,
    q: Tensor,
    k: Tensor,
    do: Tensor,
    dqr: Tensor | None,
    dkr: Tensor | None,
    sums: Tensor | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Contract the sums by bucket with q, k and dO: gradients of table_q, table_k, table_v."""
    table_q, table_k, table_v = tables
    return (
        _over_tokens(k, dkr, table_q),
        _over_tokens(q, dqr, table_k),
        _over_tokens(sums, do, table_v),
    )


def _over_tokens(a: Tensor | None, b: Tensor | None, table: Tensor | None) -> Tensor | None:
    """Sum a' b over tokens and batch, and over heads where they share the table."""
    if a is None or b is None or table is None:
        return None
    shared = table.shape[0] == 1
    a, b = (x.float().transpose(0, 1).flatten(1, 2) for x in (a, b))
    by_head = a.mT @ b
    return by_head.sum(0, keepdim=True) if shared else by_head


def _strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    return (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
