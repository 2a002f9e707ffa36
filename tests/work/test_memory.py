"""Freed memory goes back; every way to say "out of memory" becomes one error, others pass."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

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


# Four threads fill their heaps with blocks below malloc's limit for pages of their own, and free
# all but the last, which holds the rest.
_THREADS = """
import json, pathlib, re, sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from cytofm_cli.work import memory

def mb():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) / 1e3

if sys.argv[1] == "shared":
    memory.share_heap()
together = Barrier(4)
def fill(_):
    together.wait()
    return [bytearray(60_000) for _ in range(400)][-1]
before = mb()
with ThreadPoolExecutor(4) as pool:
    last = list(pool.map(fill, range(4)))
freed = mb() - before
memory.give_back()
print(json.dumps([freed, mb() - before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of glibc")
@pytest.mark.parametrize("heap", ["shared", "own"])
def test_give_back__what_threads_have_freed_is_the_systems_again(heap: str) -> None:
    command = [sys.executable, "-c", _THREADS, heap]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    freed_mb, left_mb = json.loads(done.stdout)
    assert freed_mb > 10
    assert left_mb < freed_mb / 3


# Rounds of five blocks of a megabyte, each touched: page faults after the first rounds.
_ROUNDS = """
import resource, sys
from cytofm_cli.work import memory

if sys.argv[1] == "kept":
    memory.keep_freed()
for number in range(60):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"x") * (1 << 20) for _ in range(5)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of glibc")
def test_keep_freed__blocks_of_a_loop_are_not_mapped_anew() -> None:
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", _ROUNDS, how]))
        for how in ("kept", "default")
    }
    # What glibc does by default depends on the machine and on what came before.
    assert faults["kept"] < 40
    assert faults["kept"] <= max(faults["default"], 10)
