"""The public call: check the arguments, choose a backend, compute.

Shapes: B batch, H heads, N tokens, d channels a head, R buckets.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cytofm_kernels import ops
from cytofm_kernels.dispatch import BACKENDS, Backend, explain, triton_blocker
from cytofm_kernels.errors import BackendError, TopHError
from cytofm_kernels.reference import Ties, top_h_attention_reference
from cytofm_kernels.relpos import RelPos


def top_h_attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    h: int,
    *,
    rel: RelPos | None = None,
    scale: float | None = None,
    key_mask: Tensor | None = None,
    ties: Ties = "all",
    backend: Backend = "auto",
) -> Tensor:
    """Attend to the h best keys of each query (Cyto-SSL eq. 5-9), exactly.

    Selection sees scores accumulated in float32 (float64 for float64 input), never rounded to
    16 bit, also under autocast, which casts q, k and v only. The gradient is 1 through kept
    scores, 0 through dropped ones; the threshold carries none. Rows whose scores hold a NaN or
    +inf are NaN; rows without a valid key are zero, gradient included. `h >= N` is dense attention.

    Args:
        q_BHND: queries; any strides. float16, bfloat16, float32 or float64.
        k_BHND: keys, same shape, dtype and device.
        v_BHND: values, likewise.
        h: keys to keep, at least 1.
        rel: relative position term; its tables may be float32 beside 16-bit q, k, v.
        scale: positive factor on the scores, default d ** -0.5.
        key_mask: (B, N) bool, True = may be attended.
        ties: "all" keeps every key that equals the h-th best score (eq. 5), so more than h;
            "first" keeps exactly h, lowest key index first.
        backend: "auto" chooses as `explain` says. By name, a backend serves or raises.

    Returns:
        (B, H, N, d), contiguous, dtype of v.

    Raises:
        TopHError: the arguments do not fit together.
        BackendError: the named backend cannot serve this call.
    """
    q_BHND, k_BHND, v_BHND = _autocast(q_BHND, k_BHND, v_BHND)
    _check_tensors(q_BHND, k_BHND, v_BHND, key_mask)
    if rel is not None:
        _check_rel(q_BHND, rel)
    if h < 1:
        raise TopHError(f"h is {h}.", hint="Keep at least one key.")
    if ties not in ("all", "first"):
        raise TopHError(f"ties is {ties!r}.", hint='Pass "all" or "first".')
    scale = q_BHND.shape[-1] ** -0.5 if scale is None else float(scale)
    if not scale > 0:
        raise TopHError(f"scale is {scale}.", hint="Pass a positive number.")
    name = _backend(q_BHND, backend)
    if name == "reference":
        if not torch.compiler.is_compiling():
            ops.note_backend("reference")
        return top_h_attention_reference(
            q_BHND, k_BHND, v_BHND, h, rel=rel, scale=scale, key_mask=key_mask, ties=ties
        ).out_BHND
    return ops.top_h(q_BHND, k_BHND, v_BHND, h, rel, scale, key_mask, ties, name)


def last_backend() -> str:
    """Return what served the latest call in this process: "triton", "cpu" or "reference"."""
    return ops.LAST.backend


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the autocast dtype where autocast is on; tables are left as they are."""
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


def _transformed() -> bool:
    """Tell whether torch.func (grad, jvp, vmap, ...) or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0


def _backend(q_BHND: Tensor, backend: Backend) -> str:
    """Resolve "auto", refuse a name that cannot serve."""
    if backend not in BACKENDS:
        raise BackendError(f"No backend {backend!r}.", hint=f"Choose from {', '.join(BACKENDS)}.")
    if q_BHND.numel() == 0:
        return "reference"  # nothing to compute; keeps shapes and graph
    if _transformed():
        # The operators know backward alone: torch.func.grad would fail without a name, and a
        # forward-mode tangent would silently come out as zero.
        if backend in ("auto", "reference"):
            return "reference"
        raise BackendError(
            f'backend="{backend}" under a torch.func transform or forward-mode differentiation.',
            hint='Pass backend="auto" or "reference", which are differentiable in every way.',
        )
    device, dtype, dim = q_BHND.device, q_BHND.dtype, q_BHND.shape[-1]
    if backend == "auto":
        return explain(device, dtype, dim).backend
    if backend == "triton":
        blocker = triton_blocker(device, dtype, dim)
        if blocker:
            raise BackendError(
                f'backend="triton": {blocker}.', hint='Pass backend="auto" to fall back.'
            )
    if backend == "cpu" and device.type != "cpu":
        raise BackendError(f'backend="cpu" with tensors on {device}.', hint='Pass "reference".')
    return backend


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise TopHError(f"q, k, v have shapes {shapes}.", hint="Pass three equal (B, H, N, d).")
    if not q.dtype == k.dtype == v.dtype:
        raise TopHError(
            f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}.", hint="Cast them to one."
        )
    if not q.is_floating_point():
        raise TopHError(f"q, k, v are {q.dtype}.", hint="Pass a floating-point dtype.")
    if not q.device == k.device == v.device:
        raise TopHError(
            f"q, k, v lie on {q.device}, {k.device}, {v.device}.", hint="Move them to one device."
        )
    if key_mask is None:
        return
    if key_mask.dtype != torch.bool or key_mask.shape != (q.shape[0], q.shape[2]):
        raise TopHError(
            f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)}.",
            hint=f"Pass bool {(q.shape[0], q.shape[2])}.",
        )
    if key_mask.device != q.device:
        raise TopHError(f"key_mask lies on {key_mask.device}, q on {q.device}.")


def _check_rel(q: Tensor, rel: RelPos) -> None:
    _, n_heads, n, dim = q.shape
    if rel.bucket.shape != (n, n) or rel.bucket.is_floating_point():
        raise TopHError(
            f"rel.bucket is {rel.bucket.dtype} {tuple(rel.bucket.shape)}.",
            hint=f"Pass integers {(n, n)}: does the grid plus prefix count {n} tokens?",
        )
    n_buckets = {
        t.shape[i]
        for t, i in ((rel.table_q, -1), (rel.table_k, -1), (rel.table_v, -2))
        if t is not None
    }
    if len(n_buckets) > 1:
        raise TopHError(f"rel's tables disagree on the number of buckets: {sorted(n_buckets)}.")
    for name, axes in (("table_q", (1, 2)), ("table_k", (1, 2)), ("table_v", (2, 1))):
        table: Tensor | None = getattr(rel, name)
        if table is None:
            continue
        heads_ok = table.dim() == 3 and table.shape[0] in (1, n_heads)
        if not heads_ok or table.shape[axes[0]] != dim or not table.is_floating_point():
            layout = "(1 or H, R, d)" if name == "table_v" else "(1 or H, d, R)"
            raise TopHError(
                f"rel.{name} is {table.dtype} {tuple(table.shape)}.",
                hint=f"Pass floats {layout}, H = {n_heads}, d = {dim}.",
            )
        if table.device != q.device:
            raise TopHError(f"rel.{name} lies on {table.device}, q on {q.device}.")
    if rel.bucket.device != q.device:
        raise TopHError(f"rel.bucket lies on {rel.bucket.device}, q on {q.device}.")
