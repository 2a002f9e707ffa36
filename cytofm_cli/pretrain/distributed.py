"""Every collective of cytofm, in one place; without a process group each is the identity.

One rule decides whether a run is distributed: `RANK` and `WORLD_SIZE` are set, as torchrun sets
them. Slurm's own variables are never a reason to think so; tasks without torchrun are refused.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from cytofm_cli.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: 0 … size - 1; rank 0 writes.
        size: number of processes.
        local_rank: number of the process on its node, which chooses its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes."""
        return self.rank == 0


def find_world() -> World:
    """Read the place of this process from the environment of torchrun.

    Raises:
        UsageError: Slurm started several tasks without torchrun: each would train for itself.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return World(rank, size, int(os.environ.get("LOCAL_RANK", "0")))
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        raise UsageError(
            "Slurm started several tasks, but not through torchrun.",
            hint="srun --ntasks-per-node=1 torchrun --nnodes … --nproc-per-node … -m cytofm_cli",
        )
    return World()


@contextlib.contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes: NCCL between GPUs, gloo between CPUs."""
    if world.size == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=world.rank, world_size=world.size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes that take part in collectives."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_(x: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place, without gradient."""
    if size() > 1:
        dist.all_reduce(x)
    return x


def mean_(x: Tensor) -> Tensor:
    """Average a tensor over all processes, in place, without gradient."""
    return sum_(x).div_(size()) if size() > 1 else x


def any_process(flag: bool, device: torch.device) -> bool:
    """Tell every process whether one of them says so: all then act in the same step."""
    flags = torch.tensor([int(flag)], device=device)
    return bool(sum_(flags).item())


def gather(x_B: Tensor) -> Tensor:
    """Join the rows of all processes in the order of their ranks, without gradient."""
    if size() == 1:
        return x_B.detach()
    parts = [torch.empty_like(x_B) for _ in range(size())]
    dist.all_gather(parts, x_B.detach().contiguous())
    return torch.cat(parts)


def gather_with_grad(x_B: Tensor) -> Tensor:
    """Join the rows of all processes; gradients flow back to where each row came from.

    DDP averages gradients over processes. So if each process takes the mean over its own rows,
    or all take the same loss over all rows, the update is that of one process with all rows.
    """
    joined: Tensor = _Gather.apply(x_B) if size() > 1 else x_B
    return joined


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x_B: Tensor) -> Tensor:
        return gather(x_B)

    @staticmethod
    def backward(ctx: object, grad_B: Tensor) -> Tensor:
        # Every process holds a share of the gradient of every row: add them, keep one's own.
        return sum_(grad_B.contiguous().clone()).chunk(size())[rank()]


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        dist.barrier()
