"""Choose kernel, tile sizes and warps from shapes alone: no autotuning, so runs repeat bitwise.

`launch` runs what is planned here; `aot` compiles the same plans without a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SPARSE_BACKWARD_FROM = 1000  # tokens; estimated at 60 h for h = 16, to be measured on a GPU
TRANSPOSE_KEYS = 128
SUMMARY_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """How to launch a forward kernel.

    `chunks` pads the key axis, () when streaming; then `block_n` keys make a tile, and as many
    groups the search.
    """

    block_m: int
    chunks: tuple[int, ...]
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2

    @property
    def streaming(self) -> bool:
        """Tell whether keys are streamed instead of held in registers."""
        return not self.chunks


def key_chunks(n: int) -> tuple[int, ...]:
    """Cover n keys by at most three powers of two, largest first: 197 -> 128 + 64 + 16."""
    chunks: list[int] = []
    rest = n
    while rest > 0:
        last = len(chunks) == 2
        power = math.ceil(math.log2(rest)) if last else math.floor(math.log2(rest))
        chunks.append(max(16, 2**power))
        rest -= chunks[-1]
    return tuple(chunks)


def forward_plan(
    n: int, dim: int, itemsize: int, *, bias: bool, dense_values: bool = True, wide: bool = True
) -> ForwardPlan:
    """Plan the forward kernel for n tokens, `dim` channels of `itemsize` bytes.

    `wide` tells a GPU with warp-group matrix instructions (sm_90), where more fits in registers.
    Each branch is the largest tile that compiles without spills (bench/results/compile.json).
    """
    if itemsize == 4:  # float32 products are three tensor-core ones: more registers
        if n <= 64 and dim <= 64 and not bias:
            return ForwardPlan(block_m=64, chunks=key_chunks(n))
        return _streaming(block_n=32 if wide and dim <= 64 else 16)
    if not wide:
        if n <= 208 and dim <= 64 and not bias:
            return ForwardPlan(block_m=64, chunks=key_chunks(n))
        if bias:
            return _streaming(block_n=16 if dense_values or dim > 64 else 32)
        return _streaming(block_n=64 if dim <= 64 else 32, num_stages=2 if dim <= 64 else 1)
    if n <= 208 and (dim <= 64 or not bias):
        return ForwardPlan(block_m=64, chunks=key_chunks(n), num_warps=8 if bias else 4)
    if n <= 272 and dim <= 64 and not bias:
        return ForwardPlan(block_m=128, chunks=key_chunks(n), num_warps=8)
    return _streaming(block_n=64 if dim <= 64 else 32, num_stages=2 if dim <= 64 else 1)


def _streaming(*, block_n: int, num_stages: int = 1) -> ForwardPlan:
    return ForwardPlan(block_m=64, chunks=(), block_n=block_n, num_stages=num_stages)


def values_by_pairs(dim: int, itemsize: int) -> bool:
    """Gather values of kept keys where the dense product would spill registers."""
    return itemsize == 4 and dim > 64


def dense_backward(n: int, itemsize: int) -> bool:
    """Choose the dense masked backward where it costs less than walking pairs.

    Never for float32, whose tensor-core products come in threes.
    """
    return n < SPARSE_BACKWARD_FROM and itemsize < 4


@dataclass(frozen=True, kw_only=True)
class BackwardPlan:
    """Tiles of the dense backward: (query rows, keys) of the kernel for dQ, and of the other."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    num_stages: int


def backward_plan(dim: int, *, wide: bool = True) -> BackwardPlan:
    """Plan the dense backward kernels; four warps each."""
    if not wide:
        return BackwardPlan(queries=(64, 32), keys=(32, 32), num_stages=1)
    if dim > 64:
        return BackwardPlan(queries=(64, 32), keys=(32, 64), num_stages=1)
    return BackwardPlan(queries=(64, 64), keys=(64 if dim > 32 else 32, 64), num_stages=2)


def pair_rows(dim: int, itemsize: int) -> int:
    """Return the query rows or keys that one program of a pair kernel owns."""
    if itemsize == 4:
        return 8 if dim <= 64 else 4
    return 16


def power_of_two(x: int) -> int:
    """Round up to a power of two, at least 1."""
    return 1 << max(0, x - 1).bit_length()


def padded_dim(dim: int) -> int:
    """Pad channels to a power of two that tensor cores take."""
    return max(16, power_of_two(dim))
