"""Counting classes of cells: the baseline of every clinical cytology system.

The bags are probabilities of classes (`cytofm cells apply`; `--encoder cells:RUN`), not
embeddings. A slide is known by the shares of its classes, as centred log-ratios (Aitchison, J R
Stat Soc B 44:139, 1982) so that 1 in 10 000 and 1 in 1000 cells are as far apart as 1 and 10 %,
or by its most certain cells; a linear layer answers. It is trained and compared as any head.

Legend: B bags, N instances, F classes of cells, C classes of slides, K cells at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import MilHead, MilOutput
from cytofm_cli.registry import Plugin, samples
from cytofm_cli.words import named

_PRIOR = 0.5  # added to every count: a class that is not there has a logarithm
_EDGE = 1e-4  # probabilities nearer to 0 and 1 are alike


@dataclass(frozen=True, kw_only=True)
class CountConfig(Settings):
    """Settings of counting."""

    by: Literal["share", "top"] = option(
        "share", "share: how many cells each class has; top: how certain the most certain ones are"
    )
    hard: bool = option(False, "count a cell for its best class alone, not by probability")
    gate: float = option(
        0.0, "leave out cells whose best class is less probable", low=0.0, high=1.0
    )
    k: int = option(10, "cells at the top whose mean counts, with by=top", low=1)


class Count(MilHead):
    """Shares of classes, or the mean of the most certain cells, and a linear layer.

    One column (the distance of one-class) has no shares: its top is taken as it is.
    """

    needs_classes: ClassVar[bool] = True
    OFFICIAL: ClassVar[Mapping[str, Any]] = {"balance": "weights", "lr": 1e-2}
    CYTOFM: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "standardise": False}

    def __init__(self, n_features: int, n_classes: int, config: CountConfig) -> None:
        super().__init__()
        self.config = config
        self.by_top = config.by == "top" or n_features == 1
        self.classifier = nn.Linear(n_features, n_classes)
        nn.init.zeros_(self.classifier.weight)  # convex: random weights are only noise
        nn.init.zeros_(self.classifier.bias)

    @classmethod
    def notes(
        cls, settings: Sequence[Mapping[str, Any]], bag_of: Mapping[str, NDArray[Any]]
    ) -> list[str]:
        """Say which slides have no cell that is counted: they are all judged alike."""
        if any(of["by"] == "top" for of in settings):
            return []
        gate = min(of["gate"] for of in settings)
        empty = [
            name
            for name, x_ND in bag_of.items()
            if x_ND.shape[1] > 1 and ((best := x_ND.max()) < gate or best <= 0)
        ]
        if not empty:
            return []
        why = f"whose best class reaches gate = {gate:g}" if gate else "that was classified"
        return [
            f"{len(empty)} of {len(bag_of)} slide(s) have no cell {why}, and get the same score: "
            f"{named(empty)}"
        ]

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`. Attention: which cells are counted, or at the top."""
        if mask_BN is None:
            mask_BN = torch.ones(x_BND.shape[:2], dtype=torch.bool, device=x_BND.device)
        summed = self._top if self.by_top else self._shares
        bag_BF, weight_BN = summed(x_BND, mask_BN)
        attention_B1N = (weight_BN / weight_BN.sum(1, keepdim=True))[:, None]
        return MilOutput(
            self.classifier(bag_BF), attention_B1N, weight_BN[:, None], bag_BF[:, None]
        )

    def _shares(self, x_BNF: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        best_BN, class_BN = x_BNF.max(2)
        counted_BN = mask_BN & (best_BN >= self.config.gate) & (best_BN > 0)
        values_BNF = x_BNF.clamp(min=0)
        if self.config.hard:
            values_BNF = nn.functional.one_hot(class_BN, x_BNF.shape[2]).to(x_BNF.dtype)
        count_BF = values_BNF.masked_fill(~counted_BN[..., None], 0).sum(1) + _PRIOR
        log_BF = count_BF.log()
        any_B1 = counted_BN.any(1, keepdim=True)
        weight_BN = torch.where(any_B1, counted_BN, mask_BN).to(x_BNF.dtype)
        return log_BF - log_BF.mean(1, keepdim=True), weight_BN

    def _top(self, x_BNF: Tensor, mask_BN: Tensor) -> tuple[Tensor, Tensor]:
        k = min(self.config.k, x_BNF.shape[1])
        top_BKF, where_BKF = x_BNF.masked_fill(~mask_BN[..., None], -torch.inf).topk(k, dim=1)
        there_BKF = torch.isfinite(top_BKF)  # a bag may have fewer than k cells
        if x_BNF.shape[2] > 1:
            top_BKF = top_BKF.clamp(_EDGE, 1 - _EDGE)
        mean_BF = top_BKF.masked_fill(~there_BKF, 0).sum(1) / there_BKF.sum(1)
        weight_BNF = torch.zeros_like(x_BNF).scatter(1, where_BKF, there_BKF.to(x_BNF.dtype))
        bag_BF = mean_BF if x_BNF.shape[2] == 1 else torch.logit(mean_BF)
        return bag_BF, weight_BNF.sum(2)


PLUGIN = Plugin(
    make=Count,
    config=CountConfig,
    summary="counts of classes of cells (`--encoder cells:RUN`), linear layer",
    sample=samples({}, {"by": "top", "k": 3}, {"hard": True}, {"gate": 0.5}),
)
