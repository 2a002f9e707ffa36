"""What the launchers of dense and pair kernels share.

Shapes: B batch, H heads, N tokens, d channels a head, R buckets.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cytofm_kernels.dispatch import interpreting
from cytofm_kernels.errors import BackendError, TopHError

LOG2_E = math.log2(math.e)
Tables = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Relative:
    """The relative term as kernels read it.

    `qr` = q r^K and `kr` = k r^Q are (B, H, N, R) float32; `rows_*` are the tables as contiguous
    rows, (1 or H, R, d) float32.
    """

    bucket: Tensor | None
    qr: Tensor | None
    kr: Tensor | None
    rows_q: Tensor | None
    rows_k: Tensor | None
    rows_v: Tensor | None
    n_buckets: int

    @property
    def has_bias(self) -> bool:
        """Tell whether scores have a relative term."""
        return self.qr is not None or self.kr is not None


def relative(q: Tensor, k: Tensor, bucket: Tensor | None, tables: Tables) -> Relative:
    """Multiply the tables out and bring the buckets into a form that kernels read."""
    table_q, table_k, table_v = tables
    sizes = [t.shape[i] for t, i in ((table_q, -1), (table_k, -1), (table_v, -2)) if t is not None]
    if bucket is None or not sizes:
        return Relative(None, None, None, None, None, None, 1)
    if q.shape[2] ** 2 >= 2**31:
        raise BackendError("The relative term's kernels end at 46340 tokens.", hint="Drop rel.")
    qr = None if table_k is None else (q.float() @ table_k.float()).contiguous()
    kr = None if table_q is None else (k.float() @ table_q.float()).contiguous()
    rows_q, rows_k = (None if t is None else _rows(t.mT) for t in (table_q, table_k))
    rows_v = None if table_v is None else _rows(table_v)
    bucket = _bucket_for_kernel(bucket, sizes[0])
    return Relative(bucket, qr, kr, rows_q, rows_k, rows_v, sizes[0])


def _rows(table: Tensor) -> Tensor:
    return table.float().contiguous()


def head_stride(rows: Tensor | None) -> int:
    """Return the elements from one head's table to the next: 0 where heads share one."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.stride(0)


def _bucket_for_kernel(bucket: Tensor, n_buckets: int) -> Tensor:
    """Return contiguous uint8 or int32 buckets; wider types are checked before they are cast."""
    if bucket.dtype in (torch.uint8, torch.int32):
        return bucket.contiguous()
    if bucket.numel() and not (int(bucket.min()) >= 0 and int(bucket.max()) < n_buckets):
        raise TopHError(f"rel.bucket leaves [0, {n_buckets}).", hint="Do the tables fit it?")
    return bucket.to(torch.int32).contiguous()


def unit_stride(x: Tensor) -> Tensor:
    """Copy only if channels are not next to each other, or a head spans 2**31 elements (offsets
    inside of a head are 32 bit, those of heads 64); any other stride is read as it is.
    """
    near = x.stride(2) * x.shape[2] < 2**31
    return x if near and (x.stride(-1) == 1 or x.shape[-1] == 1) else x.contiguous()


def or_dummy(x: Tensor | None, dummy: Tensor) -> Tensor:
    """Pass some pointer for an argument that the kernel does not read."""
    return dummy if x is None else x


def needs_upcast(x: Tensor) -> bool:
    """Tell whether products must run in float32: the interpreter's bfloat16 ones are garbage."""
    return x.dtype == torch.bfloat16 and interpreting()


def is_wide(x: Tensor) -> bool:
    """Tell whether the GPU has warp-group matrix instructions: plans differ."""
    return not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] == 9


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU current, as Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
