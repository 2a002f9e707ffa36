"""Small trunks, batches and methods for the tests of pretraining.

Import as `from .toys import …` (tests of this folder only).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Backbone, Batch, Length, Method, Tokens
from cytofm_cli.registry import pretrain_methods
from cytofm_cli.views.draws import sample_keys

PATCH = 4
# Small enough to differentiate in float64 within milliseconds.
SMALL = {"prototypes": 32, "hidden": 24, "bottleneck": 8, "out": 8, "mask_min_patches": 1}


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
        return {"pos_embed", "cls_token"}

    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
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


def length(n_steps: int = 100, batch: int = 8) -> Length:
    return Length(n_steps=n_steps, steps_per_epoch=10, batch=batch)


def make_method(
    name: str, kind: str = "vit", *, n_steps: int = 100, seed: int = 0, **settings: Any
) -> Method:
    """Build a method with a small head; settings that it lacks are left out."""
    plugin = pretrain_methods.load(name)
    known = {field.name for field in dataclasses.fields(plugin.config)}
    wanted = {k: v for k, v in {**SMALL, **settings}.items() if k in known}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = plugin.make(Backbones(kind, seed), plugin.config(**wanted), length(n_steps))
    return method.train()


def make_batch(
    method: str = "dino", n: int = 8, seed: int = 0, n_local: int | None = None
) -> Batch:
    """Draw images that differ between tiles more than between the views of a tile."""
    if n_local is None:
        n_local = 2 if method in ("dino", "ibot", "dinov2") else 0
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(n, 3, 1, 1, generator=generator)
    views = [
        tile + 0.5 * torch.randn(n, 3, size, size, generator=generator)
        for size in [16, 16, *[8] * n_local]
    ]
    if method == "distill":  # the teacher's
        views.append(tile + 0.5 * torch.randn(n, 3, 16, 16, generator=generator))
    return Batch(views=views, n_global=2, keys_B=sample_keys(seed, np.arange(n)))


def rows(batch: Batch, index: Any) -> Batch:
    """Return some tiles of a batch."""
    return Batch(
        views=[view[index] for view in batch.views],
        n_global=batch.n_global,
        keys_B=batch.keys_B[np.asarray(index)],
    )
