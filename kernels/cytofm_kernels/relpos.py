"""Image relative position encoding (iRPE): bucket tables of the product method.

Wu et al., ICCV 2021 (arXiv:2107.14222). Shapes: N tokens, H heads, d channels a head,
R buckets. Tokens are the prefix (class token, registers) followed by the grid, row-major.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_RATIO = 1.9  # 7 x 7 buckets and one for the prefix: the paper's setting


@dataclass(frozen=True, kw_only=True)
class RelPos:
    """Describe the relative term `R_ij = q_i . table_q[b] + k_j . table_k[b]`, `b = bucket[i, j]`.

    The names follow the token that owns the table in iRPE's code: `table_k` is the paper's
    r^K, met by the query (RPE-K); `table_q` is r^Q, met by the key (RPE-Q); `table_v` is r^V,
    added to the values (RPE-V). So, with Cyto-SSL eq. 7-9,

        P_ij = (q_i . k_j + q_i . r^K[b_ij] + k_j . r^Q[b_ij]) * scale
        O_i  = sum_j A_ij (v_j + r^V[b_ij])

    Args:
        bucket: (N, N) integers in [0, R), row = query, column = key, on the device of q. uint8 is
            read as it is; other types are range-checked and converted at every call.
        table_q: (1 or H, d, R), or None for no such term.
        table_k: (1 or H, d, R), or None.
        table_v: (1 or H, R, d), or None.
    """

    bucket: Tensor
    table_q: Tensor | None = None
    table_k: Tensor | None = None
    table_v: Tensor | None = None

    @classmethod
    def product(
        cls,
        *,
        grid_hw: tuple[int, int],
        n_prefix: int = 0,
        ratio: float = DEFAULT_RATIO,
        table_q: Tensor | None = None,
        table_k: Tensor | None = None,
        table_v: Tensor | None = None,
    ) -> RelPos:
        """Build the product method from the grid; keep `bucket` if you call this often."""
        table = next((t for t in (table_q, table_k, table_v) if t is not None), None)
        device = table.device if table is not None else None
        bucket = product_buckets(grid_hw, n_prefix, ratio, device=device)
        return cls(bucket=bucket, table_q=table_q, table_k=table_k, table_v=table_v)


def axis_bucket(delta: int, ratio: float = DEFAULT_RATIO) -> int:
    """Map a signed offset to its signed bucket, iRPE's piecewise function g.

    `|x| <= ratio` is rounded; beyond, the bucket grows with the logarithm, is clipped at
    `2 ratio`, and only then truncated (so 3.8 gives 3): alpha, beta, gamma = ratio * (1, 2, 8).
    """
    size = abs(delta)
    if size > ratio:
        grown = round(ratio + math.log(size / ratio) / math.log(8.0) * ratio)
        size = int(min(grown, 2 * ratio))
    return int(math.copysign(size, delta)) if delta else 0


def product_n_buckets(n_prefix: int = 0, ratio: float = DEFAULT_RATIO) -> int:
    """Count the buckets of the product method: 50 with a class token at ratio 1.9."""
    side = 2 * int(2 * ratio) + 1
    return side * side + (1 if n_prefix else 0)


def product_buckets(
    grid_hw: tuple[int, int],
    n_prefix: int = 0,
    ratio: float = DEFAULT_RATIO,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Tabulate the product method: bucket of (query i, key j).

    Args:
        grid_hw: patch grid (rows, columns).
        n_prefix: tokens before the grid; every pair that holds one uses the last bucket.
        ratio: 1.9 gives 7 values an axis (0, 1, 2-3, >= 4 and their negatives).

    Returns:
        (N, N) uint8 (int32 above 256 buckets), N = n_prefix + rows * columns.
    """
    n_rows, n_cols = grid_hw
    beta = int(2 * ratio)
    side = 2 * beta + 1
    dtype = torch.uint8 if product_n_buckets(n_prefix, ratio) <= 256 else torch.int32
    axis = [_axis_table(n, ratio) + beta for n in (n_rows, n_cols)]
    grid = axis[0][:, None, :, None] * side + axis[1][None, :, None, :]
    n_grid = n_rows * n_cols
    bucket = torch.full((n_prefix + n_grid,) * 2, side * side, dtype=torch.int64)
    bucket[n_prefix:, n_prefix:] = grid.reshape(n_grid, n_grid)
    return bucket.to(dtype=dtype, device=device)


def _axis_table(n: int, ratio: float) -> Tensor:
    """Tabulate g(query - key) along one axis: (n, n) int64."""
    values = torch.tensor([axis_bucket(x, ratio) for x in range(-(n - 1), n)])
    at = torch.arange(n)
    return values[at[:, None] - at[None, :] + n - 1]
