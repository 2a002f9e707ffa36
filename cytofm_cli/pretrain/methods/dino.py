"""DINO: the student's view of a tile finds the prototypes that the teacher sees in another view.

Caron et al., ICCV 2021, with the settings of its released ViT runs.

Letters: B tiles, T teacher's views, S student's views, D features, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cytofm_cli.pretrain.base import Batch, StepOutput
from cytofm_cli.pretrain.losses import dino_loss, entropy
from cytofm_cli.pretrain.teacher import PrototypeConfig, PrototypeMethod, encode
from cytofm_cli.registry import PretrainPlugin, samples


@dataclass(frozen=True, kw_only=True)
class Config(PrototypeConfig):
    """Settings of DINO."""


class Dino(PrototypeMethod):
    """Self-distillation without labels. Any trunk will do."""

    config: Config

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the head of the class token."""
        return {"cls": self.config.make_head(dim)}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compare all views with the teacher's other global views."""
        p_TBK = self._teacher(batch, step)
        tokens = encode(self.student_net.trunk, batch.views)
        cls_SBD = torch.stack([view.cls_BD for view in tokens])
        logits_SBK = self.student_net.heads["cls"](cls_SBD)
        loss = dino_loss(p_TBK, logits_SBK, self.config.student_temp)
        parts = {"teacher_entropy": entropy(p_TBK.flatten(0, 1))}
        return StepOutput(loss, cls_SBD[0].detach(), parts)

    @torch.no_grad()
    def _teacher(self, batch: Batch, step: int) -> Tensor:
        """Return the teacher's probabilities for the global views, (T, B, K)."""
        tokens = encode(self.teacher_net.trunk, batch.views[: batch.n_global])
        cls_GD = torch.cat([view.cls_BD for view in tokens])
        logits_GK = self.teacher_net.heads["cls"](cls_GD)
        p_GK: Tensor = self.targets["cls"](logits_GK, self.config.temperature(self.length, step))
        return p_GK.view(batch.n_global, -1, p_GK.shape[-1])


PLUGIN = PretrainPlugin(
    make=Dino,
    config=Config,
    summary="DINO: self-distillation (Caron 2021)",
    views={"recipe": "dino"},
    sample=samples({}, {"centring": "sinkhorn"}),
)
