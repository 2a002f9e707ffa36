"""Distillation by regression: the class token and every patch token of a frozen ViT.

Near to AM-RADIO (Ranzinger et al., CVPR 2024): targets of zero mean and unit spread, cosine for
the class token, cosine and smooth L1 (9 : 1) for the patches. Both see the same views; what is
kept is the running mean of the student.

Letters: B tiles, V views, N patches, D features of the student, E of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.config import option
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput
from cytofm_cli.pretrain.frozen import StudentConfig, StudentMethod, global_views, patches_of
from cytofm_cli.pretrain.losses import Standardise
from cytofm_cli.pretrain.teacher import encode
from cytofm_cli.registry import PretrainPlugin

_COSINE, _SMOOTH = 0.9, 0.1  # of the patches' loss


@dataclass(frozen=True, kw_only=True)
class Config(StudentConfig):
    """Settings of the regression."""

    patch_weight: float = option(1.0, "weight of the patches' loss; 0: whole views alone", low=0)


class DistillTokens(StudentMethod):
    """Regress a teacher's tokens. Any trunk will do; one without patches has class tokens only."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__(backbones, config, length)
        self.patches = self.student().patch_px is not None and config.patch_weight > 0
        names = ("cls", "patch") if self.patches else ("cls",)
        dim, wide = self.student().dim, self.frozen.dim
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, wide)) for name in names}
        )
        self.standardise = nn.ModuleDict({name: Standardise(wide) for name in names})

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return none: those of the regression need no running mean."""
        return {}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Regress the tokens of every view."""
        views = global_views(batch)
        said = encode(self.student_net.trunk, views)
        asked = [self.frozen(view) for view in views]
        cls_GD = torch.cat([view.cls_BD for view in said])
        target_GE = self.standardise["cls"](torch.cat([view.cls_BD for view in asked]).float())
        cosine = _distance(self.heads["cls"](cls_GD), target_GE)
        parts, loss = {"cosine": cosine.detach()}, cosine
        said_GND, asked_GNE = patches_of(said), patches_of(asked)
        if self.patches and said_GND is not None and asked_GNE is not None:
            rows = self.heads["patch"](said_GND.flatten(0, 1)).float()
            target = self.standardise["patch"](asked_GNE.flatten(0, 1).float())
            patch = _COSINE * _distance(rows, target)
            patch = patch + _SMOOTH * functional.smooth_l1_loss(rows, target)
            parts["patch_loss"] = patch.detach()
            loss = loss + self.config.patch_weight * patch
        return StepOutput(loss, said[0].cls_BD.detach(), parts)

    def after_update(self, step: int) -> None:
        """Move the running mean, and count in the teacher's features."""
        super().after_update(step)
        for standardise in self.standardise.values():
            standardise.move()  # type: ignore[operator]


def _distance(said_RE: Tensor, target_RE: Tensor) -> Tensor:
    """Return 1 - cosine, mean over rows."""
    return 1 - functional.cosine_similarity(said_RE.float(), target_RE, dim=-1).mean()


PLUGIN = PretrainPlugin(
    make=DistillTokens,
    config=Config,
    summary="distillation of a frozen ViT's tokens by regression",
    views={"recipe": "dino", "n_local": 0},
    sample="cytofm_cli.testing.samples.teachers:tokens",
)
