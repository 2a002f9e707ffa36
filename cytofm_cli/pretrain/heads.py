"""The heads behind the trunks: prototypes (DINO, iBOT, DINOv2) and projectors with BatchNorm.

BatchNorm of several processes needs `nn.SyncBatchNorm.convert_sync_batchnorm`, which the loop
calls on the whole method; at least two tiles a process.

Letters: B tiles, D features, K prototypes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class DinoHead(nn.Module):
    """Three layers with GELU, a unit vector, and its cosines with prototypes.

    Caron et al., ICCV 2021, appendix C. `cosines` stands for weight normalisation with the length
    fixed at 1, without its second parameter and hooks.

    Args:
        dim: D.
        n_prototypes: K.
        hidden: width of the layers.
        bottleneck: length of the unit vector.
        batch_norm: normalise what the first two layers give over the batch (the released code's
            `use_bn_in_head`).
    """

    def __init__(
        self,
        dim: int,
        n_prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in in (dim, hidden):
            layers.append(nn.Linear(n_in, hidden))
            layers += [BatchNorm(hidden)] if batch_norm else []
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))  # as nn.Linear starts

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return cosines in [-1, 1], (…, K), of features (…, D); no rows are fine."""
        z = functional.normalize(self.mlp(x_BD), dim=-1, eps=1e-6)
        return cosines(z, self.prototypes)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of features (…, D) of any shape; fewer than two rows by its mean."""

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the normalised features, (…, D)."""
        rows_ND = x_BD.reshape(-1, x_BD.shape[-1])
        if len(rows_ND) > 1:
            return super().forward(rows_ND).view_as(x_BD)
        normed: Tensor = functional.batch_norm(
            rows_ND, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
        return normed.view_as(x_BD)


def cosines(z_ND: Tensor, prototypes_KD: Tensor) -> Tensor:
    """Multiply unit vectors (…, D) with prototypes of any length, by direction alone: (…, K).

    The scores are scaled, not the prototypes: K · D numbers are read once on the way forth and
    once on the way back, where autograd through a normalised copy takes several passes. With
    autocast the scores are rounded once, and float32.
    """
    cosines_NK: Tensor = _Cosines.apply(z_ND, prototypes_KD)
    return cosines_NK


class _Cosines(torch.autograd.Function):
    """out = (z · vᵀ) / |v|;  dv = (g / |v|)ᵀ · z - v · Σ(g · out) / |v|²."""

    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, v_KD: Tensor) -> Tensor:
        inverse_K = 1 / torch.linalg.vector_norm(v_KD, dim=1).clamp_min(1e-12)
        out_NK: Tensor = functional.linear(z_ND, v_KD) * inverse_K
        ctx.save_for_backward(z_ND, v_KD, inverse_K, out_NK)
        device = z_ND.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return out_NK

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        z_ND, v_KD, inverse_K, out_NK = ctx.saved_tensors
        device, dtype, enabled = ctx.autocast
        (grad_NK,) = gradients
        scaled_NK = grad_NK * inverse_K
        dz_ND = dv_KD = None
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            if ctx.needs_input_grad[0]:
                dz_ND = (scaled_NK @ v_KD).to(z_ND.dtype)
            if ctx.needs_input_grad[1]:
                n_prototypes, dim = v_KD.shape
                rows_NK = scaled_NK.reshape(-1, n_prototypes)
                dv_KD = (rows_NK.T @ z_ND.reshape(-1, dim)).to(v_KD.dtype)
                along_K = inverse_K * (scaled_NK * out_NK).reshape(-1, n_prototypes).sum(0)
                dv_KD.addcmul_(v_KD, along_K[:, None].to(v_KD.dtype), value=-1)
        return dz_ND, dv_KD


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
