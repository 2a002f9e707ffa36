"""DTFD-MIL: double-tier feature distillation over pseudo-bags (Zhang et al., CVPR 2022).

Legend: B bags, N instances, D features, H projected width, C classes, G pseudo-bags,
S distilled vectors, M instances of one pseudo-bag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from cytofm_cli.config import option
from cytofm_cli.mil.base import BagLoss, MilHead, MilOutput
from cytofm_cli.mil.layers import AttentionScores
from cytofm_cli.registry import Plugin


@dataclass(frozen=True, kw_only=True)
class DtfdConfig:
    """Settings of DTFD-MIL."""

    hidden: int = option(512, "width of the projection", low=1)
    attention: int = option(128, "width of the attention networks", low=1)
    pseudo_bags: int = option(4, "pseudo-bags a slide; never more than instances", low=1)
    # 0 is refused: "the last 0 instances" is the whole pseudo-bag in the official code.
    per_end: int = option(1, "instances taken from each end of a pseudo-bag", low=1)
    distill: str = option(
        "AFS",
        "AFS: the pseudo-bag's vector; MaxS: top instances; MaxMinS: top and bottom instances",
        choices=("AFS", "MaxS", "MaxMinS"),
    )
    draws: int = option(5, "random partitions averaged in evaluation", low=1)
    keep_empty: bool = option(
        False, "more pseudo-bags than instances: feed zero vectors, as the official code does"
    )


class Tiers(NamedTuple):
    """What one partition gives.

    Attributes:
        tier1_GC: logits of the pseudo-bags.
        tier2_C: logits of the bag.
        attention_N: softmax inside each pseudo-bag, in the bag's order.
        cam_CN: class-activation probabilities of the instances.
        distilled_SH: what went to tier 2.
        indices_S: which instances those are; empty for AFS.
        tier2_attention_S: attention over the distilled vectors.
        bag_H: the bag vector of tier 2.
    """

    tier1_GC: Tensor
    tier2_C: Tensor
    attention_N: Tensor
    cam_CN: Tensor
    distilled_SH: Tensor
    indices_S: Tensor
    tier2_attention_S: Tensor
    bag_H: Tensor


class Dtfd(MilHead):
    """Attend within random pseudo-bags, distil them, attend over what was distilled.

    Tier 2 never trains tier 1: the distilled vectors are detached, which is what the official
    two-optimiser loop amounts to. The instance score is the class activation, good for ranking
    only; the attention map is tier 1's over the whole bag.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 1e-4,
        "epochs": 200,
        "patience": 0,
        "schedule": "step",
        "step_epoch": 100,
        "step_factor": 0.2,
        "clip_norm": 5.0,
        "select": "auc",
        "select_from": 0.805,  # after, not from, the 160th of 200
        "ties": "first",
    }
    OFFICIAL_HEAD: ClassVar[Mapping[str, Any]] = {"draws": 1, "keep_empty": True}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"hidden": 128, "attention": 64}
    order_matters: ClassVar[bool] = True
    gap: ClassVar[str] = "partitions in evaluation are fixed by the slide's id, not drawn anew"

    def __init__(self, n_features: int, n_classes: int, config: DtfdConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Sequential(nn.Linear(n_features, config.hidden, bias=False), nn.ReLU())
        self.attention = AttentionScores(config.hidden, config.attention)
        self.classifier = nn.Linear(config.hidden, n_classes)
        self.attention2 = AttentionScores(config.hidden, config.attention)
        self.classifier2 = nn.Linear(config.hidden, n_classes)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`. `seeds` fix the partitions in evaluation."""
        h_BNH = self.project(x_BND)
        raw_B1N = self.attention(h_BNH)
        rows = [
            self._judge(h_BNH[b], raw_B1N[b, 0], None if mask_BN is None else mask_BN[b], seed)
            for b, seed in enumerate(seeds or [0] * len(x_BND))
        ]
        if mask_BN is not None:
            raw_B1N = raw_B1N.masked_fill(~mask_BN[:, None], -torch.inf)
        tier1 = {"tier1_BGC": torch.stack([row[0] for row in rows])} if self.training else {}
        return MilOutput(
            torch.stack([row[1] for row in rows]),
            raw_B1N.softmax(-1),
            raw_B1N,
            torch.stack([row[2] for row in rows])[:, None],
            score_BCN=torch.stack([row[3] for row in rows]),
            score_kind="class activation in tier 1 (for ranking within the slide)",
            aux=tier1,
        )

    def loss(self, out: MilOutput, y_B: Tensor, bag_loss: BagLoss) -> Tensor:
        """Sum the bag losses of both tiers; a pseudo-bag has its bag's label."""
        tier1_BGC = out.aux["tier1_BGC"]
        labels = y_B.repeat_interleave(tier1_BGC.shape[1])
        return bag_loss(tier1_BGC.flatten(0, 1), labels) + bag_loss(out.logits_BC, y_B)

    def clip_parts(self) -> list[list[nn.Parameter]]:
        """Bound the gradient norm of tier 2 as a whole, as the official code does."""
        tier2 = [*self.attention2.parameters(), *self.classifier2.parameters()]
        tier1 = (self.project, self.attention, self.classifier)
        return [*(list(module.parameters()) for module in tier1), tier2]

    def tiers(
        self, h_NH: Tensor, raw_N: Tensor, permutation_N: Tensor, n_parts: int | None = None
    ) -> Tiers:
        """Run both tiers on one partition: `permutation_N` cut into near-equal parts in order."""
        n_parts = n_parts or self._parts(len(h_NH))
        parts = torch.tensor_split(permutation_N, n_parts)
        # One matrix of attention for all pseudo-bags: their vectors are one product with the bag
        # where it lies, instead of a copy of each part.
        attention_GN = _attend_within(raw_N, parts)
        bags_GH = attention_GN @ h_NH
        attention_N = attention_GN.sum(0)
        cam_NC = (attention_N[:, None] * (h_NH @ self.classifier.weight.T)).softmax(-1)
        afs = self.config.distill == "AFS"
        last_class_N = cam_NC.detach()[:, -1]
        ends = [part_M[:0] if afs else self._ends(part_M, last_class_N) for part_M in parts]
        indices_S = torch.cat(ends)
        distilled_SH = (bags_GH if afs else h_NH[indices_S]).detach()
        attention_S = self.attention2(distilled_SH[None])[0, 0].softmax(-1)
        bag_H = attention_S @ distilled_SH
        return Tiers(
            self.classifier(bags_GH),
            self.classifier2(bag_H),
            attention_N,
            cam_NC.T,
            distilled_SH,
            indices_S,
            attention_S,
            bag_H,
        )

    def _parts(self, n: int) -> int:
        wanted = self.config.pseudo_bags
        return wanted if self.config.keep_empty else min(wanted, n)

    def _ends(self, part_M: Tensor, last_class_N: Tensor) -> Tensor:
        order = part_M[last_class_N[part_M].argsort(descending=True, stable=True)]
        top, bottom = order[: self.config.per_end], order[-self.config.per_end :]
        return top if self.config.distill == "MaxS" else torch.cat([top, bottom])

    def _judge(
        self, h_NH: Tensor, raw_N: Tensor, mask_N: Tensor | None, seed: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tier-1 logits, bag logits, bag vector and activations of one bag."""
        where_N = torch.arange(len(h_NH), device=h_NH.device)
        where_N = where_N if mask_N is None else where_N[mask_N]
        h, raw, n = h_NH[where_N], raw_N[where_N], len(where_N)
        if self.training:
            drawn = [self.tiers(h, raw, torch.randperm(n).to(h.device))]
            logits_C = drawn[0].tier2_C
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = [
                self.tiers(h, raw, torch.randperm(n, generator=generator).to(h.device))
                for _ in range(self.config.draws)
            ]
            logits_C = torch.stack([t.tier2_C.softmax(-1) for t in drawn]).mean(0).log()
        cam_CN = raw_N.new_zeros((len(logits_C), len(raw_N)))
        cam_CN[:, where_N] = torch.stack([t.cam_CN for t in drawn]).mean(0).detach()
        bag_H = torch.stack([t.bag_H for t in drawn]).mean(0)
        return drawn[0].tier1_GC, logits_C, bag_H, cam_CN


def _attend_within(raw_N: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return softmax inside each part, (G, N), zero outside it; an empty part is a zero row."""
    part_of_N = torch.empty_like(raw_N, dtype=torch.long)
    for g, part_M in enumerate(parts):
        part_of_N[part_M] = g
    outside_GN = part_of_N != torch.arange(len(parts), device=raw_N.device)[:, None]
    attention_GN = raw_N.masked_fill(outside_GN, -torch.inf).softmax(-1)
    empty_G1 = torch.tensor([[not len(part_M)] for part_M in parts], device=raw_N.device)
    return attention_GN.masked_fill(empty_G1, 0.0)


PLUGIN = Plugin(make=Dtfd, config=DtfdConfig, summary="double-tier distillation (Zhang 2022)")
