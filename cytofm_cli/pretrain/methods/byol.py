"""BYOL: the student predicts the teacher's projection of the other view, without negatives.

Grill et al., NeurIPS 2020. AdamW and its rates as for ViT in the MoCo v3 paper (recalled).

Letters: B tiles, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cytofm_cli.config import option
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput
from cytofm_cli.pretrain.heads import projector
from cytofm_cli.pretrain.losses import byol_loss
from cytofm_cli.pretrain.teacher import TeacherConfig, TeacherMethod, encode, two_views
from cytofm_cli.registry import PretrainPlugin, samples


@dataclass(frozen=True, kw_only=True)
class Config(TeacherConfig):
    """Settings of BYOL."""

    lr: float = option(1e-4, "learning rate at batch 256", low=0)
    min_lr: float = option(0.0, "learning rate at the end", low=0)
    weight_decay: float = option(0.03, "weight decay at the start", low=0)
    weight_decay_end: float = option(0.03, "weight decay at the end (cosine)", low=0)
    clip: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)
    drop_path: float = option(0.0, "largest rate of dropped residual branches", low=0, high=1)
    hidden: int = option(4096, "width of the hidden layers of projector and predictor", low=1)
    out: int = option(256, "length of a projection", low=1)


class Byol(TeacherMethod):
    """Prediction of a teacher. Any trunk will do."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__(backbones, config, length)
        widths = (config.out, config.hidden, config.out)
        self.predictor = projector(widths, bias=True, last_norm=False)

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the projector, two layers."""
        widths = (dim, self.config.hidden, self.config.out)
        return {"projector": projector(widths, bias=True, last_norm=False)}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Predict each view's projection from the other view."""
        views = two_views(batch)
        target_1, target_2 = self._targets(views)
        tokens = encode(self.student_net.trunk, views)
        # A BatchNorm sees one view at a time, as published.
        project = self.student_net.heads["projector"]
        guess_1, guess_2 = (self.predictor(project(view.cls_BD)) for view in tokens)
        loss = byol_loss(guess_1, target_2) + byol_loss(guess_2, target_1)
        return StepOutput(loss, tokens[0].cls_BD.detach())

    @torch.no_grad()
    def _targets(self, views: list[Tensor]) -> list[Tensor]:
        project = self.teacher_net.heads["projector"]
        return [project(view.cls_BD) for view in encode(self.teacher_net.trunk, views)]


PLUGIN = PretrainPlugin(
    make=Byol,
    config=Config,
    summary="BYOL: prediction of a teacher (Grill 2020)",
    views={"recipe": "byol"},
    sample=samples(),
)
