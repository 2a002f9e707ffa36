"""The configurations that are compiled ahead of time: plans turned into kernel signatures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cytofm_kernels.plan import (
    SUMMARY_ROWS,
    TRANSPOSE_KEYS,
    backward_plan,
    forward_plan,
    padded_dim,
    pair_rows,
    power_of_two,
    values_by_pairs,
)

STRIDES = ("sqb", "sqh", "sqn", "skb", "skh", "skn", "svb", "svh", "svn")


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """One kernel with its argument types and constants."""

    name: str
    module: str
    function: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    scores_per_lane: float
    aligned: frozenset[str] = field(default=frozenset())

    def kernel(self) -> Any:
        """Import Triton and return the kernel."""
        from importlib import import_module

        return getattr(import_module(f"cytofm_kernels.{self.module}"), self.function)


def forward_config(
    n: int,
    dim: int,
    dtype: str,
    *,
    bias: bool = False,
    value_table: bool = False,
    wide: bool = True,
) -> KernelConfig:
    """Describe the forward kernel that a call of this shape launches (dtype: bf16, fp16, fp32)."""
    itemsize = 4 if dtype == "fp32" else 2
    dense_values = not (value_table or values_by_pairs(dim, itemsize))
    plan = forward_plan(n, dim, itemsize, bias=bias, dense_values=dense_values, wide=wide)
    types = dict.fromkeys(("Q", "K", "V", "O"), f"*{dtype}")
    types |= {"LSE": "*fp32", "BITS": "*i16", "QR": "*fp32", "KR": "*fp32"}
    types |= {"BUCKET": "*u8", "MASK": "*u8", **dict.fromkeys(STRIDES, "i64")}
    types |= {"n_heads": "i32", "n": "i32", "h": "i32", "scale_log2": "fp32"}
    c = (*plan.chunks, 0, 0)[:3]
    blocks = {"BN": plan.block_n} if plan.streaming else {"C0": c[0], "C1": c[1], "C2": c[2]}
    constants = {
        "D": dim, "BD": padded_dim(dim), "R": 50 if bias else 1, "BM": plan.block_m, **blocks,
        "HAS_QR": bias, "HAS_KR": bias, "HAS_MASK": False, "FIRST": False,
        "STORE_O": dense_values, "STORE_BITS": True, "UPCAST": False,
    }  # fmt: skip
    width = plan.block_n if plan.streaming else sum(plan.chunks)
    return KernelConfig(
        name=f"forward_{'stream' if plan.streaming else 'row'} n={n} d={dim} {dtype}"
        + (" irpe" if bias else "")
        + (" values by pairs" if not dense_values else ""),
        module="triton_forward",
        function="forward_stream" if plan.streaming else "forward_row",
        types=types,
        constants=constants,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
        scores_per_lane=plan.block_m * width / (32 * plan.num_warps),
        aligned=frozenset({*STRIDES, "Q", "K", "V", "O", "LSE", "BITS", "QR", "KR", "BUCKET"}),
    )


def _common(dim: int, dtype: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Give argument types and constants that every backward kernel has."""
    types = dict.fromkeys(("Q", "K", "V", "O", "DO", "DQ", "DK", "DV"), f"*{dtype}")
    types |= dict.fromkeys(("LSE", "DELTA", "QR", "KR", "RQ", "RK", "RV"), "*fp32")
    types |= dict.fromkeys(("DQR", "DKR", "SUMS"), "*fp32")
    types |= {
        "BITS": "*i16",
        "WORDS": "*i32",
        "GROUPS": "*i32",
        "STEPS": "*i32",
        "OUT": "*i32",
        "BUCKET": "*u8",
    }
    types |= dict.fromkeys((*STRIDES, "srq", "srk", "srv"), "i64")
    types |= {"n_heads": "i32", "n": "i32", "scale": "fp32", "scale_log2": "fp32"}
    return types, {"D": dim, "BD": padded_dim(dim), "UPCAST": False}


