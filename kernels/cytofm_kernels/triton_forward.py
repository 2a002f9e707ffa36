"""Forward kernels. `forward_row`: the whole score row in registers (short rows). `forward_stream`:
two passes over the keys (long rows). Both write output, log2-sum-exp and the selection bits.

Shapes and conventions: see triton_common. Grid: tiles of BM rows times
batch * heads.
"""
# ruff: noqa: ANN001, ANN201, E741, PLR0124, PLR0915
# mypy: ignore-errors

import triton
import triton.language as tl

from cytofm_kernels.triton_common import (
    MAX_STEPS,
    at_least,
    kept,
    load_rows,
    locate,
    midpoint,
    row_max,
    score_tile,
    store_bits,
    threshold,
    to_float,
    to_ordered,
)


@triton.jit
def weights(s, keep, m, scale_log2):
    """Compute the unnormalised softmax weights of kept keys."""
    top = tl.where(m == float("-inf"), 0.0, m)
    return tl.where(keep, tl.exp2((s - top[:, None]) * scale_log2), 0.0)


@triton.jit
def store_rows(O, LSE, acc, m, l, offs_m, n, scale_log2, D: tl.constexpr, BD: tl.constexpr,
               STORE_O: tl.constexpr):  # fmt: skip
    """Normalise and store output rows; a row without a kept key is zero, its LSE +inf."""
    empty = l == 0.0
    top = tl.where(m == float("-inf"), 0.0, m)
    lse = tl.where(empty, float("inf"), top * scale_log2 + tl.log2(tl.where(empty, 1.0, l)))
    tl.store(LSE + offs_m, lse, mask=offs_m < n)
    if STORE_O:
        cols = tl.arange(0, BD)
        inside = (offs_m[:, None] < n) & (cols[None, :] < D)
        o = acc / tl.where(empty, 1.0, l)[:, None]
        tl.store(O + offs_m[:, None] * D + cols[None, :], o.to(O.dtype.element_ty), mask=inside)


@triton.jit
def tie_limit(chunks, t, h, live, n, NC: tl.constexpr, C0: tl.constexpr, C1: tl.constexpr):
    """Find the key index from which ties at t are dropped so that h keys remain (n: none are).

    Chunks start at 0, C0 and C0 + C1. A bisection: runs only where ties exist.
    """
    limit = tl.full(t.shape, n, tl.int32)
    active = live & (at_least(chunks, t, NC) > h) & (t > float("-inf"))
    lo = tl.zeros(t.shape, tl.int32)
    hi = limit + 1
    while tl.max((active & (hi > lo + 1)).to(tl.int32), axis=0) > 0:
        mid = (lo + hi) // 2
        c = tl.zeros(t.shape, tl.float32)
        for i in tl.static_range(NC):
            start = 0 if i == 0 else (C0 if i == 1 else C0 + C1)
            at = start + tl.arange(0, chunks[i].shape[1])
            in_ = (chunks[i] > t[:, None]) | (
                (chunks[i] == t[:, None]) & (at[None, :] < mid[:, None])
            )
            c += tl.sum(tl.where(in_, 1.0, 0.0), axis=1)
        lo = tl.where(c <= h, mid, lo)
        hi = tl.where(c > h, mid, hi)
    return tl.where(active, lo, limit)


