"""Distillation without heads: which tiles, and which patches of a tile, a frozen ViT finds alike.

Whole views: KL between the similarities to a queue of the teacher's past features; patches: KL
between the rows of the matrices of similarity of one image's tokens; the student is projected
linearly onto the teacher's width (as lightly-train's third distillation does, but that images
are not mixed). What is kept is the running mean of the student.

Letters: B tiles, V views, G = V · B, N patches, D features of the student, E of the teacher,
Q features in the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.config import option
from cytofm_cli.pretrain import distributed
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput
from cytofm_cli.pretrain.frozen import StudentConfig, StudentMethod, global_views, patches_of
from cytofm_cli.pretrain.losses import relation_loss, similarity_loss
from cytofm_cli.pretrain.teacher import encode, require_temperature
from cytofm_cli.registry import PretrainPlugin


@dataclass(frozen=True, kw_only=True)
class Config(StudentConfig):
    """Settings of the distillation of similarities."""

    temperature: float = option(0.07, "temperature of the similarities", low=0)
    queue: int = option(8192, "past features of the teacher that tiles are compared with", low=2)
    patch_weight: float = option(1.0, "weight of the patches' loss; 0: whole views alone", low=0)

    def check(self) -> None:
        """Refuse a temperature that cannot be."""
        require_temperature(self, "temperature")


class DistillRelations(StudentMethod):
    """Learn a teacher's similarities. Any trunk will do."""

    config: Config
    queue_QE: Tensor
    n_known: Tensor

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__(backbones, config, length)
        self.projection = nn.Linear(self.student().dim, self.frozen.dim, bias=False)
        nn.init.trunc_normal_(self.projection.weight, std=0.02)
        self.register_buffer("queue_QE", torch.zeros(config.queue, self.frozen.dim))
        self.register_buffer("n_known", torch.zeros((), dtype=torch.int64))  # ever put in
        self._seen: list[Tensor] = []

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return none: the projection needs no running mean."""
        return {}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compare the similarities of every view."""
        c, views = self.config, global_views(batch)
        said = encode(self.student_net.trunk, views)
        asked = [self.frozen(view) for view in views]
        target_GE = torch.cat([view.cls_BD for view in asked]).float()
        self._seen.append(target_GE)
        said_GE = self.projection(torch.cat([view.cls_BD for view in said]))
        likeness = similarity_loss(said_GE, target_GE, self._known(target_GE), c.temperature)
        parts, loss = {"likeness": likeness.detach()}, likeness
        said_GND, asked_GNE = patches_of(said), patches_of(asked)
        if c.patch_weight and said_GND is not None and asked_GNE is not None:
            relations = relation_loss(self.projection(said_GND), asked_GNE, c.temperature)
            parts["relations"] = relations.detach()
            loss = loss + c.patch_weight * relations
        return StepOutput(loss, said[0].cls_BD.detach(), parts)

    def _known(self, target_GE: Tensor) -> Tensor:
        """Return what is in the queue; at the start, the batch itself."""
        n = min(int(self.n_known), len(self.queue_QE))
        return self.queue_QE[:n] if n else target_GE

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the running mean; the queue forgets the oldest features."""
        super().after_update(step)
        if not self._seen:
            return
        new = distributed.gather(functional.normalize(torch.cat(self._seen)))[-len(self.queue_QE) :]
        place = (int(self.n_known) + torch.arange(len(new), device=new.device)) % len(self.queue_QE)
        self.queue_QE[place] = new
        self.n_known += len(new)
        self._seen = []


PLUGIN = PretrainPlugin(
    make=DistillRelations,
    config=Config,
    summary="distillation of a frozen ViT's similarities, without heads",
    views={"recipe": "dino", "n_local": 0},
    sample="cytofm_cli.testing.samples.teachers:relations",
)
