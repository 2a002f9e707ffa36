"""What every run of the loop does around it: threads, batches, the RUN folder, what is said."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cytofm_cli.errors import CytofmError, StoppedError
from cytofm_cli.pretrain import distributed, run_folder
from cytofm_cli.pretrain.data import Batches, Schedule, TileIndex
from cytofm_cli.pretrain.distributed import World
from cytofm_cli.pretrain.loop import Trainer
from cytofm_cli.runs import folder
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import Recipe


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


def with_threads(record: Mapping[str, Any], threads: int, device: torch.device) -> dict[str, Any]:
    """Return the record of a run that says with how many threads it computes, where they do."""
    of_threads = {run_folder.COMPUTE: {"threads": threads}} if device.type == "cpu" else {}
    return {**record, **of_threads}


def heard(note: Callable[[str], None], world: World) -> Callable[[str], None]:
    """Return `note` in the main process, and what says nothing in the others."""
    return note if world.is_main else lambda text: None


def say_where(trainer: Trainer[Any], note: Callable[[str], None]) -> None:
    """Say at which step a run goes on, and whether by another number of processes."""
    world = trainer.world
    if trainer.step:
        note(f"{trainer.run}: goes on at step {trainer.step} of {trainer.length.n_steps}")
    if trainer.begun_processes not in (None, world.size):
        note(
            f"warning: {trainer.run}: had {trainer.begun_processes} processes and goes on with "
            f"{world.size}: the weights will not be those of an undisturbed run."
        )


def batches_of(
    trainer: Trainer[Any],
    index: TileIndex,
    schedule: Schedule,
    *,
    recipe: Recipe,
    ncp: NcpConfig,
    threads: int | None,
) -> Batches:
    """Return the batches from the trainer's step on, read by `threads` (see `take_threads`)."""
    assert threads is not None
    return Batches(
        index,
        schedule,
        recipe=recipe,
        ncp=ncp,
        batch=trainer.config.batch,
        parts=trainer.config.accumulate,
        rank=trainer.world.rank,
        world=trainer.world.size,
        start=trainer.step,
        stop=trainer.length.n_steps,
        device=trainer.device,
        threads=threads,
    )


@contextlib.contextmanager
def underway(
    out: Path, record: Mapping[str, Any], world: World, device: torch.device, *, overwrite: bool
) -> Iterator[None]:
    """Hold a RUN folder, begun with `record` or gone on with, while a job's processes train.

    Raises:
        ConfigMismatchError: it was begun with other settings.
    """
    with contextlib.ExitStack() as stack:
        if world.is_main:
            stack.enter_context(folder.holding(out))
        stack.enter_context(distributed.process_group(world, device))
        if world.is_main:
            run_folder.prepare(out, record, overwrite=overwrite)
        distributed.barrier()
        stack.enter_context(_leaving_word(out, world))
        yield


@contextlib.contextmanager
def _leaving_word(out: Path, world: World) -> Iterator[None]:
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
