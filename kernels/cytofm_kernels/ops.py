"""Register the operator with torch: forward, backward, fakes, autograd.

`cytofm::top_h_forward` and `cytofm::top_h_backward` are opaque to torch.compile; what forward
saves depends on the backend (`_saved_shapes`), never on the data.

Shapes: B batch, H heads, N tokens, h kept keys, d channels a head, W = ceil(N / 32) words.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from cytofm_kernels import cpu, cpu_short
from cytofm_kernels.cpu_dense import Problem
from cytofm_kernels.errors import TopHError
from cytofm_kernels.reference import Ties, accumulate_dtype, full_precision
from cytofm_kernels.relpos import RelPos


class _Last(threading.local):
    backend: str = "none"


LAST = _Last()


def note_backend(name: str) -> None:
    """Remember what served the latest call."""
    LAST.backend = name


def top_h(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    h: int,
    rel: RelPos | None,
    scale: float,
    key_mask: Tensor | None,
    ties: Ties,
    backend: str,
) -> Tensor:
    """Call the registered operator; arguments are checked by the caller."""
    tables: tuple[Tensor | None, ...] = (None, None, None, None)
    if rel is not None:
        tables = (rel.bucket, rel.table_q, rel.table_k, rel.table_v)
        if tables[1:] == (None, None, None):
            tables = (None, None, None, None)
    inputs = [q_BHND, k_BHND, v_BHND, *(t for t in tables[1:] if t is not None)]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    out, _, _ = torch.ops.cytofm.top_h_forward(
        q_BHND, k_BHND, v_BHND, *tables, key_mask, h, scale, ties == "first", backend, save
    )
    result: Tensor = out
    return result


@torch.library.custom_op("cytofm::top_h_forward", mutates_args=())
def top_h_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    table_q: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (out, row statistics, selection); see `_saved_shapes` for the last two."""
    note_backend(backend)
    tables = (table_q, table_k, table_v)
    with full_precision(q):
        if backend == "triton":
            from cytofm_kernels import launch

            return launch.forward(q, k, v, bucket, tables, key_mask, h, scale, first, save)
        problem = _cpu_problem(q, k, v, bucket, tables, key_mask, h, scale, first)
        short = None if save else cpu_short.forward(problem)
        if short is not None:
            nothing = short.new_empty(0), q.new_empty(0, dtype=torch.int32)
            return short.view(q.shape).to(v.dtype), *nothing
        out, p, index = cpu.forward(problem)
    shape = q.shape[:3]
    out = out.view(q.shape).to(v.dtype)
    if not save:
        return out, q.new_empty(0, dtype=p.dtype), q.new_empty(0, dtype=torch.int32)
    return out, p.view(*shape, -1), index.view(*shape, -1)


@top_h_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    table_q: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    stat_shape, pick_shape = _saved_shapes(q, h, backend)
    acc = accumulate_dtype(q.dtype)
    out = q.new_empty(q.shape, dtype=v.dtype)
    if not save:
        return out, q.new_empty(0, dtype=acc), q.new_empty(0, dtype=torch.int32)
    return out, q.new_empty(stat_shape, dtype=acc), q.new_empty(pick_shape, dtype=torch.int32)


