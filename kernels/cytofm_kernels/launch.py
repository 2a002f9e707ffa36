"""Launch the Triton kernels: allocate, fold scale and log2(e), pass strides.

Shapes: B batch, H heads, N tokens, d channels a head, R buckets, W = ceil(N / 32) words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cytofm_kernels import launch_pairs, triton_backward, triton_forward
from cytofm_kernels.launch_common import (
    LOG2_E,
    Relative,
    Tables,
    device_of,
    is_wide,
    needs_upcast,
    or_dummy,
    relative,
    unit_stride,
)
from cytofm_kernels.plan import (
    ForwardPlan,
    backward_plan,
    dense_backward,
    forward_plan,
    padded_dim,
    values_by_pairs,
)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    tables: Tables,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward kernel: (out, log2-sum-exp, selection words)."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    n, dim = q.shape[2:]
    rel = relative(q, k, bucket, tables)
    out = torch.empty(q.shape, dtype=v.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    dense_values = tables[2] is None and not values_by_pairs(dim, q.element_size())
    plan = forward_plan(
        n, dim, q.element_size(), bias=rel.has_bias, dense_values=dense_values, wide=is_wide(q)
    )
    n_words = (n + 31) // 32 if save or not dense_values else 0
    # Zeroed: chunks end at a multiple of 16 keys, words at one of 32.
    words = torch.zeros(*q.shape[:3], n_words, dtype=torch.int32, device=q.device)
    _run_forward(plan, q, k, v, out, lse, words, rel, key_mask, h, scale, first, dense_values)
    if not dense_values:
        launch_pairs.forward(q, k, v, out, lse, words, rel, scale)
    if not save:
        empty = torch.empty(0, dtype=torch.float32, device=q.device)
        return out, empty, torch.empty(0, dtype=torch.int32, device=q.device)
    return out, lse, words


def _run_forward(
    plan: ForwardPlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    words: Tensor,
    rel: Relative,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    store_out: bool,
) -> None:
    n_batch, n_heads, n, dim = q.shape
    chunks = (*plan.chunks, 0, 0)[:3]
    blocks = (
        {"BN": plan.block_n}
        if plan.streaming
        else dict(zip(("C0", "C1", "C2"), chunks, strict=True))
    )
    kernel = triton_forward.forward_stream if plan.streaming else triton_forward.forward_row
    grid = (-(-n // plan.block_m) * n_batch * n_heads,)
    with device_of(q):
        kernel[grid](
            q, k, v, out, lse, words.view(torch.int16),
            or_dummy(rel.qr, lse), or_dummy(rel.kr, lse), or_dummy(rel.bucket, lse),
            or_dummy(None if key_mask is None else key_mask.contiguous().view(torch.uint8), lse),
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            n_heads, n, min(h, n), scale * LOG2_E,
            D=dim, BD=padded_dim(dim), R=rel.n_buckets, BM=plan.block_m, **blocks,
            HAS_QR=rel.qr is not None, HAS_KR=rel.kr is not None,
            HAS_MASK=key_mask is not None, FIRST=first, STORE_O=store_out,
            STORE_BITS=words.shape[-1] > 0, UPCAST=needs_upcast(q),
            num_warps=plan.num_warps, num_stages=plan.num_stages,
        )  # fmt: skip


def backward(
    do: Tensor,
    out: Tensor,
    lse: Tensor,
    words: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    tables: Tables,
    scale: float,
) -> tuple[Tensor | None, ...]:
    """Run the backward kernels: gradients of q, k, v and of the three tables."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    do, n = do.contiguous(), q.shape[2]
    rel = relative(q, k, bucket, tables)
    if rel.bucket is not None or not dense_backward(n, q.element_size()):
        return launch_pairs.backward(do, out, lse, words, q, k, v, rel, tables, scale)
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    delta = torch.empty_like(lse)
    bits = words.view(torch.int16)
    plan = backward_plan(q.shape[-1], wide=is_wide(q))
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    n_groups = q.shape[0] * q.shape[1]
    constants = {
        "D": q.shape[-1], "BD": padded_dim(q.shape[-1]), "UPCAST": needs_upcast(q),
        "num_warps": 4, "num_stages": plan.num_stages,
    }  # fmt: skip
    sizes = (q.shape[1], n, scale, scale * LOG2_E)
    with device_of(q):
        block_m, block_n = plan.queries
        triton_backward.backward_queries[(-(-n // block_m) * n_groups,)](
            q, k, v, out, do, lse, bits, delta, dq, *strides, *sizes,
            BM=block_m, BN=block_n, **constants,
        )  # fmt: skip
        block_m, block_n = plan.keys
        triton_backward.backward_keys[(-(-n // block_n) * n_groups,)](
            q, k, v, do, lse, bits, delta, dk, dv, *strides, *sizes,
            BM=block_m, BN=block_n, **constants,
        )  # fmt: skip
    return dq, dk, dv, None, None, None
