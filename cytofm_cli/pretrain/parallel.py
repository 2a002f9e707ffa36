"""One method over several processes: copies (DDP) or sharded weights (FSDP)."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cytofm_cli.pretrain.base import Learner, Method
from cytofm_cli.pretrain.distributed import World

L = TypeVar("L", bound=Learner)


def prepare(method: L, device: torch.device, world: World) -> L:
    """Move a method to its device; batch statistics are of all processes on GPUs.

    On CPUs each process keeps the statistics of its own share: torch has no other there.
    """
    moved = method.to(device)
    if world.size > 1 and device.type == "cuda":
        moved = cast("L", nn.SyncBatchNorm.convert_sync_batchnorm(moved))  # type: ignore[no-untyped-call]
    return moved


def wrap(method: Learner, kind: str, world: World, device: torch.device) -> nn.Module:
    """Return what is called in the place of the method; build the optimiser afterwards.

    Args:
        method: prepared.
        kind: "ddp": a copy in each process; "fsdp": every process holds a share of all weights
            and gathers those of a block while it is at work.
        world: the processes.
        device: of this process.
    """
    if world.size == 1:
        return method
    if kind == "fsdp":
        _shard(cast("Method", method))
        return method
    ids = [device.index] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(method, device_ids=ids)
    # Buffers follow from what all processes share. The argument that says so has one name in old
    # versions of torch and another in new ones; the attribute is in all.
    wrapped.broadcast_buffers = False
    return wrapped


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with sharded weights gathered; all processes must call."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def whole(value: Tensor) -> Tensor:
    """Gather a tensor that is sharded; all processes must call."""
    if not is_sharded(value):
        return value
    gathered: Tensor = value.full_tensor()  # type: ignore[attr-defined]
    return gathered


def is_sharded(value: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, without importing half of torch to know."""
    return hasattr(value, "full_tensor")


def _shard(method: Method) -> None:
    from torch.distributed.fsdp import fully_shard

    for trunk in {id(t): t for t in (method.student(), method.encoder())}.values():
        for block in _blocks(trunk):
            fully_shard(block)
        fully_shard(trunk)
    fully_shard(method)


def _blocks(trunk: nn.Module) -> list[nn.Module]:
    lists = [module for module in trunk.modules() if isinstance(module, nn.ModuleList)]
    longest = max(lists, key=len, default=None)
    return list(longest) if longest is not None else []
