"""What every run of the loop does around it: threads, and word of how it ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from cytofm_cli.errors import CytofmError, StoppedError
from cytofm_cli.pretrain import run_folder
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.runs import folder


def take_threads(wanted: int | None, out: Path, *, overwrite: bool) -> int:
    """Set and return the threads of this process: as asked, as begun, or its share of the node.

    With another number of threads torch adds in another order, so a RUN keeps to its own.
    """
    from cytofm_cli.work.cpus import cpu_count

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    begun = None if overwrite else run_folder.begun_threads(out)
    threads = wanted or begun or max(1, cpu_count() // local)
    torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def leaving_word(out: Path, world: World) -> Iterator[None]:
    """Let the RUN folder tell how training ended where it did not finish."""
    try:
        yield
    except StoppedError as error:
        if world.is_main:  # torchrun hides exit codes: batch scripts look at this
            folder.mark_stopped(out, error.message)
        raise
    except CytofmError:
        if world.is_main:
            run_folder.forget_false_start(out)
        raise