def _make(
    label: str,
    module: str,
    function: str,
    types: dict[str, str],
    constants: dict[str, Any],
    per_lane: float,
    num_stages: int = 2,
) -> KernelConfig:
    return KernelConfig(
        name=f"{function} {label}",
        module=module,
        function=function,
        types=types,
        constants=constants,
        num_warps=4,
        num_stages=num_stages,
        scores_per_lane=per_lane,
        aligned=frozenset(x for x, t in types.items() if t.startswith("*") or t == "i64"),
    )


def backward_configs(dim: int, dtype: str, *, wide: bool = True) -> tuple[KernelConfig, ...]:
    """Describe the two dense backward kernels."""
    types, constants = _common(dim, dtype)
    plan = backward_plan(dim, wide=wide)
    tiles = {"backward_queries": plan.queries, "backward_keys": plan.keys}
    return tuple(
        _make(
            f"d={dim} {dtype}", "triton_backward", name, types,
            {**constants, "BM": block_m, "BN": block_n}, block_m * block_n / 128, plan.num_stages,
        )
        for name, (block_m, block_n) in tiles.items()
    )  # fmt: skip


def pair_configs(n: int, dim: int, dtype: str, *, irpe: bool) -> tuple[KernelConfig, ...]:
    """Describe the kernels that walk kept pairs; their loops are counted a pair."""
    types, constants = _common(dim, dtype)
    n_buckets = 50 if irpe else 1
    owned = pair_rows(dim, 4 if dtype == "fp32" else 2)
    constants |= {
        "R": n_buckets, "BR": power_of_two(n_buckets), "BP": owned,
        "HAS_QR": irpe, "HAS_KR": irpe, "HAS_RV": irpe,
        "BJ": TRANSPOSE_KEYS,
    }  # fmt: skip
    names = ["pairs_backward_queries", "pairs_backward_keys", "transpose_bits", "summarise_words"]
    label = f"n={n} d={dim} {dtype}" + (" irpe" if irpe else "")
    return tuple(
        _make(
            label, "triton_pairs", f, types,
            {**constants, "BP": SUMMARY_ROWS} if f == "summarise_words" else constants,
            owned / 128,
        )
        for f in (["pairs_forward"] if irpe else []) + names
    )  # fmt: skip


def shipped(capability: int) -> tuple[KernelConfig, ...]:
    """List what is compiled and recorded: head sizes, lengths and dtypes that ViTs use."""
    wide = capability == 90
    forward = [
        forward_config(n, dim, dtype, wide=wide)
        for dtype in ("bf16", "fp16", "fp32")
        for dim in (32, 64, 128)
        for n in ((65, 197, 257, 1025) if dtype == "bf16" else (37, 197, 1025))
    ]
    biased = [
        forward_config(n, dim, dtype, bias=True, value_table=value_table, wide=wide)
        for n, dim, dtype, value_table in (
            (37, 64, "bf16", True), (197, 32, "bf16", True), (197, 64, "bf16", True),
            (197, 128, "bf16", True), (197, 64, "bf16", False), (197, 64, "fp16", True),
            (197, 64, "fp32", True), (257, 64, "bf16", True), (1025, 64, "bf16", True),
            (1025, 128, "bf16", True),
        )
    ]  # fmt: skip
    backward = [
        c
        for dtype in ("bf16", "fp16")
        for dim in (32, 64, 128)
        for c in backward_configs(dim, dtype, wide=wide)
    ]
    pairs = [
        c
        for n, dim, dtype, irpe in (
            (197, 64, "bf16", True), (1025, 64, "bf16", True), (4097, 64, "bf16", False),
            (4097, 128, "bf16", True), (197, 64, "fp32", True), (1025, 128, "fp32", True),
            (197, 32, "bf16", True),
        )
        for c in pair_configs(n, dim, dtype, irpe=irpe)
    ]  # fmt: skip
    return (*forward, *biased, *backward, *pairs)


def main_configs(capability: int) -> tuple[KernelConfig, ...]:
    """List the few that a test compiles each time: SR-ViT-tiny at 224 px, and long rows."""
    wide = capability == 90
    return (
        forward_config(197, 64, "bf16", wide=wide),
        *backward_configs(64, "bf16", wide=wide),
        forward_config(1025, 64, "bf16", wide=wide),
        forward_config(197, 64, "bf16", bias=True, value_table=True, wide=wide),
        *pair_configs(197, 64, "bf16", irpe=True)[:4],
    )
