"""Attention to the h best keys of each query, in plain PyTorch: the reference.

Cyto-SSL, eq. 3 to 9, after explicit sparse attention (Zhao et al. 2019, arXiv:1912.11637):

    P = (Q Kᵀ + R) / √D,    R_ij = q_i · r^K[b_ij] + k_j · r^Q[b_ij]          (7, 8)
    t_i = the h-th largest of row i;  A = softmax of the P_ij ≥ t_i            (5, 6)
    O_i = Σ_j A_ij (v_j + r^V[b_ij])                                           (9)

The choice sees scores in float32, also under autocast: rounded to 16 bits, a tenth of the rows
would hold ties. The gradient is 1 through kept scores and 0 through dropped ones.

Letters: B images, H heads, N tokens, D channels a head, R buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Ties = Literal["all", "first"]
Path = Literal["gather", "one_hot"]


@dataclass(frozen=True, kw_only=True)
class RelativeTerms:
    """Relative positions for one attention.

    Attributes:
        bucket_NN: integers in [0, R), row = query, column = key.
        table_q: r^Q (1 or H, D, R), met by the keys.
        table_k: r^K (1 or H, D, R), met by the queries.
        table_v: r^V (1 or H, R, D), added to the values.
        bias: (1 or H, R), added to the scaled scores (bias mode).
    """

    bucket_NN: Tensor
    table_q: Tensor | None = None
    table_k: Tensor | None = None
    table_v: Tensor | None = None
    bias: Tensor | None = None


def scores(
    q_BHND: Tensor, k_BHND: Tensor, terms: RelativeTerms | None, path: Path = "gather"
) -> Tensor:
    """Return P of eq. 8, (B, H, N, N), float32 or finer.

    Args:
        path: `gather` looks scores up by bucket; `one_hot` contracts with an indicator
            instead, slower and with only matrix products in its backward pass.
    """
    with torch.autocast(q_BHND.device.type, enabled=False):
        exact = torch.promote_types(q_BHND.dtype, torch.float32)
        q_BHND, k_BHND = q_BHND.to(exact), k_BHND.to(exact)
        p_BHNN: Tensor = q_BHND @ k_BHND.mT
        if terms is not None and terms.table_k is not None:
            by_bucket_BHNR = q_BHND @ terms.table_k.to(exact)
            p_BHNN = p_BHNN + _look_up(by_bucket_BHNR, terms.bucket_NN, path)
        if terms is not None and terms.table_q is not None:
            by_bucket_BHNR = k_BHND @ terms.table_q.to(exact)
            p_BHNN = p_BHNN + _look_up(by_bucket_BHNR, terms.bucket_NN.mT, path).mT
        p_BHNN = p_BHNN * float(q_BHND.shape[-1]) ** -0.5
        if terms is not None and terms.bias is not None:
            p_BHNN = p_BHNN + terms.bias.to(exact)[:, terms.bucket_NN.long()]
        return p_BHNN


def keep(p_BHNN: Tensor, h: int, ties: Ties = "all") -> Tensor:
    """Mark the scores to keep, bool (B, H, N, N).

    Args:
        h: keys of a query to keep; all of them from N on.
        ties: `all` keeps every score ≥ t_i (eq. 5), so more than h where scores are equal;
            `first` keeps h of them, the lowest keys first.
    """
    n = p_BHNN.shape[-1]
    p_BHNN = p_BHNN.detach()
    if h >= n:
        return torch.ones_like(p_BHNN, dtype=torch.bool)
    if ties == "first":
        order = p_BHNN.argsort(dim=-1, descending=True, stable=True)[..., :h]
        return torch.zeros_like(p_BHNN, dtype=torch.bool).scatter(-1, order, value=True)
    threshold = p_BHNN.topk(h, dim=-1).values[..., -1:]
    return ~(p_BHNN < threshold)  # a NaN is kept, so that it shows


def attention_map(
    q_BHND: Tensor,
    k_BHND: Tensor,
    h: int,
    terms: RelativeTerms | None = None,
    *,
    ties: Ties = "all",
    path: Path = "gather",
) -> Tensor:
    """Return A, (B, H, N, N), float32 or finer: rows sum to 1, dropped keys are 0 (eq. 6)."""
    p_BHNN = scores(q_BHND, k_BHND, terms, path)
    return torch.softmax(p_BHNN.masked_fill(~keep(p_BHNN, h, ties), -math.inf), dim=-1)


def attend(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    h: int,
    terms: RelativeTerms | None = None,
    *,
    ties: Ties = "all",
    path: Path = "gather",
) -> Tensor:
    """Return O of eq. 9, (B, H, N, D) in the dtype of `v_BHND`."""
    a_BHNN = attention_map(q_BHND, k_BHND, h, terms, ties=ties, path=path)
    with torch.autocast(q_BHND.device.type, enabled=False):
        o_BHND = a_BHNN @ v_BHND.to(a_BHNN.dtype)
        if terms is not None and terms.table_v is not None:
            table = terms.table_v.to(a_BHNN.dtype)
            o_BHND = o_BHND + _sum_up(a_BHNN, terms.bucket_NN, table.shape[-2], path) @ table
        return o_BHND.to(v_BHND.dtype)


def _look_up(x_BHNR: Tensor, bucket_NN: Tensor, path: Path) -> Tensor:
    """Return x[..., i, bucket[i, j]] for every i and j."""
    if path == "one_hot":
        chosen_NNR = functional.one_hot(bucket_NN.long(), x_BHNR.shape[-1]).to(x_BHNR.dtype)
        return torch.einsum("bhir,ijr->bhij", x_BHNR, chosen_NNR)
    shape = (*x_BHNR.shape[:-1], bucket_NN.shape[-1])
    return x_BHNR.gather(-1, bucket_NN.long().expand(shape))


def _sum_up(a_BHNN: Tensor, bucket_NN: Tensor, n_buckets: int, path: Path) -> Tensor:
    """Return the attention that falls on each bucket, (B, H, N, R)."""
    if path == "one_hot":
        chosen_NNR = functional.one_hot(bucket_NN.long(), n_buckets).to(a_BHNN.dtype)
        return torch.einsum("bhij,ijr->bhir", a_BHNN, chosen_NNR)
    index = bucket_NN.long().expand(a_BHNN.shape)
    return a_BHNN.new_zeros(*a_BHNN.shape[:-1], n_buckets).scatter_add(-1, index, a_BHNN)
