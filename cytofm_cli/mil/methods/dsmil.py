"""DSMIL: dual-stream MIL around a critical instance (Li, Li & Eliceiri, CVPR 2021).

Legend: B bags, N instances, D features, P positive classes, C = P + 1 classes, Q query width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import BagLoss, MilHead, MilOutput
from cytofm_cli.mil.layers import masked_softmax
from cytofm_cli.registry import Plugin, samples


@dataclass(frozen=True, kw_only=True)
class DsmilConfig(Settings):
    """Settings of DSMIL."""

    query: int = option(128, "width of the queries", low=1)
    non_linear: bool = option(True, "two layers with tanh make the queries; else one linear layer")
    init: Literal["orthogonal", "zero", "default"] = option(
        "orthogonal",
        "initial weights; orthogonal: as published; zero: the same, but both classifiers start at "
        "0 and prefer no instance",
    )


class Dsmil(MilHead):
    """Score every instance; attend from the best one of each class.

    One sigmoid output a positive class; the first class is "none of them" (all targets 0). The
    class probabilities are those of independent sigmoids of which at most one is on: logits
    (0, z_1, …). The instance score is the first stream's logit.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "betas": (0.5, 0.9),
        "weight_decay": 1e-3,
        "epochs": 50,
        "patience": 11,  # the official loop stops when more than 10 passes brought nothing
        "schedule": "cosine",
        "lr_end": 5e-6,
        "select": "auc_accuracy",
        "ties": "first",
        "shuffle_instances": True,
    }
    # Orthogonal, a classifier of one output is a random direction of length 1, in which instances
    # of standardised features differ by 1. It, not the labels, then picks the critical instance of
    # each bag, and both streams learn these by heart: docs/mil-benchmark.md.
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"init": "zero"}
    gap: ClassVar[str] = (
        "selection on validation (official default: on the test fold), by accuracy of the most "
        "probable class (official: at the best threshold of the fold it is judged on)"
    )

    def __init__(self, n_features: int, n_classes: int, config: DsmilConfig) -> None:
        super().__init__()
        outputs = n_classes - 1
        self.instance = nn.Linear(n_features, outputs)
        self.query: nn.Module = (
            nn.Sequential(
                nn.Linear(n_features, config.query),
                nn.ReLU(),
                nn.Linear(config.query, config.query),
                nn.Tanh(),
            )
            if config.non_linear
            else nn.Linear(n_features, config.query)
        )
        # A kernel as long as the features: every output sees the bag vectors of all classes.
        self.bag = nn.Conv1d(outputs, outputs, n_features)
        if config.init != "default":
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Conv1d):
                    nn.init.orthogonal_(module.weight)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if config.init == "zero":
            for module in (self.instance, self.bag):
                nn.init.zeros_(module.weight)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`."""
        z_BNP = self.instance(x_BND)
        candidates_BNP = z_BNP
        if mask_BN is not None:  # else a padding row can be the critical instance
            candidates_BNP = z_BNP.masked_fill(~mask_BN[..., None], -torch.inf)
        best_BP, critical_BP = candidates_BNP.max(1)
        q_BNQ = self.query(x_BND)
        index_BPQ = critical_BP[..., None].expand(-1, -1, q_BNQ.shape[-1])
        raw_BPN = q_BNQ.gather(1, index_BPQ) @ q_BNQ.transpose(1, 2) / q_BNQ.shape[-1] ** 0.5
        attention_BPN = masked_softmax(raw_BPN, mask_BN)
        bag_BPD = attention_BPN @ x_BND
        z_BP = self.bag(bag_BPD)[..., 0]
        none_BN = torch.zeros_like(z_BNP[..., :1])
        return MilOutput(
            _with_negative(z_BP),
            attention_BPN,
            raw_BPN,
            bag_BPD,
            tuple(range(1, z_BP.shape[-1] + 1)),
            torch.cat([none_BN, z_BNP], -1).transpose(1, 2),
            "logit of the instance against the first class",
            {"best_BP": best_BP, "critical_BP": critical_BP},
        )

    def loss(self, out: MilOutput, y_B: Tensor, bag_loss: BagLoss) -> Tensor:
        """Half the bag's and half the best instance's binary cross-entropy."""
        best_BP = out.aux["best_BP"]
        if bag_loss is not nn.functional.cross_entropy:
            streams = (out.logits_BC, _with_negative(best_BP))
            return (bag_loss(streams[0], y_B) + bag_loss(streams[1], y_B)) / 2
        target_BP = nn.functional.one_hot(y_B, best_BP.shape[-1] + 1)[:, 1:].to(best_BP.dtype)
        both = torch.stack([out.logits_BC[:, 1:], best_BP])
        return nn.functional.binary_cross_entropy_with_logits(both, target_BP.expand_as(both))


def _with_negative(z_BP: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(z_BP[:, :1]), z_BP], dim=-1)


PLUGIN = Plugin(
    make=Dsmil,
    config=DsmilConfig,
    summary="dual-stream MIL (Li 2021)",
    sample=samples({}, {"non_linear": False, "init": "orthogonal"}),
)
