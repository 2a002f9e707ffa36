"""What iBOT and DINOv2 share: prototypes of views and of masked patches.

Letters: B tiles, V global views, G = V · B, S student's views, D features, K prototypes,
N patches, M masked patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cytofm_cli.config import option
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import Backbones, Batch, Length, StepOutput, Tokens
from cytofm_cli.pretrain.losses import dino_loss, entropy, masked_patch_loss
from cytofm_cli.pretrain.masking import PatchMasks, draw_masks
from cytofm_cli.pretrain.teacher import PrototypeConfig, PrototypeMethod, encode


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(PrototypeConfig):
    """Settings of iBOT and DINOv2."""

    shared_head: bool = option(True, "views and patches share a head")
    mask_chance: float = option(0.5, "probability that a global view is masked", low=0, high=1)
    mask_low: float = option(0.1, "smallest share of masked patches", low=0, high=1)
    mask_high: float = option(0.5, "largest share of masked patches", low=0, high=1)
    mask_min_patches: int = option(4, "smallest block of masked patches", low=1)
    patch_weight: float = option(1.0, "weight of the patches' loss", low=0)

    def check(self) -> None:
        """Refuse temperatures that cannot be, and masks whose smallest share is the largest."""
        super().check()
        if self.mask_low > self.mask_high:
            raise UsageError(f"{self.said('mask_low')} is above mask_high = {self.mask_high}.")


class MaskedMethod(PrototypeMethod):
    """Views as in DINO, and the teacher's patches where the student sees none.

    Only the student's global views are masked. The heads see masked patches only, and the
    patches' centre is the mean over these; iBOT's code centres by all patches, which are some 7
    times as many and have the same mean up to chance.
    """

    config: MaskedConfig

    def __init__(self, backbones: Backbones, config: MaskedConfig, length: Length) -> None:
        super().__init__(backbones, config, length, masks=True)

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the head of class token and patches, or one for each."""
        c = self.config
        names = ("cls",) if c.shared_head else ("cls", "patch")
        return {name: c.make_head(dim) for name in names}

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Compare views with other views, and masked patches with the same ones."""
        c, n = self.config, batch.n_global
        masks = masks_of(c, batch, self.student().patch_px)
        p_TBK, p_MK = self._teacher(batch.views[:n], masks, step)
        no_masks: list[Tensor | None] = [None] * (len(batch.views) - n)
        mask_VBN: list[Tensor | None] = [*masks.mask_GN.chunk(n), *no_masks]
        tokens = encode(self.student_net.trunk, batch.views, mask_VBN)
        cls_SBD = torch.stack([view.cls_BD for view in tokens])
        logits_SBK, logits_MK = self._score("student_net", cls_SBD, take_masked(tokens[:n], masks))
        view_loss = dino_loss(p_TBK, logits_SBK, c.student_temp)
        patch_loss = masked_patch_loss(p_MK, logits_MK, masks.weight_M, c.student_temp)
        parts = {
            "view_loss": view_loss.detach(),
            "patch_loss": patch_loss.detach(),
            "teacher_entropy": entropy(p_TBK.flatten(0, 1)),
            "patch_entropy": entropy(p_MK),
        }
        loss = view_loss + c.patch_weight * patch_loss
        return self.regularise(StepOutput(loss, cls_SBD[0].detach(), parts), cls_SBD[:n])

    def regularise(self, out: StepOutput, cls_VBD: Tensor) -> StepOutput:
        """Add further losses of the student's class tokens of the global views."""
        return out

    @torch.no_grad()
    def _teacher(
        self, views: Sequence[Tensor], masks: PatchMasks, step: int
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's probabilities of whole views (T, B, K) and patches (M, K)."""
        tokens = encode(self.teacher_net.trunk, views)
        cls_TBD = torch.stack([view.cls_BD for view in tokens])
        cls_TBK, patch_MK = self._score("teacher_net", cls_TBD, take_masked(tokens, masks))
        temperature = self.config.temperature(self.length, step)
        p_GK = self.targets["cls"](cls_TBK.flatten(0, 1), temperature)
        p_MK = self.targets["patch"](patch_MK, temperature)
        return p_GK.view(cls_TBK.shape), p_MK

    def _score(self, net: str, cls_SBD: Tensor, patch_MD: Tensor) -> tuple[Tensor, Tensor]:
        heads = getattr(self, net).heads
        patch_head = heads["cls" if self.config.shared_head else "patch"]
        return heads["cls"](cls_SBD), patch_head(patch_MD)


def masks_of(config: MaskedConfig, batch: Batch, patch_px: int | None) -> PatchMasks:
    """Draw the masks of the global views.

    Args:
        config: of the method.
        batch: whose keys decide.
        patch_px: side of a patch; None: there are none.

    Raises:
        UsageError: there are no patches.
    """
    view = batch.views[0]
    if patch_px is None:
        raise UsageError("masks need a trunk with patches.", hint="--encoder sr-vit-tiny")
    return draw_masks(
        batch.keys_B,
        batch.n_global,
        (view.shape[-2] // patch_px, view.shape[-1] // patch_px),
        chance=config.mask_chance,
        ratio=(config.mask_low, config.mask_high),
        device=view.device,
        min_patches=config.mask_min_patches,
    )


def take_masked(tokens: Sequence[Tokens], masks: PatchMasks) -> Tensor:
    """Return the masked patches of the views, (M, D)."""
    patch_PD = torch.cat([view.patch_BND.flatten(0, 1) for view in tokens])  # type: ignore[union-attr]
    return patch_PD.index_select(0, masks.index_M)
