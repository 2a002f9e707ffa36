"""ABMIL: attention-based MIL, plain or gated (Ilse, Tomczak & Welling, ICML 2018).

Legend: B bags, N instances, D features, H projected width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import BagLoss, MilHead, MilOutput
from cytofm_cli.mil.layers import AttentionScores, Projection, two_class_logits
from cytofm_cli.registry import Plugin, samples

PROB_FLOOR = 1e-5  # the official loss clamps the probability, against log(0)


@dataclass(frozen=True, kw_only=True)
class AbmilConfig(Settings):
    """Settings of ABMIL."""

    hidden: int = option(500, "width of the projection", low=1)
    attention: int = option(128, "width of the attention network", low=1)
    gated: bool = option(True, "gated attention (eq. 9) instead of plain (eq. 8)")
    dropout: float = option(0.0, "dropout after the projection", low=0, high=0.95)


class Abmil(MilHead):
    """Project, weigh by attention, sum, classify.

    Two classes share one sigmoid output, as published; more classes get C logits (ours).
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 5e-4,
        "weight_decay": 1e-4,
        "epochs": 20,
        "patience": 0,
        "select": "last",
    }
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {
        "hidden": 128,
        "attention": 64,
        "dropout": 0.5,
    }

    def __init__(self, n_features: int, n_classes: int, config: AbmilConfig) -> None:
        super().__init__()
        self.project = Projection(n_features, config.hidden, config.dropout)
        self.attention = AttentionScores(config.hidden, config.attention, gated=config.gated)
        self.classifier = nn.Linear(config.hidden, 1 if n_classes == 2 else n_classes)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`."""
        h_BNH = self.project(x_BND)
        bag_B1H, attention_B1N, raw_B1N = self.attention.pool(h_BNH, mask_BN)
        z = self.classifier(bag_B1H[:, 0])
        logits_BC = two_class_logits(z) if z.shape[-1] == 1 else z
        return MilOutput(logits_BC, attention_B1N, raw_B1N, bag_B1H)

    def loss(self, out: MilOutput, y_B: Tensor, bag_loss: BagLoss) -> Tensor:
        """Bernoulli log-likelihood with a clamped probability; else the plain bag loss."""
        if out.logits_BC.shape[-1] != 2 or bag_loss is not nn.functional.cross_entropy:
            return bag_loss(out.logits_BC, y_B)
        p_BC = out.prob_BC.clamp(PROB_FLOOR, 1 - PROB_FLOOR)
        return -torch.log(p_BC.gather(1, y_B[:, None])).mean()


PLUGIN = Plugin(
    make=Abmil,
    config=AbmilConfig,
    summary="attention MIL, gated or plain (Ilse 2018)",
    sample=samples({}, {"gated": False}),
)
