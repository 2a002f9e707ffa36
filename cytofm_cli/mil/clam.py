"""CLAM: attention MIL whose attention also trains instance classifiers (Lu et al. 2021).

`methods/clam_sb.py` has one attention branch for all classes, `methods/clam_mb.py` one a class.
Legend: B bags, N instances, D features, H projected width, C classes, K branches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.mil.base import BagLoss, MilHead, MilOutput
from cytofm_cli.mil.layers import AttentionScores, Projection
from cytofm_cli.registry import Sample

SMOOTH_GAP = math.log(1000.0)  # beyond it the hard maximum equals the smooth one, and is safer


@dataclass(frozen=True, kw_only=True)
class ClamConfig(Settings):
    """Settings of CLAM."""

    hidden: int = option(512, "width of the projection", low=1)
    attention: int = option(256, "width of the attention network: 256 small, 384 big", low=1)
    dropout: float = option(0.25, "dropout after the projection and on the gate", low=0, high=0.95)
    k: int = option(8, "instances taken from each end of the attention ranking", low=0)
    overlap: bool = option(
        False, "in bags under 2k let an instance count as both ends, as the official code does"
    )
    instance_loss: Literal["svm", "ce"] = option(
        "svm", "loss of the instance classifiers: smooth top-1 SVM or cross-entropy"
    )
    subtyping: bool = option(False, "the other classes' top instances count as negatives too")
    bag_weight: float = option(
        0.7, "weight of the bag loss; the rest is the instance loss", low=0, high=1
    )


class Clam(MilHead):
    """Gated attention, plus instance classifiers fed by the ends of its ranking.

    The instance score is the instance classifiers' probability of each class.
    """

    multi_branch: ClassVar[bool] = False
    gap: ClassVar[str] = (
        "dropout of the gate follows the setting (official: 0.25 whenever it is on)"
    )
    # The commands in the authors' README; class-balanced sampling; the first pass after which
    # training may stop is the 52nd (epoch index > 50).
    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "epochs": 200,
        "min_epochs": 52,
        "patience": 20,
        "balance": "sampling",
    }
    OFFICIAL_HEAD: ClassVar[Mapping[str, Any]] = {"overlap": True}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {
        "hidden": 128,
        "attention": 64,
        "dropout": 0.5,
        "instance_loss": "ce",
    }

    def __init__(self, n_features: int, n_classes: int, config: ClamConfig) -> None:
        super().__init__()
        self.config = config
        branches = n_classes if self.multi_branch else 1
        self.project = Projection(n_features, config.hidden, config.dropout)
        self.attention = AttentionScores(
            config.hidden, config.attention, branches, dropout=config.dropout
        )
        self.classifier = nn.Linear(config.hidden, n_classes)
        # One 2-way classifier a class. Modules of their own: a class that a bag does not ask gets
        # no gradient at all, so that the optimiser leaves it alone instead of decaying it.
        self.instance = nn.ModuleList(nn.Linear(config.hidden, 2) for _ in range(n_classes))
        self.register_load_state_dict_pre_hook(_split_instance_weights)  # type: ignore[no-untyped-call]

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`."""
        h_BNH = self.project(x_BND)
        bag_BKH, attention_BKN, raw_BKN = self.attention.pool(h_BNH, mask_BN)
        if self.multi_branch:
            logits_BC = (bag_BKH * self.classifier.weight).sum(-1) + self.classifier.bias
            map_classes: tuple[int | None, ...] = tuple(range(logits_BC.shape[-1]))
        else:
            logits_BC, map_classes = self.classifier(bag_BKH[:, 0]), (None,)
        aux = {"h_BNH": h_BNH}
        if mask_BN is not None:
            aux["mask_BN"] = mask_BN
        score_BCN = None if self.training else self._scores(h_BNH)
        return MilOutput(
            logits_BC,
            attention_BKN,
            raw_BKN,
            bag_BKH,
            map_classes,
            score_BCN,
            "probability of the class by its instance classifier",
            aux,
        )

    def loss(self, out: MilOutput, y_B: Tensor, bag_loss: BagLoss) -> Tensor:
        """Weigh bag and instance loss; a bag too small for k = 1 has no instance loss."""
        bag = bag_loss(out.logits_BC, y_B)
        weight = self.config.bag_weight
        instance = torch.stack(
            [self.instance_loss(out, b, int(y))[0] for b, y in enumerate(y_B.tolist())]
        ).mean()
        return weight * bag + (1 - weight) * instance

    def instance_loss(self, out: MilOutput, bag: int, y: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the instance loss of one bag.

        Returns:
            loss (), and the logits (S, 2) and targets (S,) of the chosen instances, class by class.
        """
        # The ranking is not differentiated. A batch of one is squeezed, not indexed: the gradient
        # of an index is a whole tensor of zeros.
        raw_KN = out.attention_raw_BKN[bag].detach()
        h_BNH = out.aux["h_BNH"]
        h_NH = h_BNH[bag] if len(h_BNH) > 1 else h_BNH.squeeze(0)
        if "mask_BN" in out.aux:
            real = out.aux["mask_BN"][bag]
            h_NH, raw_KN = h_NH[real], raw_KN[:, real]
        n = h_NH.shape[0]
        k = min(self.config.k, n if self.config.overlap else n // 2)
        losses, logits, targets = [h_NH.new_zeros(())], [], []
        n_classes = len(self.instance)
        for c, classifier in enumerate(self.instance if k else ()):
            if c != y and not self.config.subtyping:
                continue
            ranking_N = raw_KN[c if self.multi_branch else 0]
            chosen = ranking_N.topk(k).indices
            target = torch.ones(k, dtype=torch.long, device=h_NH.device)
            if c == y:
                chosen = torch.cat([chosen, (-ranking_N).topk(k).indices])
                target = torch.cat([target, torch.zeros_like(target)])
            else:
                target = torch.zeros_like(target)
            logits_S2 = classifier(h_NH[chosen])
            losses.append(self._two_way(logits_S2, target))
            logits.append(logits_S2)
            targets.append(target)
        total = torch.stack(losses).sum() / (n_classes if self.config.subtyping else 1)
        empty = h_NH.new_zeros((0, 2))
        return total, torch.cat([empty, *logits]), torch.cat([empty[:, 0].long(), *targets])

    def _two_way(self, logits_S2: Tensor, target_S: Tensor) -> Tensor:
        if self.config.instance_loss == "ce":
            return nn.functional.cross_entropy(logits_S2, target_S)
        return smooth_svm(logits_S2, target_S)

    def _scores(self, h_BNH: Tensor) -> Tensor:
        z_BCN2 = torch.stack([classifier(h_BNH) for classifier in self.instance], dim=1)
        return z_BCN2.softmax(-1)[..., 1]


def _split_instance_weights(
    module: nn.Module, state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Read models of before: the classifiers of all classes lay side by side in one layer."""
    for kind in ("weight", "bias"):
        joined = state.pop(f"{prefix}instance.{kind}", None)
        for c, rows in enumerate(() if joined is None else joined.split(2)):
            state[f"{prefix}instance.{c}.{kind}"] = rows


def smooth_svm(logits_SC: Tensor, target_S: Tensor) -> Tensor:
    """Compute the smooth top-1 SVM loss, margin and temperature 1 (Berrada et al. 2018, eq. 10).

    log Σ_j exp(s_j + [j ≠ y] − s_y), averaged; where the best two scores lie ln 1000 or more
    apart, the maximum takes the place of log Σ exp.
    """
    if target_S.ndim != 1 or len(target_S) != len(logits_SC):
        # A column of targets would broadcast across all pairs and give a wrong, larger loss.
        raise UsageError(f"targets of shape {tuple(target_S.shape)}, expected ({len(logits_SC)},).")
    other_SC = 1 - nn.functional.one_hot(target_S, logits_SC.shape[1])
    margin_SC = logits_SC + other_SC - logits_SC.gather(1, target_S[:, None])
    best_S2 = logits_SC.detach().topk(2, dim=1).values
    far_S = best_S2[:, 0] - best_S2[:, 1] >= SMOOTH_GAP
    return torch.where(far_S, margin_SC.amax(1), margin_SC.logsumexp(1)).mean()


def samples(_folder: Path) -> list[Sample]:
    """Return how the conformance suite runs both kinds of CLAM."""
    idle = ("instance.0", "instance.2")  # only the classifier of the bag's own class is asked
    asked = {"instance_loss": "svm", "subtyping": True}
    return [
        Sample(traits={"idle": idle}),
        Sample(settings=asked),
        Sample(settings=asked | {"instance_loss": "ce"}),
    ]
