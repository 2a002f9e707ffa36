"""DINOv2: iBOT with Sinkhorn centring, and features spread by KoLeo.

Oquab et al., TMLR 2024, with the settings of its default (ViT-L/16, short) run, but for two. The
teacher is centred by Sinkhorn, as in the paper and the ViT-L/14 run (the short run has a running
mean: `centring = mean`); and LayerScale, 1e-5 in theirs, is the trunk's matter: SR-ViT has none.

Letters: B tiles, V global views, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cytofm_cli.config import option
from cytofm_cli.pretrain.base import StepOutput
from cytofm_cli.pretrain.losses import koleo_loss
from cytofm_cli.pretrain.patches import MaskedConfig, MaskedMethod
from cytofm_cli.registry import PretrainPlugin, Sample


@dataclass(frozen=True, kw_only=True)
class Config(MaskedConfig):
    """Settings of DINOv2. Published separate heads: 131 072 prototypes each."""

    lr: float = option(2e-3, "learning rate at batch 256 (4e-3 at 1024)", low=0)
    lr_scaling: Literal["linear", "sqrt"] = option("sqrt", "how it follows the batch")
    drop_path: float = option(0.3, "largest rate of dropped residual branches", low=0, high=1)
    momentum: float = option(
        0.992, "share of itself the teacher keeps, at the start", low=0, high=1
    )
    centring: Literal["mean", "sinkhorn"] = option(
        "sinkhorn", "against collapse: running mean, or Sinkhorn"
    )
    koleo: float = option(0.1, "weight of KoLeo, per global view", low=0)
    layer_decay: float = option(0.9, "learning rate of a block over the next one's", low=0, high=1)
    patch_lr: float = option(0.2, "learning rate of the patch embedding, factor", low=0, high=1)


class DinoV2(MaskedMethod):
    """Views, masked patches, and spread features. Needs a trunk with patches."""

    config: Config

    def regularise(self, out: StepOutput, cls_VBD: Tensor) -> StepOutput:
        """Add KoLeo of each global view."""
        if self.config.koleo == 0:
            return out
        spread = torch.stack([koleo_loss(cls_BD) for cls_BD in cls_VBD]).sum()
        parts = {**out.parts, "koleo": spread.detach()}
        return replace(out, loss=out.loss + self.config.koleo * spread, parts=parts)


_MASKS = {"masks": True}
# Of the mask token and the head of patches nothing is asked where no image is masked.
_NO_MASKS = {"masks": True, "idle": ("mask_token", "heads.patch")}

PLUGIN = PretrainPlugin(
    make=DinoV2,
    config=Config,
    summary="DINOv2: iBOT, Sinkhorn, KoLeo (Oquab 2024)",
    views={"recipe": "dinov2"},
    sample=lambda _folder: [
        Sample(traits=_MASKS),
        Sample(settings={"shared_head": False, "centring": "mean"}, traits=_MASKS),
        Sample(settings={"koleo": 0.0, "mask_chance": 0.0}, traits=_NO_MASKS),
    ],
)
