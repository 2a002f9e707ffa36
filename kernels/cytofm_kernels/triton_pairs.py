"""Kernels that walk the kept pairs of the selection bits: the value term, and the sparse backward.

A row steps from one set bit to the next, so ties (more than h keys in a row) and hubs (a key that
many rows keep) only lengthen a loop. Each program owns BP rows, or BP
keys over the transposed bits: no atomics, a fixed order of summation.

Shapes: BP owned rows, BD channels, W words a row, R buckets, padded to BR.
"""
# ruff: noqa: ANN001, ANN201, E741
# mypy: ignore-errors

import triton
import triton.language as tl

from cytofm_kernels.triton_backward import store_tile
from cytofm_kernels.triton_common import load_rows, locate


@triton.jit
def popcount(x):
    """Count the set bits of int32 words."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x + (x >> 8) + (x >> 16) + (x >> 24)) & 0x3F


@triton.jit
def lowest_bit(x):
    """Return the position of the lowest set bit: the exponent of that bit as a float."""
    bit = (x & -x).to(tl.float32).to(tl.int32, bitcast=True)
    return ((bit >> 23) & 0xFF) - 127


@triton.jit
def summarise_words(WORDS, GROUPS, STEPS, n, BP: tl.constexpr):
    """Write, for each row, bits that tell its non-empty words (GROUPS), and how many steps
    `next_kept` needs (STEPS): one a kept entry, one a further group of 32 words.
    """
    tile, g = locate(n, BP)
    n_words = (n + 31) // 32
    n_groups = (n_words + 31) // 32
    row = g * n + tile * BP + tl.arange(0, BP)
    inside = tile * BP + tl.arange(0, BP) < n
    lane = tl.arange(0, 32)
    steps = tl.zeros([BP], tl.int32) + n_groups - 1
    for a in range(n_groups):
        w = a * 32 + lane
        at = row[:, None] * n_words + w[None, :]
        words = tl.load(WORDS + at, mask=inside[:, None] & (w[None, :] < n_words), other=0)
        steps += tl.sum(popcount(words), axis=1)
        group = tl.sum((words != 0).to(tl.int32) << lane[None, :], axis=1)
        tl.store(GROUPS + row * n_groups + a, group, mask=inside)
    tl.store(STEPS + row, steps, mask=inside)


@triton.jit
def start_walk(GROUPS, STEPS, row, n, inside):
    """Begin a walk: how far to go, and the state of `next_kept`."""
    n_groups = ((n + 31) // 32 + 31) // 32
    steps = tl.load(STEPS + row, mask=inside, other=0)
    group = tl.load(GROUPS + row * n_groups, mask=inside, other=0)
    zero = tl.zeros(steps.shape, tl.int32)
    return tl.max(steps, axis=0), zero, group, zero, zero


@triton.jit
def next_kept(WORDS, GROUPS, row, n, inside, a, group, w, word):
    """Step each row to its next kept entry, ascending: state, the entry's index, whether there is
    one. A row that only moves on to another group of words has none in that step.
    """
    n_words = (n + 31) // 32
    n_groups = (n_words + 31) // 32
    fetch = (word == 0) & (group != 0)
    turn = (word == 0) & (group == 0) & (a + 1 < n_groups) & inside
    w = tl.where(fetch, a * 32 + lowest_bit(group), w)
    group = tl.where(fetch, group & (group - 1), group)
    word = tl.load(WORDS + row * n_words + w, mask=fetch, other=0) | word
    a = tl.where(turn, a + 1, a)
    group = tl.where(turn, tl.load(GROUPS + row * n_groups + a, mask=turn, other=0), group)
    live = word != 0
    at = w * 32 + lowest_bit(word)
    word = word & (word - 1)
    return a, group, w, word, tl.where(live, at, 0), live


@triton.jit
def gather_rows(X, at, stride, live, D: tl.constexpr, BD: tl.constexpr):
    """Load row `at` for each owned row, as float32 (BP, BD); zero where not live."""
    cols = tl.arange(0, BD)
    inside = live[:, None] & (cols[None, :] < D)
    return tl.load(X + at[:, None] * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def gather_table(TABLE, bucket, live, R: tl.constexpr, D: tl.constexpr, BD: tl.constexpr):
    """Load row `bucket` of a (R, D) table for each owned row; a bucket outside of the table reads
    NaN, so a wrong index shows and nothing outside is read.
    """
    known = live & (bucket < R) & (bucket >= 0)
    wrong = live & (known == 0)
    return tl.where(wrong[:, None], float("nan"), gather_rows(TABLE, bucket, D, known, D, BD))


@triton.jit
def pair_weight(q, k, QR, KR, b, i, j, lse, live, scale_log2, R: tl.constexpr,
                HAS_QR: tl.constexpr, HAS_KR: tl.constexpr):  # fmt: skip
    """Recompute the attention weight of one pair a row."""
    s = tl.sum(q * k, axis=1)
    known = live & (b < R) & (b >= 0)
    if HAS_QR:
        s += tl.load(QR + i * R + b, mask=known, other=float("nan"))
    if HAS_KR:
        s += tl.load(KR + j * R + b, mask=known, other=float("nan"))
    return tl.where(live, tl.exp2(s * scale_log2 - lse), 0.0)


@triton.jit
def pairs_forward(
    Q, K, V, O, LSE, WORDS, GROUPS, STEPS, QR, KR, BUCKET, RV,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, srv, n_heads, n, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BP: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_RV: tl.constexpr,
):  # fmt: skip
    """Compute eq. 9 with its relative values: O_i = sum of p_ij (v_j + r^V[b_ij]) over kept j."""
    tile, g = locate(n, BP)
    b, head = g // n_heads, g % n_heads
    K += b * skb + head * skh
    V += b * svb + head * svh
    i = tile * BP + tl.arange(0, BP)
    q = load_rows(Q + b * sqb + head * sqh, i, sqn, n, D, BD, True)
    lse = tl.load(LSE + g * n + i, mask=i < n, other=float("inf"))
    row, inside = g * n + i, i < n
    steps, a, group, w, word = start_walk(GROUPS, STEPS, row, n, inside)
    acc = tl.zeros([BP, BD], tl.float32)
    for _ in range(steps):
        a, group, w, word, j, live = next_kept(WORDS, GROUPS, row, n, inside, a, group, w, word)
        bucket = tl.zeros([BP], tl.int32)
        if HAS_QR or HAS_KR or HAS_RV:
            bucket = tl.load(BUCKET + i * n + j, mask=live, other=0).to(tl.int32)
        k = gather_rows(K, j, skn, live, D, BD)
        p = pair_weight(q, k, QR + g * n * R, KR + g * n * R, bucket, i, j, lse, live, scale_log2,
                        R, HAS_QR, HAS_KR)  # fmt: skip
        v = gather_rows(V, j, svn, live, D, BD)
        if HAS_RV:
            v += gather_table(RV + head * srv, bucket, live, R, D, BD)
        acc += p[:, None] * v
    store_tile(O + g * n * D, acc, i, n, D, BD)


@triton.jit
def pairs_backward_queries(
    Q, K, V, O, DO, LSE, WORDS, GROUPS, STEPS, QR, KR, BUCKET, RK, RV, DELTA, DQ, DQR, SUMS,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, srk, srv, n_heads, n, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_RV: tl.constexpr,
):  # fmt: skip
    """Compute dQ, D, and by bucket the sums of dS (DQR) and of p (SUMS) of BP query rows."""
    tile, g = locate(n, BP)
    b, head = g // n_heads, g % n_heads
    K += b * skb + head * skh
    V += b * svb + head * svh
    i = tile * BP + tl.arange(0, BP)
    q = load_rows(Q + b * sqb + head * sqh, i, sqn, n, D, BD, True)
    do = load_rows(DO + g * n * D, i, D, n, D, BD, True)
    delta = tl.sum(do * load_rows(O + g * n * D, i, D, n, D, BD, True), axis=1)
    tl.store(DELTA + g * n + i, delta, mask=i < n)
    lse = tl.load(LSE + g * n + i, mask=i < n, other=float("inf"))
    row, inside = g * n + i, i < n
    steps, a, group, w, word = start_walk(GROUPS, STEPS, row, n, inside)
    acc = tl.zeros([BP, BD], tl.float32)
    dqr = tl.zeros([BP, BR], tl.float32)
    sums = tl.zeros([BP, BR], tl.float32)
    lane = tl.arange(0, BR)[None, :]
    for _ in range(steps):
        a, group, w, word, j, live = next_kept(WORDS, GROUPS, row, n, inside, a, group, w, word)
        bucket = tl.zeros([BP], tl.int32)
        if HAS_QR or HAS_KR or HAS_RV:
            bucket = tl.load(BUCKET + i * n + j, mask=live, other=0).to(tl.int32)
        k = gather_rows(K, j, skn, live, D, BD)
        p = pair_weight(q, k, QR + g * n * R, KR + g * n * R, bucket, i, j, lse, live, scale_log2,
                        R, HAS_QR, HAS_KR)  # fmt: skip
        v = gather_rows(V, j, svn, live, D, BD)
        if HAS_RV:
            v += gather_table(RV + head * srv, bucket, live, R, D, BD)
            sums += tl.where(lane == bucket[:, None], p[:, None], 0.0)
        ds = p * (tl.sum(do * v, axis=1) - delta) * scale
        if HAS_QR:
            k += gather_table(RK + head * srk, bucket, live, R, D, BD)
            dqr += tl.where(lane == bucket[:, None], ds[:, None], 0.0)
        acc += ds[:, None] * k
    store_tile(DQ + g * n * D, acc, i, n, D, BD)
    if HAS_QR:
        store_tile(DQR + g * n * R, dqr, i, n, R, BR)
    if HAS_RV:
        store_tile(SUMS + g * n * R, sums, i, n, R, BR)


@triton.jit
def pairs_backward_keys(
    Q, K, V, DO, LSE, WORDS, GROUPS, STEPS, QR, KR, BUCKET, RQ, RV, DELTA, DK, DV, DKR,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, srq, srv, n_heads, n, scale, scale_log2,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
    HAS_QR: tl.constexpr, HAS_KR: tl.constexpr, HAS_RV: tl.constexpr,
):  # fmt: skip
    """Compute dK, dV and the sums of dS by bucket (DKR) of BP keys; WORDS: transposed bits."""
    tile, g = locate(n, BP)
    b, head = g // n_heads, g % n_heads
    Q += b * sqb + head * sqh
    DO += g * n * D
    j = tile * BP + tl.arange(0, BP)
    k = load_rows(K + b * skb + head * skh, j, skn, n, D, BD, True)
    v = load_rows(V + b * svb + head * svh, j, svn, n, D, BD, True)
    row, inside = g * n + j, j < n
    steps, a, group, w, word = start_walk(GROUPS, STEPS, row, n, inside)
    dk = tl.zeros([BP, BD], tl.float32)
    dv = tl.zeros([BP, BD], tl.float32)
    dkr = tl.zeros([BP, BR], tl.float32)
    lane = tl.arange(0, BR)[None, :]
    for _ in range(steps):
        a, group, w, word, i, live = next_kept(WORDS, GROUPS, row, n, inside, a, group, w, word)
        bucket = tl.zeros([BP], tl.int32)
        if HAS_QR or HAS_KR or HAS_RV:
            bucket = tl.load(BUCKET + i * n + j, mask=live, other=0).to(tl.int32)
        q = gather_rows(Q, i, sqn, live, D, BD)
        do = gather_rows(DO, i, D, live, D, BD)
        lse = tl.load(LSE + g * n + i, mask=live, other=float("inf"))
        delta = tl.load(DELTA + g * n + i, mask=live, other=0.0)
        p = pair_weight(q, k, QR + g * n * R, KR + g * n * R, bucket, i, j, lse, live, scale_log2,
                        R, HAS_QR, HAS_KR)  # fmt: skip
        dv += p[:, None] * do
        value = v
        if HAS_RV:
            value += gather_table(RV + head * srv, bucket, live, R, D, BD)
        ds = p * (tl.sum(do * value, axis=1) - delta) * scale
        if HAS_KR:
            q += gather_table(RQ + head * srq, bucket, live, R, D, BD)
            dkr += tl.where(lane == bucket[:, None], ds[:, None], 0.0)
        dk += ds[:, None] * q
    store_tile(DK + g * n * D, dk, j, n, D, BD)
    store_tile(DV + g * n * D, dv, j, n, D, BD)
    if HAS_KR:
        store_tile(DKR + g * n * R, dkr, j, n, R, BR)


@triton.jit
def transpose_bits(BITS, OUT, n, BJ: tl.constexpr):
    """Write word w of key j: bit b says whether query 32 w + b keeps it."""
    tile, g = locate(n, BJ)
    n_words = (n + 31) // 32
    j = tile * BJ + tl.arange(0, BJ)
    w = tl.program_id(1)
    lane = tl.arange(0, 32)
    i = w * 32 + lane
    inside = (j[:, None] < n) & (i[None, :] < n)
    at = i[None, :] * (2 * n_words) + (j[:, None] >> 4)
    half = tl.load(BITS + g * n * 2 * n_words + at, mask=inside, other=0).to(tl.int32)
    word = tl.sum(((half >> (j[:, None] & 15)) & 1) << lane[None, :], axis=1)
    tl.store(OUT + g * n * n_words + j.to(tl.int64) * n_words + w, word, mask=j < n)
