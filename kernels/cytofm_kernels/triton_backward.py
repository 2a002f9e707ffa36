"""Dense masked backward for short rows without relative term: tensor cores recompute the scores,
the saved bits say which were kept. One kernel owns rows (dQ), one owns keys (dK, dV): no atomics.

    p = exp2(s * scale_log2 - lse), dp = dO v', ds = p (dp - D), D = rowsum(dO * O)
"""
# ruff: noqa: ANN001, ANN201, E741
# mypy: ignore-errors

import triton
import triton.language as tl

from cytofm_kernels.triton_common import load_rows, locate


@triton.jit
def kept_bits(BITS, offs_m, offs_n, n, n_halves):
    """Load the selection of pairs (offs_m, offs_n), two index tiles that broadcast."""
    inside = (offs_m < n) & (offs_n < n)
    half = tl.load(BITS + offs_m * n_halves + (offs_n >> 4), mask=inside, other=0)
    return ((half.to(tl.int32) >> (offs_n & 15)) & 1) != 0


@triton.jit
def backward_queries(
    Q, K, V, O, DO, LSE, BITS, DELTA, DQ,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, n_heads, n, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute dQ of BM rows, and D of each row for `backward_keys`."""
    tile, g = locate(n, BM)
    b, head = g // n_heads, g % n_heads
    K += b * skb + head * skh
    V += b * svb + head * svh
    n_halves = 2 * ((n + 31) // 32)
    BITS += g * n * n_halves
    offs_m = tile * BM + tl.arange(0, BM)
    q = load_rows(Q + b * sqb + head * sqh, offs_m, sqn, n, D, BD, UPCAST)
    do = load_rows(DO + g * n * D, offs_m, D, n, D, BD, UPCAST)
    o = load_rows(O + g * n * D, offs_m, D, n, D, BD, UPCAST)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    tl.store(DELTA + g * n + offs_m, delta, mask=offs_m < n)
    lse = tl.load(LSE + g * n + offs_m, mask=offs_m < n, other=float("inf"))
    acc = tl.zeros([BM, BD], tl.float32)
    for start in range(0, n, BN):
        offs_n = start + tl.arange(0, BN)
        k = load_rows(K, offs_n, skn, n, D, BD, UPCAST)
        v = load_rows(V, offs_n, svn, n, D, BD, UPCAST)
        keep = kept_bits(BITS, offs_m[:, None], offs_n[None, :], n, n_halves)
        s = tl.dot(q, k.T, input_precision="tf32x3")
        p = tl.where(keep, tl.exp2(s * scale_log2 - lse[:, None]), 0.0)
        dp = tl.dot(do, v.T, input_precision="tf32x3")
        ds = tl.where(keep, p * (dp - delta[:, None]), 0.0).to(K.dtype.element_ty)
        ds = ds.to(tl.float32) if UPCAST else ds
        acc = tl.dot(ds, k, acc=acc, input_precision="tf32x3")
    store_tile(DQ + g * n * D, acc * scale, offs_m, n, D, BD)


@triton.jit
def store_tile(X, x, offs, n, D: tl.constexpr, BD: tl.constexpr):
    """Store rows `offs` of a contiguous (n, D) matrix."""
    cols = tl.arange(0, BD)
    inside = (offs[:, None] < n) & (cols[None, :] < D)
    tl.store(X + offs[:, None] * D + cols[None, :], x.to(X.dtype.element_ty), mask=inside)


@triton.jit
def backward_keys(
    Q, K, V, DO, LSE, BITS, DELTA, DK, DV,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, n_heads, n, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute dK and dV of BN keys, with every tile transposed."""
    tile, g = locate(n, BN)
    b, head = g // n_heads, g % n_heads
    Q += b * sqb + head * sqh
    n_halves = 2 * ((n + 31) // 32)
    BITS += g * n * n_halves
    offs_n = tile * BN + tl.arange(0, BN)
    k = load_rows(K + b * skb + head * skh, offs_n, skn, n, D, BD, UPCAST)
    v = load_rows(V + b * svb + head * svh, offs_n, svn, n, D, BD, UPCAST)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BD], tl.float32)
    for start in range(0, n, BM):
        offs_m = start + tl.arange(0, BM)
        q = load_rows(Q, offs_m, sqn, n, D, BD, UPCAST)
        do = load_rows(DO + g * n * D, offs_m, D, n, D, BD, UPCAST)
        lse = tl.load(LSE + g * n + offs_m, mask=offs_m < n, other=float("inf"))
        delta = tl.load(DELTA + g * n + offs_m, mask=offs_m < n, other=0.0)
        keep = kept_bits(BITS, offs_m[None, :], offs_n[:, None], n, n_halves)
        s = tl.dot(k, q.T, input_precision="tf32x3")
        p = tl.where(keep, tl.exp2(s * scale_log2 - lse[None, :]), 0.0)
        p_v = p.to(Q.dtype.element_ty)
        p_v = p_v.to(tl.float32) if UPCAST else p_v
        dv = tl.dot(p_v, do, acc=dv, input_precision="tf32x3")
        dp = tl.dot(v, do.T, input_precision="tf32x3")
        ds = tl.where(keep, p * (dp - delta[None, :]), 0.0).to(Q.dtype.element_ty)
        ds = ds.to(tl.float32) if UPCAST else ds
        dk = tl.dot(ds, q, acc=dk, input_precision="tf32x3")
    store_tile(DK + g * n * D, dk * scale, offs_n, n, D, BD)
    store_tile(DV + g * n * D, dv, offs_n, n, D, BD)
