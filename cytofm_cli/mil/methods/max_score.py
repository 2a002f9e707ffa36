"""Max over instance scores: the worst instance, as one score ranks them, decides the bag.

Instance-level pooling (mi-Net of Wang et al., Pattern Recognition 2018; trained by its highest
instance as in Campanella et al., Nat. Med. 2019).
Legend: B bags, N instances, D features, P positive classes, C = P + 1 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import MilHead, MilOutput
from cytofm_cli.mil.layers import SMALL, FastDropout, Projection
from cytofm_cli.registry import Plugin, samples


@dataclass(frozen=True, kw_only=True)
class MaxScoreConfig(Settings):
    """Settings of the maximum over instance scores."""

    k: int = option(1, "the bag's score is the mean of this many highest instance scores", low=1)
    hidden: int = option(
        0, "width of a hidden layer before the score; 0: none, a linear score", low=0
    )
    dropout: float = option(0.0, "dropout before the score", low=0, high=0.95)


class MaxScore(MilHead):
    """Score every instance, and pool the scores: unlike `max`, which pools the features.

    One score a positive class; the first class is "none of them": logits (0, z_1, …). Only the
    highest instances have a gradient. So the scores start close to 0, where hardly any direction
    is preferred: what a wide start puts in front is learnt by heart where bags are few.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {"standardise": True, "balance": "weights"}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"hidden": 64, "dropout": 0.5}

    def __init__(self, n_features: int, n_classes: int, config: MaxScoreConfig) -> None:
        super().__init__()
        self.k = config.k
        self.project: nn.Module = (
            Projection(n_features, config.hidden, config.dropout)
            if config.hidden
            else FastDropout(config.dropout)
        )
        self.score = nn.Linear(config.hidden or n_features, n_classes - 1)
        nn.init.normal_(self.score.weight, std=SMALL)
        nn.init.zeros_(self.score.bias)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`. The map is each instance's share of the score."""
        s_BPN = self.score(self.project(x_BND)).transpose(1, 2)
        if mask_BN is None:
            mask_BN = torch.ones(x_BND.shape[:2], dtype=torch.bool, device=x_BND.device)
        real_BPN = s_BPN.masked_fill(~mask_BN[:, None], -torch.inf)
        z_BP, share_BPN = _highest(real_BPN, mask_BN, self.k)
        none_B1N = torch.zeros_like(s_BPN[:, :1])
        return MilOutput(
            torch.cat([torch.zeros_like(z_BP[:, :1]), z_BP], -1),
            share_BPN,
            s_BPN,
            share_BPN @ x_BND,
            tuple(range(1, s_BPN.shape[1] + 1)),
            torch.cat([none_B1N, s_BPN], 1),
            "logit of the instance against the first class",
        )


def _highest(s_BPN: Tensor, mask_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the mean (B, P) of the k highest scores, or of all if there are fewer, and shares."""
    best_BPK, where_BPK = s_BPN.topk(min(k, s_BPN.shape[-1]), dim=-1)
    k_B1 = mask_BN.sum(1, keepdim=True).clamp(max=k).to(s_BPN.dtype)
    part_BK = (torch.arange(best_BPK.shape[-1], device=s_BPN.device) < k_B1).to(s_BPN.dtype) / k_B1
    part_BPK = part_BK[:, None].expand_as(best_BPK)
    z_BP = (best_BPK.masked_fill(part_BPK == 0, 0.0) * part_BPK).sum(-1)
    return z_BP, torch.zeros_like(s_BPN).scatter(-1, where_BPK, part_BPK)


PLUGIN = Plugin(
    make=MaxScore,
    config=MaxScoreConfig,
    summary="highest instance scores",
    sample=samples({}, {"hidden": 0, "dropout": 0.0, "k": 3}),
)
