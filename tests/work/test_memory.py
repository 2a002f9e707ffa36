"""Every way to say "out of memory" becomes one error; other errors pass."""

from __future__ import annotations

import pytest
import torch

from cytofm_cli.errors import OutOfMemoryError
from cytofm_cli.work.memory import is_out_of_memory, out_of_memory

KINDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("The following operation failed in the TorchScript interpreter.\nout of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried 9 bytes"),
    RuntimeError("mmap: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", KINDS)
def test_out_of_memory__every_kind_becomes_ours(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError) as caught, out_of_memory("too big.", hint="smaller"):
        raise error
    assert (caught.value.message, caught.value.hint) == ("too big.", "smaller")
    assert caught.value.exit_code == 75
    assert caught.value.__cause__ is error


def test_out_of_memory__what_torch_really_raises() -> None:
    with pytest.raises(OutOfMemoryError), out_of_memory("too big.", hint="smaller"):
        torch.empty(2**60, dtype=torch.uint8)


def test_out_of_memory__other_errors_and_our_own_pass() -> None:
    own = OutOfMemoryError("not even one tile.", hint="a bigger machine")
    for error in (RuntimeError("shapes do not fit"), ValueError("out of memory"), own):
        with pytest.raises(type(error)) as caught, out_of_memory("too big.", hint="smaller"):
            raise error
        assert caught.value is error
    assert not is_out_of_memory(ValueError("out of memory"))
