"""Top-h attention written straight from its equations, in plain torch: the judge of the kernels.

Shapes: B batch, H heads, N tokens, d channels a head, R buckets.
Equations: Cyto-SSL eq. 5 (keep every score >= the h-th largest of its row), 6 and 7-9 (with iRPE).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cytofm_kernels.relpos import RelPos

Ties = Literal["all", "first"]


class Attention(NamedTuple):
    """What the reference can show: output, weights and selection."""

    out_BHND: Tensor
    attn_BHNN: Tensor  # softmax over the kept keys, 0 elsewhere, in the score dtype
    keep_BHNN: Tensor  # bool


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the scores: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off: it would round the scores to 16 bit before selection sees them."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if available else nullcontext()


def scores(q_BHND: Tensor, k_BHND: Tensor, rel: RelPos | None, key_mask: Tensor | None) -> Tensor:
    """Compute the unscaled scores of eq. 7, `q k' + R`, never rounded to 16 bit.

    Selection looks at unscaled scores: a positive scale cannot change the order, while rounding
    after it can create ties.
    """
    acc = accumulate_dtype(q_BHND.dtype)
    q, k = q_BHND.to(acc), k_BHND.to(acc)
    s_BHNN = q @ k.mT
    if rel is not None:
        index = rel.bucket.long().expand(s_BHNN.shape)
        if rel.table_k is not None:
            s_BHNN = s_BHNN + (q @ rel.table_k.to(acc)).gather(-1, index)
        if rel.table_q is not None:
            by_key = (k @ rel.table_q.to(acc)).gather(-1, index.mT)
            s_BHNN = s_BHNN + by_key.mT
    if key_mask is not None:
        s_BHNN = s_BHNN.masked_fill(~key_mask[:, None, None, :], -math.inf)
    return s_BHNN


def select(s_BHNN: Tensor, h: int, ties: Ties = "all") -> Tensor:
    """Mark the kept keys of eq. 5: True where the score reaches the h-th largest of its row.

    NaN is kept, so that it reaches the output; -inf (a masked key) never is. `ties="first"` keeps
    exactly min(h, valid keys): among equals at the threshold, the lowest key indices.
    """
    n = s_BHNN.shape[-1]
    s_BHNN = s_BHNN.detach()
    valid = s_BHNN != -math.inf
    if h >= n:
        return valid
    t_BHN1 = s_BHNN.topk(h, dim=-1).values[..., -1:]
    keep = ~(s_BHNN < t_BHN1) & valid
    if ties == "all":
        return keep
    above, equal = s_BHNN > t_BHN1, s_BHNN == t_BHN1
    room = h - above.sum(-1, keepdim=True)
    return (keep & ~equal) | (equal & valid & (equal.cumsum(-1) <= room))


def softmax_kept(s_BHNN: Tensor, keep_BHNN: Tensor, scale: float) -> Tensor:
    """Take the softmax over the kept keys (eq. 6); a row with none is all zeros."""
    empty = ~keep_BHNN.any(-1, keepdim=True)
    s = s_BHNN.masked_fill(~keep_BHNN, -math.inf).masked_fill(empty, 0.0)
    return torch.softmax(s * scale, dim=-1).masked_fill(empty, 0.0)


def mix_values(attn_BHNN: Tensor, v_BHND: Tensor, rel: RelPos | None) -> Tensor:
    """Average the values, eq. 9: `A v + (A summed by bucket) r^V`."""
    out = attn_BHNN @ v_BHND.to(attn_BHNN.dtype)
    if rel is None or rel.table_v is None:
        return out
    table = rel.table_v.to(attn_BHNN.dtype)
    sums = attn_BHNN.new_zeros(*attn_BHNN.shape[:-1], table.shape[-2])
    index = rel.bucket.long().expand(attn_BHNN.shape)
    return out + sums.scatter_add(-1, index, attn_BHNN) @ table


def top_h_attention_reference(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    h: int,
    *,
    rel: RelPos | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    ties: Ties = "all",
) -> Attention:
    """Compute top-h attention densely, with its weights and selection; differentiable.

    Arguments as `top_h_attention`, used in the dtype that they come in, also under autocast.
    Memory: several N x N maps a head.
    """
    scale = q_BHND.shape[-1] ** -0.5 if scale is None else scale
    with full_precision(q_BHND):
        s_BHNN = scores(q_BHND, k_BHND, rel, key_mask)
        keep_BHNN = select(s_BHNN, h, ties)
        attn_BHNN = softmax_kept(s_BHNN, keep_BHNN, scale)
        out_BHND = mix_values(attn_BHNN, v_BHND, rel).to(v_BHND.dtype)
        return Attention(out_BHND, attn_BHNN, keep_BHNN)
