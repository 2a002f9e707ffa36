"""Pooling without attention: mean and maximum over instances, then a small classifier.

Legend: B bags, N instances, D features, H hidden width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import MilHead, MilOutput


@dataclass(frozen=True, kw_only=True)
class PoolConfig(Settings):
    """Settings of the pooling heads."""

    hidden: int = option(0, "width of a hidden layer before pooling; 0: none, a linear head", low=0)
    dropout: float = option(0.0, "dropout before the classifier", low=0, high=0.95)


class _Pool(MilHead):
    """Shared by mean and max; there is no published recipe, so both presets are ours."""

    OFFICIAL: ClassVar[Mapping[str, Any]] = {"standardise": True, "balance": "weights"}

    def __init__(self, n_features: int, n_classes: int, config: PoolConfig) -> None:
        super().__init__()
        width = config.hidden or n_features
        self.project: nn.Module = (
            nn.Sequential(nn.Linear(n_features, width), nn.ReLU())
            if config.hidden
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(width, n_classes)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`. The instance score is the instance's own logit."""
        h_BNH = self.project(x_BND)
        if mask_BN is None:
            mask_BN = torch.ones(x_BND.shape[:2], dtype=torch.bool, device=x_BND.device)
        bag_BH, share_BN = self._pool(h_BNH, mask_BN)
        logits_BC = self.classifier(self.dropout(bag_BH))
        return MilOutput(
            logits_BC,
            share_BN[:, None],
            share_BN[:, None],
            bag_BH[:, None],
            score_BCN=self.classifier(h_BNH).transpose(1, 2),
            score_kind="logit of the instance alone",
        )

    def _pool(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class MeanPool(_Pool):
    """Average the instances; the attention map is flat."""

    def _pool(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        share_BN = mask_BN / mask_BN.sum(1, keepdim=True)
        share_BN = share_BN.to(h_BNH.dtype)
        return (share_BN[:, None] @ h_BNH)[:, 0], share_BN


class MaxPool(_Pool):
    """Take each feature's maximum; the map is the share of features an instance gives.

    Without a hidden layer it sees only what stands out in one feature. The preset has one, whose
    units can point anywhere.
    """

    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"hidden": 64, "dropout": 0.5}

    def _pool(self, h_BNH: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        best_BH, where_BH = h_BNH.masked_fill(~mask_BN[..., None], -torch.inf).max(1)
        share_BN = torch.zeros(h_BNH.shape[:2], dtype=h_BNH.dtype, device=h_BNH.device)
        share_BN.scatter_add_(1, where_BH, torch.full_like(best_BH, 1 / best_BH.shape[1]))
        return best_BH, share_BN
