"""Exact top-h attention with image relative position encoding (iRPE), fused.

Needs only torch; Triton is imported when, and only when, a Triton kernel runs.

    from cytofm_kernels import RelPos, explain, top_h_attention
"""

from cytofm_kernels.api import last_backend, top_h_attention
from cytofm_kernels.dispatch import Choice, explain
from cytofm_kernels.errors import BackendError, TopHError
from cytofm_kernels.reference import Attention, Ties, top_h_attention_reference
from cytofm_kernels.relpos import RelPos, product_buckets, product_n_buckets

__all__ = [
    "Attention",
    "BackendError",
    "Choice",
    "RelPos",
    "Ties",
    "TopHError",
    "explain",
    "last_backend",
    "product_buckets",
    "product_n_buckets",
    "top_h_attention",
    "top_h_attention_reference",
]
