"""Problems with exactly representable scores, and poisoned memory."""

from dataclasses import dataclass, replace

import pytest
import torch

from cytofm_kernels import RelPos, last_backend, top_h_attention, top_h_attention_reference


@dataclass(frozen=True)
class Case:
    """Inputs on a binary grid: their dot products are exact in float32, so every path must select
    the same keys, ties included. Values and output gradients are on the grid too."""

    qkv: tuple[torch.Tensor, ...]
    tables: tuple[torch.Tensor | None, ...]  # q, k, v
    bucket: torch.Tensor | None
    mask: torch.Tensor | None
    do: torch.Tensor
    h: int
    ties: str

    def outputs(self, backend, dtype):
        """Return the output and the gradients of everything, in float64."""
        leaves = [t.detach().to(dtype).requires_grad_() for t in self.qkv]
        tables = [
            None
            if t is None
            else t.detach().to(max(dtype, torch.float32, key=_size)).requires_grad_()
            for t in self.tables
        ]
        rel = None
        if self.bucket is not None:
            names = ("table_q", "table_k", "table_v")
            rel = RelPos(bucket=self.bucket, **dict(zip(names, tables, strict=True)))
        out = top_h_attention(
            *leaves, self.h, rel=rel, key_mask=self.mask, ties=self.ties, backend=backend
        )
        assert last_backend() == backend
        leaves += [t for t in tables if t is not None]
        grads = torch.autograd.grad(out, leaves, self.do.to(dtype))
        return [x.detach().double() for x in (out, *grads)]

    def worst_error(self, backend, dtype=torch.float32):
        """Return the largest relative error of output and gradients against float64."""
        want = self.outputs("reference", torch.float64)
        got = self.outputs(backend, dtype)
        assert [g.isnan().tolist() for g in got] == [w.isnan().tolist() for w in want]
        pairs = [(g.nan_to_num(), w.nan_to_num()) for g, w in zip(got, want, strict=True)]
        return max(float((g - w).norm() / (w.norm() + 0.1)) for g, w in pairs)

    def with_(self, **changes):
        return replace(self, **changes)


def _size(dtype):
    return torch.finfo(dtype).bits


def build(n, *, b=1, heads=2, d=8, h=5, n_buckets=0, shared=True, masked=0.0, ties="all",
          levels=64, seed=0, value_table=True):  # fmt: skip
    """Draw a case; few `levels` make many ties."""
    gen = torch.Generator().manual_seed(seed)

    def grid(*shape, levels=levels):
        return torch.randint(-levels, levels + 1, shape, generator=gen).double() / max(levels, 2)

    qkv = tuple(grid(b, heads, n, d) for _ in range(3))
    tables: tuple = (None, None, None)
    bucket = mask = None
    if n_buckets:
        owners = 1 if shared else heads
        tables = (
            grid(1, d, n_buckets),
            grid(owners, d, n_buckets),
            grid(owners, n_buckets, d) if value_table else None,
        )
        bucket = torch.randint(0, n_buckets, (n, n), generator=gen, dtype=torch.uint8)
    if masked:
        mask = torch.rand(b, n, generator=gen) >= masked
    return Case(qkv, tables, bucket, mask, grid(b, heads, n, d, levels=64), h, ties)


@pytest.fixture(scope="session")
def make_case():
    return build


@pytest.fixture
def poison(monkeypatch):
    """Fill every fresh, unwritten tensor with NaN or 0x7f bytes."""

    def spoil(x):
        if x.is_floating_point():
            x.fill_(float("nan"))
        elif x.dtype in (torch.int32, torch.int64):
            x.fill_(0x7F7F7F7F)
        return x

    for owner, name in (
        (torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"),
    ):  # fmt: skip
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _real=real, **k: spoil(_real(*a, **k)))


__all__ = ["Case", "build", "top_h_attention_reference"]
