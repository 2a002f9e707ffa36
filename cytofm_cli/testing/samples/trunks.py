"""Small trunks for the conformance suite of pretraining methods."""

from __future__ import annotations

import copy
from typing import Final

import torch
from torch import Tensor, nn

from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Backbone, Tokens

PATCH: Final = 4


class ToyVit(Backbone):
    """One attention block over 4 px patches, a class token, positions for any grid up to 8 × 8."""

    def __init__(self, dim: int = 16, *, masks: bool = False) -> None:
        super().__init__()
        self.dim, self.patch_px = dim, PATCH
        self.patch_embed = nn.Sequential(nn.Conv2d(3, dim, PATCH, PATCH))
        self.cls_token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        self.pos_embed = nn.Parameter(0.1 * torch.randn(8, 8, dim))
        if masks:
            self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, "gelu", batch_first=True)]
        )
        self.norm = nn.LayerNorm(dim)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay."""
        return {"pos_embed", "cls_token"}

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the tokens; see `Backbone`."""
        x_BDRC = self.patch_embed(x_BCHW)
        rows, columns = x_BDRC.shape[-2:]
        x_BND = x_BDRC.flatten(2).mT
        if mask_BN is not None:
            x_BND = torch.where(mask_BN[..., None], self.mask_token, x_BND)
        x_BND = x_BND + self.pos_embed[:rows, :columns].flatten(0, 1)
        x_BND = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], 1)
        for block in self.blocks:
            x_BND = block(x_BND)
        x_BND = self.norm(x_BND)
        return Tokens(cls_BD=x_BND[:, 0], patch_BND=x_BND[:, 1:])


class ToyConv(Backbone):
    """A convolution with BatchNorm and a pool: no patches, like a ResNet."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.dim, self.patch_px = dim, None
        self.body = nn.Sequential(nn.Conv2d(3, dim, 3, 2), nn.BatchNorm2d(dim), nn.GELU())

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the pooled features; see `Backbone`."""
        assert mask_BN is None
        return Tokens(cls_BD=self.body(x_BCHW).mean((2, 3)), patch_BND=None)


class Backbones:
    """Makes toy trunks: all from the same weights, as the real ones do; notes what was asked."""

    def __init__(self, kind: str = "vit", seed: int = 0) -> None:
        self.kind = kind
        self.asked: list[tuple[str, bool]] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = ToyConv() if kind == "conv" else ToyVit(masks=True)

    def __call__(self, *, role: str, masks: bool = False) -> Backbone:
        self.asked.append((role, masks))
        if masks and self.kind == "conv":
            raise UsageError("no patches")
        trunk = copy.deepcopy(self.trunk)
        if self.kind == "vit" and not masks:
            del trunk.mask_token
        return trunk