@triton.jit
def forward_row(
    Q, K, V, O, LSE, BITS, QR, KR, BUCKET, MASK,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, n_heads, n, h, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BM: tl.constexpr,
    C0: tl.constexpr, C1: tl.constexpr, C2: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_MASK: tl.constexpr, FIRST: tl.constexpr,
    STORE_O: tl.constexpr, STORE_BITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Select and attend with the row cut in up to three power-of-two chunks of keys."""
    tile, g = locate(n, BM)
    b, head = g // n_heads, g % n_heads
    Q += b * sqb + head * sqh
    K += b * skb + head * skh
    V += b * svb + head * svh
    QR += g * n * R
    KR += g * n * R
    MASK += b * n
    n_halves = 2 * ((n + 31) // 32)
    offs_m = tile * BM + tl.arange(0, BM)
    live = offs_m < n
    q = load_rows(Q, offs_m, sqn, n, D, BD, UPCAST)

    offs_0 = tl.arange(0, C0)
    s_0 = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, offs_0, skn, n, D, BD, R,
                     HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
    chunks = (s_0,)
    NC: tl.constexpr = 1 + (C1 > 0) + (C2 > 0)
    if C1 > 0:
        s_1 = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, C0 + tl.arange(0, C1), skn, n, D, BD,
                         R, HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
        chunks = (s_0, s_1)
        if C2 > 0:
            s_2 = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, C0 + C1 + tl.arange(0, C2), skn,
                             n, D, BD, R, HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
            chunks = (s_0, s_1, s_2)
    m = row_max(chunks, NC)
    t = threshold(chunks, m, h, live, NC)
    limit = tl.full([BM], n, tl.int32)
    if FIRST:
        limit = tie_limit(chunks, t, h, live, n, NC, C0, C1)

    if STORE_BITS:  # before the products: their accumulator's registers are still free
        for i in tl.static_range(NC):
            start = 0 if i == 0 else (C0 if i == 1 else C0 + C1)
            offs_n = start + tl.arange(0, chunks[i].shape[1])
            keep = kept(chunks[i], t, limit, offs_n, FIRST)
            store_bits(BITS + g * n * n_halves, keep, offs_m, start, n, n_halves, BM,
                       chunks[i].shape[1])  # fmt: skip
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BD], tl.float32)
    for i in tl.static_range(NC):
        start = 0 if i == 0 else (C0 if i == 1 else C0 + C1)
        offs_n = start + tl.arange(0, chunks[i].shape[1])
        p = weights(chunks[i], kept(chunks[i], t, limit, offs_n, FIRST), m, scale_log2)
        l += tl.sum(p, axis=1)
        if STORE_O:
            v = load_rows(V, offs_n, svn, n, D, BD, UPCAST)
            p_v = p.to(V.dtype.element_ty)
            p_v = p_v.to(tl.float32) if UPCAST else p_v
            acc = tl.dot(p_v, v, acc=acc, input_precision="tf32x3")
    store_rows(O + g * n * D, LSE + g * n, acc, m, l, offs_m, n, scale_log2, D, BD, STORE_O)


@triton.jit
def forward_stream(
    Q, K, V, O, LSE, BITS, QR, KR, BUCKET, MASK,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, n_heads, n, h, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_MASK: tl.constexpr, FIRST: tl.constexpr,
    STORE_O: tl.constexpr, STORE_BITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Pass A keeps the four largest scores of each of BN strided groups of keys; their h-th largest
    is the row's, unless a group holds five of the top h. Pass B attends with that threshold and
    counts; rows that kept too many are refined by further counting passes, then B runs again.
    """
    tile, g = locate(n, BM)
    b, head = g // n_heads, g % n_heads
    Q += b * sqb + head * sqh
    K += b * skb + head * skh
    V += b * svb + head * svh
    QR += g * n * R
    KR += g * n * R
    MASK += b * n
    n_halves = 2 * ((n + 31) // 32)
    offs_m = tile * BM + tl.arange(0, BM)
    live = offs_m < n
    q = load_rows(Q, offs_m, sqn, n, D, BD, UPCAST)

    top_1 = tl.full([BM, BN], float("-inf"), tl.float32)
    top_2, top_3, top_4 = top_1, top_1, top_1
    for start in range(0, n, BN):
        offs_n = start + tl.arange(0, BN)
        s = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, offs_n, skn, n, D, BD, R,
                       HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
        rest = tl.minimum(top_1, s)
        top_1 = tl.maximum(top_1, s)
        s = tl.minimum(top_2, rest)
        top_2 = tl.maximum(top_2, rest)
        rest = tl.minimum(top_3, s)
        top_3 = tl.maximum(top_3, s)
        top_4 = tl.maximum(top_4, rest)
    m = tl.max(top_1, axis=1)
    t = threshold((top_1, top_2, top_3, top_4), m, h, live, 4)

    limit = tl.full([BM], n, tl.int32)
    acc = tl.zeros([BM, BD], tl.float32)
    l = tl.zeros([BM], tl.float32)
    open_ = live & (m == m)
    again = 1
    while again > 0:
        acc = tl.zeros([BM, BD], tl.float32)
        l = tl.zeros([BM], tl.float32)
        c = tl.zeros([BM], tl.float32)
        for start in range(0, n, BN):
            offs_n = start + tl.arange(0, BN)
            s = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, offs_n, skn, n, D, BD, R,
                           HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
            keep = kept(s, t, limit, offs_n, FIRST)
            p = weights(s, keep, m, scale_log2)
            l += tl.sum(p, axis=1)
            c += tl.sum(keep.to(tl.float32), axis=1)
            if STORE_BITS:
                store_bits(BITS + g * n * n_halves, keep, offs_m, start, n, n_halves, BM, BN)
            if STORE_O:
                v = load_rows(V, offs_n, svn, n, D, BD, UPCAST)
                p_v = p.to(V.dtype.element_ty)
                p_v = p_v.to(tl.float32) if UPCAST else p_v
                acc = tl.dot(p_v, v, acc=acc, input_precision="tf32x3")
        open_ = open_ & (c > h)
        again = tl.max(open_.to(tl.int32), axis=0)
        if again > 0:
            t, limit = refine(q, K, QR, KR, BUCKET, MASK, offs_m, skn, n, h, m, t, open_, D, BD, R,
                              BM, BN, HAS_QR, HAS_KR, HAS_MASK, FIRST, UPCAST)  # fmt: skip
        open_ = open_ & (m != m)  # refined rows are exact now: what they keep beyond h is ties
    store_rows(O + g * n * D, LSE + g * n, acc, m, l, offs_m, n, scale_log2, D, BD, STORE_O)


@triton.jit
def refine(
    q, K, QR, KR, BUCKET, MASK, offs_m, skn, n, h, m, t, open_,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_MASK: tl.constexpr, FIRST: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Raise a threshold that keeps too many to the exact one, by passes over the keys.

    A pass counts at the bracket's midpoint and finds the next score above its lower end, so a few
    surplus keys cost as many passes, and no data more than MAX_STEPS.
    """
    lo, hi = to_ordered(t), to_ordered(m) + 1
    active = open_ & (hi > lo + 1)
    step = 0
    while (step < MAX_STEPS) & (tl.max(active.to(tl.int32), axis=0) > 0):
        mid = midpoint(lo, hi, step)
        low, pivot = to_float(lo), to_float(mid)
        above = tl.zeros([BM], tl.float32)
        c = tl.zeros([BM], tl.float32)
        following = tl.full([BM], float("inf"), tl.float32)
        for start in range(0, n, BN):
            s = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, start + tl.arange(0, BN), skn, n,
                           D, BD, R, HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
            c += tl.sum(tl.where(s < pivot[:, None], 0.0, 1.0), axis=1)
            higher = s > low[:, None]
            above += tl.sum(tl.where(higher, 1.0, 0.0), axis=1)
            following = tl.minimum(following, tl.min(tl.where(higher, s, float("inf")), axis=1))
        exact = above < h  # count(>= low) >= h: low is the h-th largest
        climbed = tl.where(c >= h, mid, tl.maximum(lo, tl.minimum(to_ordered(following), hi - 1)))
        hi = tl.where(active & (exact == 0) & (c < h), mid, hi)
        lo = tl.where(active & (exact == 0), tl.minimum(climbed, hi - 1), lo)
        found = exact | (c == h) | ((c < h) & (above == h))
        active = active & (found == 0) & (hi > lo + 1)
        step += 1
    t = tl.where(open_, to_float(lo), t)
    limit = tl.full([BM], n, tl.int32)
    if FIRST:
        first, end = tl.zeros([BM], tl.int32), limit + 1
        while tl.max((open_ & (end > first + 1)).to(tl.int32), axis=0) > 0:
            cut = (first + end) // 2
            c = tl.zeros([BM], tl.float32)
            for start in range(0, n, BN):
                offs_n = start + tl.arange(0, BN)
                s = score_tile(q, K, QR, KR, BUCKET, MASK, offs_m, offs_n, skn, n, D, BD, R,
                               HAS_QR, HAS_KR, HAS_MASK, UPCAST)  # fmt: skip
                tie = (s == t[:, None]) & (offs_n[None, :] < cut[:, None])
                c += tl.sum(tl.where((s > t[:, None]) | tie, 1.0, 0.0), axis=1)
            first = tl.where(c <= h, cut, first)
            end = tl.where(c > h, cut, end)
        limit = tl.where(open_, first, limit)
    return t, limit
