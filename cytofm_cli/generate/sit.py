"""SiT: the transformer that says where noise flows, under the key names of REPA and REPA-E.

Ma et al., ECCV 2024 (arXiv:2401.08740); adaLN-zero of DiT (arXiv:2212.09748); the alignment
projector of REPA (arXiv:2410.06940). A B/2 for 28 × 28 × 4 latents, 1000 classes and tokens of 768
has 137.8 M parameters, as upstream's, whose files load.

Decided, where upstream has a trap: `pos_embed` is a buffer, never trained, and comes from the file
where one is loaded; the final layer is not run where tokens alone are wanted; its width is the
transformer's; the null condition is the table's last row, whatever the number of classes; t lies
in [0, 1] and is not multiplied. At the start all gates and the final layer are zero: the output is
exactly 0, and most parameters have no gradient in the first step.

Letters: B images, C channels of the latent, h w its places, p side of a patch, T tokens, D width,
E width of the aligned encoder's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.generate.conditions import ConditionShape, make_embedder
from cytofm_cli.generate.latents import LatentNorm

_EPS: Final = 1e-6
_FREQUENCIES: Final = 256


@dataclass(frozen=True, kw_only=True)
class SitShape:
    """Sizes of a SiT.

    Attributes:
        side: places of the latent, a side.
        latent: channels of the latent.
        depth, width, heads, patch: of the transformer.
        aligned_depth: blocks after which the tokens are aligned.
        aligned: width of the tokens that they are aligned with; 0: no projector.
        projector: width of its hidden layers.
        condition: what it is told.
    """

    side: int
    latent: int = 4
    depth: int = 12
    width: int = 768
    heads: int = 12
    patch: int = 2
    aligned_depth: int = 8
    aligned: int = 768
    projector: int = 2048
    condition: ConditionShape

    @property
    def grid(self) -> int:
        """Return tokens a side."""
        return self.side // self.patch


class SiT(nn.Module):
    """Noisy latents, a time and a condition to a velocity, and to tokens for alignment.

    `forward` has no mode: dropping conditions and the norm of the latents, which are others in
    training, are the caller's (`conditions.Embedder`, `latents.LatentNorm`).

    Args:
        shape: its sizes.
    """

    pos_embed: Tensor

    def __init__(self, shape: SitShape) -> None:
        super().__init__()
        self.shape = shape
        self.x_embedder: Any = nn.Module()
        self.x_embedder.proj = nn.Conv2d(shape.latent, shape.width, shape.patch, shape.patch)
        self.t_embedder: Any = _TimeEmbedder(shape.width)
        embedder = make_embedder(shape.condition, shape.width)
        if embedder is not None:
            self.y_embedder = embedder
        self.register_buffer("pos_embed", sin_cos(shape.grid, shape.width)[None])
        self.blocks = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.depth))
        widths = (shape.width, shape.projector, shape.projector, shape.aligned)
        self.projectors = nn.ModuleList([_mlp(*widths)] if shape.aligned else [])
        self.final_layer = _FinalLayer(shape.width, shape.patch**2 * shape.latent)
        self.bn = LatentNorm(shape.latent)
        self._draw()

    def forward(self, x_BChw: Tensor, t_B: Tensor, condition_BD: Tensor | None) -> Tensor:
        """Return the velocity, float (B, C, h, w).

        Args:
            x_BChw: normalised latents on their way to noise.
            t_B: times, 0 data to 1 noise.
            condition_BD: of `y_embedder`; None where there is none.
        """
        return self._velocity(*self._start(x_BChw, t_B, condition_BD))

    def aligned(self, x_BChw: Tensor, t_B: Tensor, condition_BD: Tensor | None) -> Tensor:
        """Return the projected tokens, (B, T, E), without running the blocks behind them."""
        h_BTD, c_BD = self._start(x_BChw, t_B, condition_BD)
        projected: Tensor = self.projectors[0](self._run(h_BTD, c_BD, 0, self.shape.aligned_depth))
        return projected

    def both(
        self, x_BChw: Tensor, t_B: Tensor, condition_BD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the velocity and the projected tokens of one pass."""
        h_BTD, c_BD = self._start(x_BChw, t_B, condition_BD)
        h_BTD = self._run(h_BTD, c_BD, 0, self.shape.aligned_depth)
        projected: Tensor = self.projectors[0](h_BTD)
        return self._velocity(h_BTD, c_BD, first=self.shape.aligned_depth), projected

    def _start(
        self, x_BChw: Tensor, t_B: Tensor, condition_BD: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tokens_BTD = self.x_embedder.proj(x_BChw).flatten(2).transpose(1, 2)
        c_BD = self.t_embedder(t_B.to(x_BChw.dtype))
        return tokens_BTD + self.pos_embed, c_BD if condition_BD is None else c_BD + condition_BD

    def _run(self, h_BTD: Tensor, c_BD: Tensor, first: int, last: int) -> Tensor:
        for block in self.blocks[first:last]:
            h_BTD = block(h_BTD, c_BD)
        return h_BTD

    def _velocity(self, h_BTD: Tensor, c_BD: Tensor, first: int = 0) -> Tensor:
        h_BTD = self._run(h_BTD, c_BD, first, len(self.blocks))
        out_BTP = self.final_layer(h_BTD, c_BD)
        grid, patch, latent = self.shape.grid, self.shape.patch, self.shape.latent
        cut = out_BTP.view(len(out_BTP), grid, grid, patch, patch, latent)
        image: Tensor = cut.permute(0, 5, 1, 3, 2, 4).reshape(
            len(out_BTP), latent, grid * patch, grid * patch
        )
        return image

    @torch.no_grad()
    def _draw(self) -> None:
        """Draw the start: xavier, N(0, .02) for time and classes, zero gates and final layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        proj = self.x_embedder.proj
        nn.init.xavier_uniform_(proj.weight.view(len(proj.weight), -1))
        nn.init.zeros_(proj.bias)
        for layer in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        for block in (*self.blocks, self.final_layer):
            nn.init.zeros_(block.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)


def sin_cos(grid: int, width: int) -> Tensor:
    """Return the positions of a square grid, float32 (T, D).

    The first half of the channels is of the column, the second of the row (MAE's helper): of each,
    the sines, then the cosines, of frequencies 10000^(-i / (D / 4)).
    """
    frequency = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    line = torch.cat([at.sin(), at.cos()], dim=1)
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([line[column.flatten()], line[row.flatten()]], dim=1).float()


def _mlp(*widths: int) -> nn.Sequential:
    """Return linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class _TimeEmbedder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp: Any = _mlp(_FREQUENCIES, width, width)

    def forward(self, t_B: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=t_B.device)
        angle_BF = t_B.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
        waves = torch.cat([angle_BF.cos(), angle_BF.sin()], dim=1)
        embedded: Tensor = self.mlp(waves.to(self.mlp[0].weight.dtype))
        return embedded


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        n, tokens, width = x_BTD.shape
        qkv = self.qkv(x_BTD).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, width))
        return out


class _Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x_BTD), approximate="tanh"))
        return out


def _modulated(x_BTD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    normed = functional.layer_norm(x_BTD, x_BTD.shape[-1:], eps=_EPS)
    return normed * (1 + scale_BD[:, None]) + shift_BD[:, None]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = _Attention(width, heads), _Feed(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h_BTD: Tensor, c_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c_BD).chunk(6, dim=1)
        h_BTD = h_BTD + gate1[:, None] * self.attn(_modulated(h_BTD, shift1, scale1))
        out: Tensor = h_BTD + gate2[:, None] * self.mlp(_modulated(h_BTD, shift2, scale2))
        return out


class _FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h_BTD: Tensor, c_BD: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c_BD).chunk(2, dim=1)
        out: Tensor = self.linear(_modulated(h_BTD, shift, scale))
        return out
