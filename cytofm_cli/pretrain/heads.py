"""The heads behind the trunks: prototypes (DINO, iBOT, DINOv2) and projectors with BatchNorm.

BatchNorm of several processes needs `nn.SyncBatchNorm.convert_sync_batchnorm`, which the loop
calls on the whole method; at least two tiles a process.

Letters: B tiles, D features, K prototypes.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class DinoHead(nn.Module):
    """Three layers with GELU, a unit vector, and its cosines with prototypes.

    Caron et al., ICCV 2021, appendix C. The prototypes are normalised in `forward`, which is
    weight normalisation with the length fixed at 1, without its second parameter and hooks.

    Args:
        dim: D.
        n_prototypes: K.
        hidden: width of the layers.
        bottleneck: length of the unit vector.
    """

    def __init__(
        self, dim: int, n_prototypes: int, *, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))  # as nn.Linear starts

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return cosines in [-1, 1], (…, K), of features (…, D); no rows are fine."""
        z = functional.normalize(self.mlp(x_BD), dim=-1, eps=1e-6)
        return functional.linear(z, functional.normalize(self.prototypes, dim=-1))


def projector(widths: tuple[int, ...], *, bias: bool, last_norm: bool) -> nn.Sequential:
    """Build linear layers with BatchNorm and ReLU between them.

    Args:
        widths: input, hidden ones, output.
        bias: of the linear layers.
        last_norm: end with a BatchNorm without scale and shift (MoCo v3, after SimCLR).
    """
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(n_in, n_out, bias=bias))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(n_out), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(n_out, affine=False))
    return nn.Sequential(*layers)