def _saved_shapes(q: Tensor, h: int, backend: str) -> tuple[list[int], list[int]]:
    """Give the shapes of what backward needs.

    triton: log-sum-exp (B, H, N) and kept keys as bits (B, H, N, W).
    cpu: kept weights and indices (B, H, N, min(h, N)).
    """
    b, n_heads, n, _ = q.shape
    if backend == "triton":
        return [b, n_heads, n], [b, n_heads, n, (n + 31) // 32]
    kept = min(h, n)
    return [b, n_heads, n, kept], [b, n_heads, n, kept]


@torch.library.custom_op("cytofm::top_h_backward", mutates_args=())
def top_h_backward(
    do: Tensor,
    out: Tensor,
    stat: Tensor,
    pick: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    table_q: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of q, k, v and the three tables (empty where there is no table)."""
    tables = (table_q, table_k, table_v)
    with full_precision(q):
        if backend == "triton":
            from cytofm_kernels import launch

            grads = launch.backward(do, out, stat, pick, q, k, v, bucket, tables, scale)
        else:
            problem = _cpu_problem(q, k, v, bucket, tables, key_mask, h, scale, first)
            shape = problem.q.shape
            saved = cpu.Forward(out, stat.view(*shape[:2], -1), pick.view(*shape[:2], -1))
            g = cpu.backward(problem, saved, do.to(problem.q.dtype).reshape(shape))
            grads = (g.dq, g.dk, g.dv, g.dtable_q, g.dtable_k, g.dtable_v)
    dq, dk, dv = (g.view(q.shape).to(q.dtype) for g in grads[:3] if g is not None)
    dtables = (
        q.new_empty(0) if g is None or t is None else g.to(t.dtype)
        for g, t in zip(grads[3:], tables, strict=True)
    )
    dtable_q, dtable_k, dtable_v = dtables
    return dq, dk, dv, dtable_q, dtable_k, dtable_v


@top_h_backward.register_fake
def _(
    do: Tensor,
    out: Tensor,
    stat: Tensor,
    pick: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    table_q: Tensor | None,
    table_k: Tensor | None,
    table_v: Tensor | None,
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_qkv = (q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape))
    d_tables = (
        q.new_empty(0) if t is None else t.new_empty(t.shape) for t in (table_q, table_k, table_v)
    )
    return (*d_qkv, *d_tables)  # type: ignore[return-value]


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:  # type: ignore[type-arg]
    *tensors, h, scale, first, backend, _save = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.arguments = (h, scale, first, backend)  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: torch.autograd.function.FunctionCtx, *d_outputs: Tensor | None) -> tuple:  # type: ignore[type-arg]
    do = d_outputs[0]
    if do is None:
        return (None,) * 13
    out, stat, pick, *tensors = ctx.saved_tensors  # type: ignore[attr-defined]
    if pick.numel() == 0:
        raise TopHError("Forward ran without gradients enabled; nothing was saved.")
    grads = torch.ops.cytofm.top_h_backward(do, out, stat, pick, *tensors, *ctx.arguments)  # type: ignore[attr-defined]
    dq, dk, dv, *d_tables = grads
    d_tables = [None if t is None else g for t, g in zip(tensors[4:7], d_tables, strict=True)]
    return (dq, dk, dv, None, *d_tables, *(None,) * 6)


def _refuse_second(ctx: torch.autograd.function.FunctionCtx, *_: Tensor | None) -> None:
    raise TopHError(
        "top_h_attention has no second derivative on this backend.",
        hint='Pass backend="reference" for double backward.',
    )


torch.library.register_autograd("cytofm::top_h_forward", _backward, setup_context=_setup_context)
torch.library.register_autograd("cytofm::top_h_backward", _refuse_second)


def _cpu_problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket: Tensor | None,
    tables: tuple[Tensor | None, ...],
    key_mask: Tensor | None,
    h: int,
    scale: float,
    first: bool,
) -> Problem:
    """Fold batch and heads, cast to the accumulation dtype."""
    _, n_heads, n, dim = q.shape
    acc = accumulate_dtype(q.dtype)
    folded_q, folded_k, folded_v = (x.to(acc).reshape(-1, n, dim) for x in (q, k, v))
    table_q, table_k, table_v = (None if t is None else t.to(acc) for t in tables)
    return Problem(
        q=folded_q,
        k=folded_k,
        v=folded_v,
        h=h,
        scale=scale,
        ties="first" if first else "all",
        n_heads=n_heads,
        mask=None if key_mask is None else key_mask.repeat_interleave(n_heads, 0),
        bucket=bucket,
        table_q=table_q,
        table_k=table_k,
        table_v=table_v,
    )
