"""MoCo v3: the student finds the teacher's view of the same tile among those of all tiles.

Chen, Xie & He, ICCV 2021, its ViT recipe: no queue, symmetric, patch embedding frozen.

Letters: B tiles, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cytofm_cli.config import option
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput
from cytofm_cli.pretrain.heads import projector
from cytofm_cli.pretrain.losses import info_nce
from cytofm_cli.pretrain.teacher import (
    TeacherConfig,
    TeacherMethod,
    encode,
    require_temperature,
    two_views,
)
from cytofm_cli.registry import PretrainPlugin, samples


@dataclass(frozen=True, kw_only=True)
class Config(TeacherConfig):
    """Settings of MoCo v3."""

    lr: float = option(1.5e-4, "learning rate at batch 256", low=0)
    min_lr: float = option(0.0, "learning rate at the end", low=0)
    # Published as 40 of 300 epochs.
    warmup: float = option(0.13, "share of the steps in which the rate rises", low=0, high=1)
    weight_decay: float = option(0.1, "weight decay at the start", low=0)
    weight_decay_end: float = option(0.1, "weight decay at the end (cosine)", low=0)
    decayed: Literal["all", "weights", "matrices"] = option(
        "all", "what decays: all, weights or matrices"
    )
    clip: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)
    drop_path: float = option(0.0, "largest rate of dropped residual branches", low=0, high=1)
    momentum: float = option(0.99, "share of itself the teacher keeps, at the start", low=0, high=1)
    hidden: int = option(4096, "width of the hidden layers of projector and predictor", low=1)
    out: int = option(256, "length of a projection", low=1)
    temperature: float = option(0.2, "temperature", low=0)
    freeze_patch_embed: bool = option(True, "keep a ViT's patch embedding as it starts")

    def check(self) -> None:
        """Refuse a temperature that cannot be."""
        require_temperature(self, "temperature")


class MoCo(TeacherMethod):
    """Contrast with a teacher. Any trunk will do."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__(backbones, config, length)
        widths = (config.out, config.hidden, config.out)
        self.predictor = projector(widths, bias=False, last_norm=True)
        if config.freeze_patch_embed and self.student().patch_px is not None:
            _freeze_patch_embed(self.student())

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the projector, three layers."""
        c = self.config
        widths = (dim, c.hidden, c.hidden, c.out)
        return {"projector": projector(widths, bias=False, last_norm=True)}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Contrast each view with the teacher's other view."""
        views, t = two_views(batch), self.config.temperature
        key_1, key_2 = self._keys(views)
        tokens = encode(self.student_net.trunk, views)
        # A BatchNorm sees one view at a time, as published.
        project = self.student_net.heads["projector"]
        query_1, query_2 = (self.predictor(project(view.cls_BD)) for view in tokens)
        loss = info_nce(query_1, key_2, t) + info_nce(query_2, key_1, t)
        return StepOutput(loss, tokens[0].cls_BD.detach())

    @torch.no_grad()
    def _keys(self, views: list[Tensor]) -> list[Tensor]:
        project = self.teacher_net.heads["projector"]
        return [project(view.cls_BD) for view in encode(self.teacher_net.trunk, views)]


def _freeze_patch_embed(trunk: nn.Module) -> None:
    frozen = [p for name, p in trunk.named_parameters() if "patch_embed." in name]
    if not frozen:
        raise UsageError(
            "the trunk has no patch_embed to freeze.", hint="freeze_patch_embed = false"
        )
    for parameter in frozen:
        parameter.requires_grad = False


PLUGIN = PretrainPlugin(
    make=MoCo,
    config=Config,
    summary="MoCo v3: contrast with a teacher (Chen 2021)",
    views={"recipe": "moco"},
    sample=samples({}, {"freeze_patch_embed": False}),
)
