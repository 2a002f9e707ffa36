"""Distillation as DINOv2 and H0-mini have it: DINO, iBOT and KoLeo with a frozen teacher.

Oquab et al., TMLR 2024, and DINOv3's code, the only public one with the teacher's heads: frozen
trunk and heads; the student sees every view unmasked, a mask only picks the patches that count;
Sinkhorn; what is kept is the running mean of the student. H0-mini (arXiv:2501.16239) names the
same losses and no more.

Few files hold their heads. Where they are missing, heads are first learnt on the frozen teacher
by the same losses between its own views and their running mean (`head_share` of the updates, in
which the student rests), and are learnt on while the student follows that mean.

Letters: B tiles, T global views, S all views, M chosen patches, D features of the student, E of
the teacher, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from cytofm_cli.config import option
from cytofm_cli.encoders import weights
from cytofm_cli.pretrain import ema
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput
from cytofm_cli.pretrain.frozen import StudentConfig, StudentMethod
from cytofm_cli.pretrain.losses import dino_loss, entropy, koleo_loss, masked_patch_loss
from cytofm_cli.pretrain.masking import PatchMasks
from cytofm_cli.pretrain.patches import MaskedConfig, masks_of, take_masked
from cytofm_cli.pretrain.published_heads import published_heads
from cytofm_cli.pretrain.teacher import encode
from cytofm_cli.registry import PretrainPlugin


@dataclass(frozen=True, kw_only=True)
class Config(StudentConfig, MaskedConfig):
    """Settings of the distillation. Published for a ViT-L: K 262 144 and, of patches, 98 304."""

    lr: float = option(4e-4, "learning rate at batch 256 (2e-4 · √(batch / 1024) published)", low=0)
    lr_scaling: Literal["linear", "sqrt"] = option("sqrt", "how it follows the batch")
    shared_head: bool = option(False, "views and patches share a head")
    centring: Literal["mean", "sinkhorn"] = option(
        "sinkhorn", "against collapse: running mean, or Sinkhorn"
    )
    koleo: float = option(0.1, "weight of KoLeo, per global view", low=0)
    head_share: float = option(
        0.1, "share of the updates in which the teacher's heads are learnt first", low=0, high=1
    )
    head_momentum: float = option(
        0.99, "share of themselves that the learnt heads' running mean keeps", low=0, high=1
    )


class DistillDino(StudentMethod):
    """Learn the prototypes of a frozen teacher. Needs a trunk with patches."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        self._published: Mapping[str, nn.Module] = _heads_in_file(config.teacher)
        super().__init__(backbones, config, length)
        names = tuple(self.student_net.heads)
        if self._published:
            self.heads_of_teacher = nn.ModuleDict({n: self._published[n] for n in names})
            self.learnt: nn.ModuleDict | None = None
        else:
            self.learnt = nn.ModuleDict({n: config.make_head(self.frozen.dim) for n in names})
            self.heads_of_teacher = copy.deepcopy(self.learnt)
            self.heads_of_teacher.requires_grad_(requires_grad=False)
        self.targets = nn.ModuleDict({name: config.make_targets() for name in ("cls", "patch")})

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the student's heads; with published ones, as many prototypes as they have."""
        names = ("cls",) if self.config.shared_head and not self._published else ("cls", "patch")
        heads: dict[str, nn.Module] = {}
        for name in names:
            head = self._published.get(name)
            n = self.config.prototypes if head is None else len(head.last_KD)  # type: ignore[arg-type]
            heads[name] = self.config.make_head(dim, n)
        return heads

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compare the student's views with the teacher's other ones, and chosen patches."""
        c, n = self.config, batch.n_global
        asked = [self.frozen(view) for view in batch.views[:n]]
        cls_TBE = torch.stack([view.cls_BD for view in asked])
        masks = masks_of(c, batch, self.student().patch_px)
        patch_ME = take_masked(asked, masks)
        temperature = c.temperature(self.length, step)
        with torch.no_grad():
            scores_TBK, scores_MK = _score(self.heads_of_teacher, cls_TBE, patch_ME)
            p_GK = self.targets["cls"](scores_TBK.flatten(0, 1), temperature)
            p_TBK, p_MK = p_GK.view(scores_TBK.shape), self.targets["patch"](scores_MK, temperature)
        tokens = encode(self.student_net.trunk, batch.views)
        cls_SBD = torch.stack([view.cls_BD for view in tokens])
        said = _score(self.student_net.heads, cls_SBD, take_masked(tokens[:n], masks))
        view_loss, patch_loss = self._losses(p_TBK, p_MK, said, masks)
        spread = torch.stack([koleo_loss(cls_BD) for cls_BD in cls_SBD[:n]]).sum()
        loss = view_loss + c.patch_weight * patch_loss + c.koleo * spread
        parts = {"view_loss": view_loss.detach(), "patch_loss": patch_loss.detach()}
        parts |= {"koleo": spread.detach(), "teacher_entropy": entropy(p_TBK.flatten(0, 1))}
        if self.learnt is not None:
            own = self._losses(p_TBK, p_MK, _score(self.learnt, cls_TBE, patch_ME), masks)
            parts["head_loss"] = own[0].detach()
            loss = loss * self._follows(step) + own[0] + c.patch_weight * own[1]
        return StepOutput(loss, cls_SBD[0].detach(), parts)

    def _follows(self, step: int) -> float:
        """Return 0 while the teacher's heads are learnt first, then 1."""
        return float(step >= self.config.head_share * self.length.n_steps)

    def _losses(
        self, p_TBK: Tensor, p_MK: Tensor, said: tuple[Tensor, Tensor], masks: PatchMasks
    ) -> tuple[Tensor, Tensor]:
        temperature = self.config.student_temp
        patch_loss = masked_patch_loss(p_MK, said[1], masks.weight_M, temperature)
        return dino_loss(p_TBK, said[0], temperature), patch_loss

    def after_update(self, step: int) -> None:
        """Move the running means and the centres."""
        super().after_update(step)
        if self.learnt is not None:
            ema.follow(self.heads_of_teacher, self.learnt, self.config.head_momentum)
        for targets in self.targets.values():
            targets.move()  # type: ignore[operator]

    def notes(self) -> tuple[str, ...]:
        """Say whose heads are taken."""
        whose = "its file's heads" if self.learnt is None else "heads learnt on it first"
        return (*super().notes(), f"teacher {self.frozen.name}: {whose}")


def _score(heads: nn.ModuleDict, cls_SBD: Tensor, patch_MD: Tensor) -> tuple[Tensor, Tensor]:
    patch_head = heads["patch" if "patch" in heads else "cls"]
    return heads["cls"](cls_SBD), patch_head(patch_MD)


def _heads_in_file(word: str) -> Mapping[str, nn.Module]:
    name, _, file = word.partition("=")
    path = Path(file or name)
    return published_heads(weights.read_state(path), str(path)) if path.is_file() else {}


PLUGIN = PretrainPlugin(
    make=DistillDino,
    config=Config,
    summary="distillation of a frozen ViT as DINOv2 and H0-mini have it",
    views={"recipe": "dinov2"},
    sample="cytofm_cli.testing.samples.teachers:dino",
)
