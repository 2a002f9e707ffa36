"""Memory that is freed goes back to the system; "out of memory" is one error.

glibc gives each thread a heap of its own and keeps what is freed in it: after two threads have
decoded tiles, 100 MB and more that nobody uses. One heap and a trim now and then cost nothing that
can be measured where the work is done in large arrays.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Final

from cytofm_cli.errors import CytofmError, OutOfMemoryError

# TorchScript wraps torch's own error into a RuntimeError; PyTorch's allocator on the CPU, cuBLAS
# and cuDNN have no class of their own.
_SAID: Final = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "_ALLOC_FAILED")


_M_TRIM_THRESHOLD: Final = -1  # of glibc's malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_BLOCK_BYTES: Final = 32 << 20  # the most that glibc takes
_KEPT_BYTES: Final = 64 << 20


def share_heap() -> None:
    """Let all threads that this process will start allocate from one heap; needs glibc."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@functools.cache
def keep_freed() -> None:
    """Let this process keep 64 MB of what is freed, for loops over blocks of about a megabyte.

    By default glibc gives the end of its heap back after nearly every round, and the page faults to
    get it again cost views a fifth of their time, CLAM's training a quarter and `handcrafted` a
    third. Blocks of more than 32 MiB still come from the system; `give_back` gives all back.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def limit_memory(n_bytes: int) -> None:
    """Let this process allocate so much and no more; what asks for more fails. As far as can be.

    Files that are mapped do not count. Not for processes that load torch, which reserves far more
    than it uses.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        within = n_bytes if most == resource.RLIM_INFINITY else min(n_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (within, most))


def give_back() -> None:
    """Give what is freed back to the system; without glibc, do nothing."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


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
