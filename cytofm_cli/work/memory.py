"""One translation of "out of memory", which every library tells in its own way."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

from cytofm_cli.errors import CytofmError, OutOfMemoryError

# TorchScript wraps torch's own error into a RuntimeError; PyTorch's allocator on the CPU, cuBLAS
# and cuDNN have no class of their own.
_SAID: Final = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "_ALLOC_FAILED")


@contextlib.contextmanager
def out_of_memory(message: str, *, hint: str) -> Iterator[None]:
    """Turn "out of memory" of the device or of the machine into `OutOfMemoryError`.

    What is cached on the GPU is given back, so that a smaller try may fit.

    Args:
        message: what does not fit where.
        hint: what the user can do about it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CytofmError) or not is_out_of_memory(error):
            raise
        _empty_cache()
        raise OutOfMemoryError(message, hint=hint) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means too little memory; `torch.OutOfMemoryError` says so in words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def _empty_cache() -> None:
    torch = sys.modules.get("torch")  # without it loaded there is nothing to give back
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
