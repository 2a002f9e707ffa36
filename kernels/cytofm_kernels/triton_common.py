"""Triton building blocks: score tiles, threshold search, selection bits.

Shapes: M query rows of a tile, C keys of a chunk, D padded channels, R buckets. Scores are unscaled
(eq. 7), float32, -inf for keys that may not be attended. Triton code is untyped by convention.
"""
# ruff: noqa: ANN001, ANN201, PLR0124
# mypy: ignore-errors

import triton
import triton.language as tl

# Float midpoints first (fast on smooth data), then integer ones, which need at most 32 more.
FLOAT_STEPS = tl.constexpr(20)
MAX_STEPS = tl.constexpr(56)


@triton.jit
def ordered(bits):
    """Map float32 bits to integers of the same order; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def to_ordered(x):
    """Return the ordered integer of a float32."""
    return ordered(x.to(tl.int32, bitcast=True))


@triton.jit
def to_float(i):
    """Return the float32 of an ordered integer."""
    return ordered(i).to(tl.float32, bitcast=True)


@triton.jit
def midpoint(lo, hi, step):
    """Return an ordered integer strictly between `lo` and `hi` (where there is one)."""
    floor = (lo >> 1) + (hi >> 1) + (lo & hi & 1)  # the sum may overflow
    x = 0.5 * to_float(lo) + 0.5 * to_float(hi)
    fine = (step < FLOAT_STEPS) & (tl.abs(x) < float("inf"))  # false for NaN
    mid = tl.where(fine, to_ordered(x), floor)
    return tl.minimum(tl.maximum(mid, lo + 1), hi - 1)


@triton.jit
def locate(n, B: tl.constexpr):
    """Split the program index into a tile of B rows and a head, (batch, head) folded.

    One axis, tiles fastest: a grid's other axes end at 65535 programs.
    """
    n_tiles = (n + B - 1) // B
    pid = tl.program_id(0)
    return pid % n_tiles, (pid // n_tiles).to(tl.int64)


@triton.jit
def load_rows(X, offs, stride, n, D: tl.constexpr, BD: tl.constexpr, UPCAST: tl.constexpr):
    """Load rows `offs` of a (n, D) matrix as (len(offs), BD), zero outside."""
    cols = tl.arange(0, BD)
    inside = (offs[:, None] < n) & (cols[None, :] < D)
    x = tl.load(X + offs[:, None] * stride + cols[None, :], mask=inside, other=0.0)
    return x.to(tl.float32) if UPCAST else x


@triton.jit
def score_tile(
    q, K, QR, KR, BUCKET, MASK, offs_m, offs_n, stride_kn, n,
    D: tl.constexpr, BD: tl.constexpr, R: tl.constexpr, HAS_QR: tl.constexpr,
    HAS_KR: tl.constexpr, HAS_MASK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Compute unscaled scores (M, C). The bias enters as the accumulator: any other way makes the
    compiler leave the tensor-core layout (7 instead of 2.6 instructions a score and pass).
    """
    k = load_rows(K, offs_n, stride_kn, n, D, BD, UPCAST)
    valid = offs_n < n
    if HAS_MASK:
        valid = valid & (tl.load(MASK + offs_n, mask=valid, other=0) != 0)
    if HAS_QR or HAS_KR:
        acc = relative_tile(QR, KR, BUCKET, offs_m, offs_n, n, R, HAS_QR, HAS_KR)
        s = tl.dot(q, k.T, acc=acc, input_precision="tf32x3")
    else:
        s = tl.dot(q, k.T, input_precision="tf32x3")
    return tl.where(valid[None, :], s, float("-inf"))


