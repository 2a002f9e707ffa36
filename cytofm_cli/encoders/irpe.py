"""Image relative position encoding: which bucket a pair of tokens falls into, and the tables.

Wu et al., ICCV 2021 (arXiv:2107.14222). Tokens are the prefix (class token, registers), then
the patch grid row by row. Δ = position of the query − position of the key, rows then columns.

Letters: N tokens, H heads, D channels a head, R buckets.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from cytofm_cli.errors import UsageError

Method = Literal["product", "cross", "euclidean", "quantised"]
Mode = Literal["contextual", "bias"]

# Ratios of the named configurations of the paper's code.
DEFAULT_RATIO: dict[str, float] = {
    "product": 1.9,
    "cross": 20.0,
    "euclidean": 20.0,
    "quantised": 33.0,
}


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of an image lie.

    Attributes:
        hw: rows and columns of the patch grid.
        n_prefix: tokens before the patches (class token, registers).
    """

    hw: tuple[int, int]
    n_prefix: int

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_prefix + self.hw[0] * self.hw[1]


@dataclass(frozen=True, kw_only=True)
class IrpeConfig:
    """How relative positions enter attention.

    Attributes:
        method: product and cross know directions; euclidean and quantised only distances.
        mode: contextual: a vector a bucket, met by q, k or v; bias: a number a bucket.
        on: where it enters, letters of `qkv`; k is met by the queries (the paper's RPE-K).
        ratio: α of the index function, in patches; None: the paper's for the method.
        share_heads: one table for all heads.
    """

    method: Method = "product"
    mode: Mode = "contextual"
    on: str = "qkv"
    ratio: float | None = None
    share_heads: bool = True

    def __post_init__(self) -> None:
        if self.method not in DEFAULT_RATIO:
            raise UsageError(f"iRPE has no method {self.method!r}.", hint=", ".join(DEFAULT_RATIO))
        if self.mode not in ("contextual", "bias"):
            raise UsageError(f"iRPE has no mode {self.mode!r}.", hint="contextual, bias")
        if not self.on or set(self.on) - set("qkv"):
            raise UsageError(f"iRPE on {self.on!r}: letters of qkv expected.")
        if self.mode == "bias" and "v" in self.on:
            raise UsageError("iRPE's bias mode acts on scores only.", hint="on = 'k' or 'qk'")
        if self.ratio is not None and not self.ratio >= 1:
            raise UsageError(f"iRPE's ratio is {self.ratio}, expected 1 or more.")

    @property
    def alpha(self) -> float:
        """Offset up to which every value has its own bucket."""
        return DEFAULT_RATIO[self.method] if self.ratio is None else self.ratio


def piecewise_index(offset: float, alpha: float) -> int:
    """Map an offset to its signed bucket: exact near, logarithmic far, then constant.

    With β = 2α and γ = 8α: round(x) where |x| ≤ α, else sign(x) · min(round(α + ln(|x|/α) /
    ln(γ/α) · (β − α)), β), truncated last, so that β = 3.8 gives 3 (arXiv:2107.14222, eq. 18).
    """
    size = abs(offset)
    if size <= alpha:
        return round(offset)
    grown = round(alpha + math.log(size / alpha) / math.log(8.0) * alpha)
    return int(math.copysign(int(min(grown, 2 * alpha)), offset))


def table_rows(method: Method, alpha: float) -> tuple[int, ...]:
    """Return the number of rows of each table, without the prefix's: cross has two tables."""
    side = 2 * int(2 * alpha) + 1
    return {"product": (side * side,), "cross": (side, side)}.get(method, (side,))


def n_buckets(config: IrpeConfig, grid: TokenGrid) -> int:
    """Return R, with the one bucket of all pairs that hold a prefix token: 50 by default.

    Cross has a table for rows and one for columns; here every pair of their rows that the grid
    can meet is one bucket, so that one look-up serves all methods.
    """
    prefix = 1 if grid.n_prefix else 0
    if config.method == "cross":
        return math.prod(2 * reach + 1 for reach in _cross_reach(config, grid)) + prefix
    return table_rows(config.method, config.alpha)[0] + prefix


def _cross_reach(config: IrpeConfig, grid: TokenGrid) -> tuple[int, int]:
    """Return the largest bucket that an offset of rows, and of columns, falls into."""
    height, width = grid.hw
    return piecewise_index(height - 1, config.alpha), piecewise_index(width - 1, config.alpha)


