"""SimCLR: two views of a tile attract, all other views of the batch repel.

Chen et al., ICML 2020. AdamW and its rates as for ViT in the MoCo v3 paper (recalled), which
has LARS for ResNet; one network, no teacher.

Letters: B tiles, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cytofm_cli.config import option
from cytofm_cli.pretrain.base import (
    Backbone,
    Backbones,
    Batch,
    Length,
    Method,
    MethodConfig,
    StepOutput,
)
from cytofm_cli.pretrain.heads import projector
from cytofm_cli.pretrain.losses import nt_xent
from cytofm_cli.pretrain.teacher import encode, require_temperature, two_views
from cytofm_cli.registry import PretrainPlugin, samples


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Settings of SimCLR."""

    lr: float = option(2e-4, "learning rate at batch 256", low=0)
    min_lr: float = option(0.0, "learning rate at the end", low=0)
    weight_decay: float = option(0.1, "weight decay at the start", low=0)
    weight_decay_end: float = option(0.1, "weight decay at the end (cosine)", low=0)
    clip: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)
    drop_path: float = option(0.0, "largest rate of dropped residual branches", low=0, high=1)
    hidden: int = option(2048, "width of the projector's hidden layer", low=1)
    out: int = option(128, "length of a projection", low=1)
    temperature: float = option(0.1, "temperature; 0.5 suits small data", low=0)

    def check(self) -> None:
        """Refuse a temperature that cannot be."""
        require_temperature(self, "temperature")


class SimClr(Method):
    """Contrast of two views. Any trunk will do."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__()
        self.config = config
        self.trunk = backbones(role="student")
        widths = (self.trunk.dim, config.hidden, config.out)
        self.projector = projector(widths, bias=False, last_norm=True)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Tell the two views of each tile among those of all processes."""
        x_BD, y_BD = (view.cls_BD for view in encode(self.trunk, two_views(batch)))
        first, second = self.projector(torch.cat([x_BD, y_BD])).chunk(2)
        loss = nt_xent(first, second, self.config.temperature)
        return StepOutput(loss, x_BD.detach())

    def encoder(self) -> Backbone:
        """Return the trunk."""
        return self.trunk

    def student(self) -> Backbone:
        """Return the trunk."""
        return self.trunk


PLUGIN = PretrainPlugin(
    make=SimClr,
    config=Config,
    summary="SimCLR: contrast of two views (Chen 2020)",
    views={"recipe": "simclr"},
    sample=samples(),
)
