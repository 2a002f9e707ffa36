"""DTFD-MIL: double-tier feature distillation over pseudo-bags (Zhang et al., CVPR 2022).

Legend: B bags, N instances, D features, H projected width, C classes, G pseudo-bags,
S distilled vectors, M instances of one pseudo-bag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import BagLoss, MilHead, MilOutput
from cytofm_cli.mil.layers import AttentionScores, within
from cytofm_cli.registry import Plugin, samples


@dataclass(frozen=True, kw_only=True)
class DtfdConfig(Settings):
    """Settings of DTFD-MIL."""

    hidden: int = option(512, "width of the projection", low=1)
    attention: int = option(128, "width of the attention networks", low=1)
    pseudo_bags: int = option(4, "pseudo-bags a slide; never more than instances", low=1)
    # 0 is refused: "the last 0 instances" is the whole pseudo-bag in the official code.
    per_end: int = option(1, "instances taken from each end of a pseudo-bag", low=1)
    distill: Literal["AFS", "MaxS", "MaxMinS"] = option(
        "AFS",
        "AFS: the pseudo-bag's vector; MaxS: top instances; MaxMinS: top and bottom instances",
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
        self.project = nn.Sequential(
            nn.Linear(n_features, config.hidden, bias=False), nn.ReLU(inplace=True)
        )
        self.attention = AttentionScores(config.hidden, config.attention)
        self.classifier = nn.Linear(config.hidden, n_classes)
        self.attention2 = AttentionScores(config.hidden, config.attention)
        self.classifier2 = nn.Linear(config.hidden, n_classes)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`. `seeds` fix the partitions in evaluation."""
        h_BNH = self.project(x_BND)
        seeds = seeds or [0] * len(x_BND)
        if len(x_BND) == 1 and mask_BN is None:
            # Squeezed, not indexed: the gradient of an index is a whole tensor of zeros.
            rows = [self._judge(h_BNH.squeeze(0), seeds[0])]
        else:
            real = x_BND.new_ones(x_BND.shape[:2], dtype=torch.bool) if mask_BN is None else mask_BN
            rows = [self._judge(h_BNH[b][real[b]], seed) for b, seed in enumerate(seeds)]
        raw_B1N = _laid_out([row.raw_1N for row in rows], mask_BN, -torch.inf)
        tier1 = {"tier1_BGC": torch.stack([row.tier1_GC for row in rows])} if self.training else {}
        return MilOutput(
            torch.stack([row.logits_C for row in rows]),
            raw_B1N.softmax(-1),
            raw_B1N,
            torch.stack([row.bag_H for row in rows])[:, None],
            score_BCN=_laid_out([row.cam_CN for row in rows], mask_BN, 0.0),
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
        self, h_NH: Tensor, bags_GH: Tensor, attention_GN: Tensor, parts: Sequence[Tensor]
    ) -> Tiers:
        """Run both tiers on pseudo-bags that are pooled already.

        Args:
            h_NH: projected instances.
            bags_GH: vectors of the pseudo-bags.
            attention_GN: softmax inside each pseudo-bag, zero outside it.
            parts: indices of the instances of each.
        """
        attention_N = attention_GN.sum(0)
        with torch.no_grad():  # ranks and shows, never trains
            cam_NC = (attention_N[:, None] * (h_NH @ self.classifier.weight.T)).softmax(-1)
        afs = self.config.distill == "AFS"
        ends = [part_M[:0] if afs else self._ends(part_M, cam_NC[:, -1]) for part_M in parts]
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

    def split(self, permutation_N: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Cut a permutation into near-equal pseudo-bags, in order.

        Returns:
            indices of each, and bool (G, N): which instances lie outside of which.
        """
        wanted, n = self.config.pseudo_bags, len(permutation_N)
        parts = torch.tensor_split(
            permutation_N, wanted if self.config.keep_empty else min(wanted, n)
        )
        outside_GN = torch.ones(len(parts), n, dtype=torch.bool, device=permutation_N.device)
        for outside_N, part_M in zip(outside_GN, parts, strict=True):
            outside_N[part_M] = False
        return parts, outside_GN

    def _ends(self, part_M: Tensor, last_class_N: Tensor) -> Tensor:
        order = part_M[last_class_N[part_M].argsort(descending=True, stable=True)]
        top, bottom = order[: self.config.per_end], order[-self.config.per_end :]
        return top if self.config.distill == "MaxS" else torch.cat([top, bottom])

    def _judge(self, h_NH: Tensor, seed: int) -> _Judged:
        n, device = len(h_NH), h_NH.device
        if self.training:
            parts, outside_GN = self.split(torch.randperm(n).to(device))
            bags_GH, attention_GN, raw_1N = self.attention.pool_parts(h_NH, outside_GN)
            drawn = [self.tiers(h_NH, bags_GH, attention_GN, parts)]
            logits_C = drawn[0].tier2_C
        else:
            generator, drawn = torch.Generator().manual_seed(seed), []
            raw_1N = self.attention(h_NH[None])[0]
            for _ in range(self.config.draws):
                permutation_N = torch.randperm(n, generator=generator).to(device)
                parts, outside_GN = self.split(permutation_N)
                attention_GN = within(raw_1N, outside_GN)
                drawn.append(self.tiers(h_NH, attention_GN @ h_NH, attention_GN, parts))
            logits_C = torch.stack([t.tier2_C.softmax(-1) for t in drawn]).mean(0).log()
        return _Judged(
            raw_1N,
            drawn[0].tier1_GC,
            logits_C,
            torch.stack([t.bag_H for t in drawn]).mean(0),
            torch.stack([t.cam_CN for t in drawn]).mean(0),
        )


class _Judged(NamedTuple):
    """What is found for one bag: raw attention, logits of both tiers, bag vector, activations."""

    raw_1N: Tensor
    tier1_GC: Tensor
    logits_C: Tensor
    bag_H: Tensor
    cam_CN: Tensor


def _laid_out(rows_KN: Sequence[Tensor], mask_BN: Tensor | None, padding: float) -> Tensor:
    """Stack rows of real instances as (B, K, N)."""
    if mask_BN is None:
        return torch.stack(list(rows_KN))
    shape = (len(rows_KN[0]), mask_BN.shape[1])
    laid = [
        row_KN.new_full(shape, padding).index_copy(1, real_N.nonzero().squeeze(1), row_KN)
        for row_KN, real_N in zip(rows_KN, mask_BN, strict=True)
    ]
    return torch.stack(laid)


PLUGIN = Plugin(
    make=Dtfd,
    config=DtfdConfig,
    summary="double-tier distillation (Zhang 2022)",
    sample=samples({}, {"distill": "MaxS"}, {"distill": "MaxMinS", "per_end": 3}),
)
