"""The norm of the latents: running statistics a channel, which also bring samples back.

REPA-E's `BatchNorm2d` without affine, eps 1e-4, momentum .1, with its key names. Decided, where
upstream has a trap: which statistics are meant is said by the caller, not by a mode: `by_running`
for the autoencoder's pass, `by_batch` for the transformer's (which also moves the running ones, as
upstream's code does, though not its comment); `back` undoes `by_running` exactly, eps included;
a batch is that of all processes, so that its statistics do not depend on their number.

A module of its own and no `BatchNorm2d`, as those are exchanged for others on many GPUs.

Letters: B images, C channels, h w places.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from cytofm_cli.pretrain import distributed

EPS: Final = 1e-4
MOMENTUM: Final = 0.1


class LatentNorm(nn.Module):
    """See the module.

    Args:
        channels: C.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def by_running(self, z_BChw: Tensor) -> Tensor:
        """Normalise by the running statistics, which stay."""
        return (z_BChw - _wide(self.running_mean)) / _wide((self.running_var + EPS).sqrt())

    def by_batch(self, z_BChw: Tensor) -> Tensor:
        """Normalise by the batch's statistics, and move the running ones; none takes a gradient."""
        mean_C, var_C, n = batch_statistics(z_BChw)
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, MOMENTUM)
            self.running_var.lerp_(var_C * (n / max(n - 1, 1)), MOMENTUM)  # as BatchNorm: unbiased
            self.num_batches_tracked += 1
        return (z_BChw - _wide(mean_C)) / _wide((var_C + EPS).sqrt())

    def back(self, n_BChw: Tensor) -> Tensor:
        """Undo `by_running`."""
        return n_BChw * _wide((self.running_var + EPS).sqrt()) + _wide(self.running_mean)

    @torch.no_grad()
    def begin(self, z_BChw: Tensor) -> None:
        """Take the statistics of a first batch as the running ones."""
        mean_C, var_C, _ = batch_statistics(z_BChw)
        self.running_mean.copy_(mean_C)
        self.running_var.copy_(var_C)


@torch.no_grad()
def batch_statistics(z_BChw: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and biased variance a channel, float32 (C,), and how many values, over all
    processes, whose shares are equal."""
    values = z_BChw.detach().double()
    mean_C = distributed.mean_(values.mean((0, 2, 3)))
    var_C = distributed.mean_((values - _wide(mean_C)).square().mean((0, 2, 3)))
    n = values.numel() // values.shape[1] * distributed.size()
    return mean_C.float(), var_C.float(), n


def _wide(x_C: Tensor) -> Tensor:
    return x_C[:, None, None]
