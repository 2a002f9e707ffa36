"""A process of `test_two_processes__…`: its share of a batch, through DDP.

The discriminator is left out: only GPUs can share the statistics of its BatchNorm. What is drawn,
of each image by its process in training, is the image's own here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cytofm_cli.generate.repa_e import Draws, RepaE, Weights
from cytofm_cli.pretrain import distributed
from cytofm_cli.pretrain.base import Batch

from .toys import batch, learner

IMAGES, STEPS = 8, 3
NO_NOISE = -30.0  # log variance of the latent


def losses_and_gradients() -> dict[str, Tensor]:
    """Return the loss and the gradients of the last of some updates, and the state after it."""
    model = learner(Weights(gan=0.0, dropped=0.0, ema=0.5))
    torch.nn.init.constant_(model.vae.quant_conv.bias[model.vae.shape.latent :], NO_NOISE)
    model.draw = MethodType(_draw, model)
    wrapped = DistributedDataParallel(model) if distributed.size() > 1 else model
    for step in range(STEPS):
        model.zero_grad()
        out = wrapped(_share(batch(IMAGES, seed=step)), step)
        out.loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.1)
        model.after_update(step)
    seen = {"loss": out.loss.detach()}
    seen |= {f"state {name}": value for name, value in model.state_dict().items()}
    named = model.named_parameters()
    return seen | {f"grad {name}": p.grad for name, p in named if p.grad is not None}


def _rows() -> slice:
    n = IMAGES // distributed.size()
    return slice(distributed.rank() * n, (distributed.rank() + 1) * n)


def _draw(_: RepaE, z_BChw: Tensor) -> Draws:
    noise = torch.randn(IMAGES, *z_BChw.shape[1:], generator=torch.Generator().manual_seed(1))
    return Draws(torch.linspace(0.1, 0.9, IMAGES)[_rows()], noise[_rows()])


def _share(of: Batch) -> Batch:
    assert of.tiles_B is not None
    own = _rows()
    return Batch(
        views=[of.views[0][own]], n_global=1, keys_B=of.keys_B[own], tiles_B=of.tiles_B[own]
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = distributed.find_world()
    with distributed.process_group(world, torch.device("cpu")):
        torch.save(losses_and_gradients(), Path(sys.argv[1]) / f"{world.rank}.pt")
        distributed.barrier()
