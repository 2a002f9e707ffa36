"""A process of `test_two_processes__…`: its share of a batch, through DDP, in float64.

BatchNorm is left out: only GPUs can share its statistics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cytofm_cli.pretrain import distributed
from cytofm_cli.pretrain.base import Batch, Method

from .toys import make_batch, make_method, rows

CASES = ("dino", "dino sinkhorn", "ibot", "dinov2", "simclr", "moco", "byol", "distill")
STEPS = 3


def losses_and_gradients(case: str) -> dict[str, Tensor]:
    """Return the loss and the gradients of the last of some updates, and the state after it."""
    method = _method(case)
    wrapped = DistributedDataParallel(method) if distributed.size() > 1 else method
    for step in range(STEPS):
        method.zero_grad()
        out = wrapped(_share(case.split(maxsplit=1)[0], seed=step), step)
        out.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.1)
        method.after_update(step)
    found = {"loss": out.loss.detach()}
    found |= {f"state {key}": value for key, value in method.state_dict().items()}
    named = method.named_parameters()
    return found | {f"grad {key}": p.grad for key, p in named if p.grad is not None}


def _method(case: str) -> Method:
    name, *centring = case.split()
    settings = {"centring": centring[0]} if centring else {}
    # KoLeo's neighbours are those of a process, as published.
    method = make_method(name, koleo=0.0, freeze_last=0.0, **settings).double()
    for parent in list(method.modules()):
        for key, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, key, nn.Identity())
    return method


def _share(name: str, seed: int) -> Batch:
    batch = make_batch(name, n=8, seed=seed)
    batch = Batch(views=[view.double() for view in batch.views], n_global=2, keys_B=batch.keys_B)
    n = 8 // distributed.size()
    first = distributed.rank() * n
    return rows(batch, list(range(first, first + n)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = distributed.find_world()
    with distributed.process_group(world, torch.device("cpu")):
        found = {case: losses_and_gradients(case) for case in CASES}
        torch.save(found, Path(sys.argv[1]) / f"{world.rank}.pt")
        distributed.barrier()
