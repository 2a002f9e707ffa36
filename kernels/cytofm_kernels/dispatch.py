"""Choose who computes: Triton kernel, CPU path, or plain torch; and say why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

Backend = Literal["auto", "triton", "cpu", "reference"]
BACKENDS = ("auto", "triton", "cpu", "reference")

MAX_HEAD_DIM = 128
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Capabilities whose machine code the kernels were compiled for (8.0, 9.0) or that run the
# 8.0 kind of instructions; anything else gets the reference path.
KNOWN_CAPABILITIES = frozenset({(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which backend serves a call, and the reason in one line; `fused` is False for plain torch."""

    backend: Literal["triton", "cpu", "reference"]
    reason: str

    @property
    def fused(self) -> bool:
        """Tell whether this is one of the fast paths."""
        return self.backend != "reference"


def explain(
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
) -> Choice:
    """Say which backend `backend="auto"` takes for these tensors, and why. Costs no kernel launch.

    Args:
        device: default: the current CUDA device if there is one, else the CPU.
        dtype: of q, k and v.
        head_dim: channels a head.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cpu":
        return Choice(backend="cpu", reason="CPU tensors: fused PyTorch path")
    blocker = triton_blocker(device, dtype, head_dim)
    if blocker:
        return Choice(backend="reference", reason=blocker)
    name = torch.cuda.get_device_name(device)
    return Choice(backend="triton", reason=f"Triton kernels on {name}")


def triton_blocker(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Say what keeps the Triton kernels from serving, or return an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype not in TRITON_DTYPES:
        return f"no Triton kernel for {dtype}"
    if head_dim > MAX_HEAD_DIM:
        return f"no Triton kernel for {head_dim} channels a head (at most {MAX_HEAD_DIM})"
    if device.type == "cpu":
        return "" if interpreting() else "Triton needs a GPU (or TRITON_INTERPRET=1)"
    if device.type != "cuda":
        return f"no Triton kernel for {device.type} devices"
    if torch.version.hip is not None:
        return "not compiled for AMD GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability not in KNOWN_CAPABILITIES:
        return f"GPU of unknown compute capability {capability[0]}.{capability[1]}"
    return ""


def interpreting() -> bool:
    """Tell whether Triton runs in its interpreter, that is, on CPU tensors."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