@triton.jit
def relative_tile(
    QR, KR, BUCKET, offs_m, offs_n, n,
    R: tl.constexpr, HAS_QR: tl.constexpr, HAS_KR: tl.constexpr,
):  # fmt: skip
    """Gather `q_i . r^K[b_ij] + k_j . r^Q[b_ij]` from the (n, R) products; a bucket outside of the
    table reads NaN, so a wrong index shows.
    """
    inside = (offs_m[:, None] < n) & (offs_n[None, :] < n)
    at = offs_m[:, None] * n + offs_n[None, :]  # int32: launch refuses n * n >= 2**31
    b = tl.load(BUCKET + at, mask=inside, other=0).to(tl.int32)
    known = inside & (b < R) & (b >= 0)
    nan = float("nan")
    if HAS_QR:
        bias = tl.load(QR + offs_m[:, None] * R + b, mask=known, other=nan)
        if HAS_KR:
            bias += tl.load(KR + offs_n[None, :] * R + b, mask=known, other=0.0)
    else:
        bias = tl.load(KR + offs_n[None, :] * R + b, mask=known, other=nan)
    return bias


@triton.jit
def at_least(chunks, t, NC: tl.constexpr):
    """Count the scores of each row that are not below `t` (so NaN counts)."""
    c = tl.sum(tl.where(chunks[0] < t[:, None], 0.0, 1.0), axis=1)
    for i in tl.static_range(1, NC):
        c += tl.sum(tl.where(chunks[i] < t[:, None], 0.0, 1.0), axis=1)
    return c


@triton.jit
def row_max(chunks, NC: tl.constexpr):
    """Return each row's maximum."""
    m = tl.max(chunks[0], axis=1)
    for i in tl.static_range(1, NC):
        m = tl.maximum(m, tl.max(chunks[i], axis=1))
    return m


@triton.jit
def row_min_valid(chunks, NC: tl.constexpr):
    """Return each row's minimum over the entries that are not -inf (+inf if there is none)."""
    inf = float("inf")
    m = tl.min(tl.where(chunks[0] == -inf, inf, chunks[0]), axis=1)
    for i in tl.static_range(1, NC):
        m = tl.minimum(m, tl.min(tl.where(chunks[i] == -inf, inf, chunks[i]), axis=1))
    return m


@triton.jit
def threshold(chunks, m, h, live, NC: tl.constexpr):
    """Find t with exactly h scores >= t, or, on ties, the h-th largest score itself (eq. 5).

    Bisection with early exit: any value between the h-th and the (h+1)-th score will do. Invariant
    of the bracket: count(>= lo) >= h > count(>= hi). Fewer than h valid keys give -inf. `live`
    marks rows inside of the matrix: others must not hold up the exit.
    """
    low = row_min_valid(chunks, NC)
    active = live & (at_least(chunks, low, NC) > h) & (m == m)
    lo = tl.where(active, to_ordered(low), to_ordered(tl.full(m.shape, float("-inf"), tl.float32)))
    hi = to_ordered(m) + 1
    active = active & (hi > lo + 1)
    step = 0
    while (step < MAX_STEPS) & (tl.max(active.to(tl.int32), axis=0) > 0):
        mid = midpoint(lo, hi, step)
        c = at_least(chunks, to_float(mid), NC)
        lo = tl.where(active & (c >= h), mid, lo)
        hi = tl.where(active & (c < h), mid, hi)
        active = active & (c != h) & (hi > lo + 1)
        step += 1
    return to_float(lo)


@triton.jit
def kept(s, t, last_tie, offs_n, FIRST: tl.constexpr):
    """Mark the kept keys; NaN is kept, -inf never. Ties at keys from `last_tie` on are dropped."""
    keep = (s < t[:, None]) | (s == float("-inf"))
    keep = keep == 0
    if FIRST:
        dropped = (s == t[:, None]) & (offs_n[None, :] >= last_tie[:, None])
        keep = keep & (dropped == 0)
    return keep


@triton.jit
def store_bits(BITS, keep, offs_m, first, n, n_halves, M: tl.constexpr, C: tl.constexpr):
    """Store a selection tile, 16 keys an int16; bit j of half word w is key 16 w + j."""
    bit = (1 << tl.arange(0, 16))[None, None, :]
    half = tl.sum(tl.reshape(keep.to(tl.int32), (M, C // 16, 16)) * bit, axis=2)
    at = first // 16 + tl.arange(0, C // 16)
    inside = (offs_m[:, None] < n) & (at[None, :] < n_halves)
    where = BITS + offs_m.to(tl.int64)[:, None] * n_halves + at[None, :]
    tl.store(where, half.to(tl.int16), mask=inside)