def _patch_buckets(config: IrpeConfig, grid: TokenGrid) -> Tensor:
    """Return the bucket of every pair of patches, int64 (n, n)."""
    method, alpha = config.method, config.alpha
    height, width = grid.hw
    down, across = torch.arange(height), torch.arange(width)
    dy = (down[:, None] - down[None])[:, None, :, None].expand(height, width, height, width)
    dx = (across[:, None] - across[None])[None, :, None, :].expand(height, width, height, width)
    n = height * width
    if method in ("product", "cross"):
        far = max(grid.hw)
        index = torch.tensor([piecewise_index(d, alpha) for d in range(1 - far, far)])
        both = (int(2 * alpha),) * 2 if method == "product" else _cross_reach(config, grid)
        rows, columns = index[dy + far - 1] + both[0], index[dx + far - 1] + both[1]
        return (rows * (2 * both[1] + 1) + columns).reshape(n, n)
    squared = dy**2 + dx**2
    distances: list[float] = list(range(int(squared.max()) + 1))
    if method == "euclidean":
        distances = [round(math.sqrt(d)) for d in distances]
    return torch.tensor([piecewise_index(d, alpha) for d in distances])[squared].reshape(n, n)


def buckets(config: IrpeConfig, grid: TokenGrid, device: torch.device) -> Tensor:
    """Return the bucket of every pair (query, key), (N, N).

    Any pair with a prefix token on either side falls into the last bucket. uint8 where 256
    buckets suffice, which the kernels read as it is, else int32. Kept for later calls.
    """
    return cast("Tensor", _as_constant(config, *grid.hw, grid.n_prefix, device))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _as_constant(
    config: IrpeConfig, height: int, width: int, n_prefix: int, device: torch.device
) -> Tensor:
    return _buckets(config, TokenGrid((height, width), n_prefix), device)


@functools.lru_cache(maxsize=64)
def _buckets(config: IrpeConfig, grid: TokenGrid, device: torch.device) -> Tensor:
    n_all = n_buckets(config, grid)
    with torch.inference_mode(mode=False):  # the table outlives the call and may meet autograd
        found = torch.full((grid.n_tokens, grid.n_tokens), n_all - 1)
        found[grid.n_prefix :, grid.n_prefix :] = _patch_buckets(config, grid)
        return found.to(torch.uint8 if n_all <= 256 else torch.int32).to(device)


class RelativeTable(nn.Module):
    """A vector (contextual) or a number (bias) for every bucket, zero at first.

    Args:
        config: method and mode.
        n_heads: H; one table for all if `config.share_heads`.
        head_dim: D.
        n_prefix: prefix tokens; they share one more bucket.
        transposed: (H, D, R), met by q or k, instead of (H, R, D), added to v.

    The names of the parameters follow the paper's code, `rpe_k.lookup_table_weight` and, for
    cross, `.rp_rows` and `.rp_cols` (its RPE-Q tables index the mirrored offset, though).
    """

    def __init__(
        self,
        config: IrpeConfig,
        n_heads: int,
        head_dim: int,
        n_prefix: int,
        *,
        transposed: bool,
    ) -> None:
        super().__init__()
        heads = 1 if config.share_heads else n_heads
        self.config = config
        self.transposed = transposed
        rows = [n + (1 if n_prefix else 0) for n in table_rows(config.method, config.alpha)]

        def zeros(n_rows: int) -> nn.Parameter:
            if config.mode == "bias":
                return nn.Parameter(torch.zeros(heads, n_rows))
            shape = (heads, head_dim, n_rows) if transposed else (heads, n_rows, head_dim)
            return nn.Parameter(torch.zeros(shape))

        self.kind = "lookup_table_bias" if config.mode == "bias" else "lookup_table_weight"
        if config.method == "cross":
            self.rp_rows, self.rp_cols = nn.Module(), nn.Module()
            self.rp_rows.register_parameter(self.kind, zeros(rows[0]))
            self.rp_cols.register_parameter(self.kind, zeros(rows[1]))
        else:
            self.register_parameter(self.kind, zeros(rows[0]))

    def table(self, grid: TokenGrid) -> Tensor:
        """Return the table that `buckets` indexes: (1 or H, D, R), (1 or H, R, D) or (1 or H, R).

        For cross: the sums of a row's and a column's vector, for the pairs that `grid` can meet.
        """
        if self.config.method != "cross":
            only: Tensor = getattr(self, self.kind)
            return only
        axis = -1 if self.kind == "lookup_table_bias" or self.transposed else -2
        rows, columns = (
            getattr(part, self.kind).movedim(axis, 0) for part in (self.rp_rows, self.rp_cols)
        )
        (reach_y, reach_x), middle = _cross_reach(self.config, grid), int(2 * self.config.alpha)
        used_rows = rows[middle - reach_y : middle + reach_y + 1, None]
        used_columns = columns[None, middle - reach_x : middle + reach_x + 1]
        of_prefix = rows[2 * middle + 1 :] + columns[2 * middle + 1 :]
        pairs = (used_rows + used_columns).flatten(0, 1)
        return torch.cat([pairs, of_prefix]).movedim(0, axis)
