"""Distillation: regress what a frozen encoder says of a crop, and tell crops apart.

The teacher is any encoder of cytofm, a foundation model (as H0-mini has H-optimus-0) or the
hand-made features. It sees the first view's crop, or the whole tile (`teacher_px`), with colours
unchanged; the student sees both augmented views. Its features are standardised
(`losses.Standardise`) and regressed by a linear head with smooth L1, near to AM-RADIO (Ranzinger
et al., CVPR 2024, which adds a cosine); a contrastive loss as SimCLR's finds what the teacher
does not know. Our combination, not a published recipe.

Letters: B tiles, D features of the student, E features of the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.config import option
from cytofm_cli.encoders.base import Encoder
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.base import (
    Backbone,
    Backbones,
    Batch,
    Length,
    Method,
    MethodConfig,
    StepOutput,
    Tokens,
)
from cytofm_cli.pretrain.frozen import open_teacher
from cytofm_cli.pretrain.heads import projector
from cytofm_cli.pretrain.losses import Standardise, nt_xent
from cytofm_cli.pretrain.teacher import encode, require_temperature
from cytofm_cli.registry import PretrainPlugin, samples
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class Config(MethodConfig):
    """Settings of the distillation."""

    SHORT_RUNS: ClassVar[bool] = True

    lr: float = option(2e-3, "learning rate at batch 256", low=0)
    min_lr: float = option(0.0, "learning rate at the end", low=0)
    weight_decay: float = option(0.05, "weight decay at the start", low=0)
    weight_decay_end: float = option(0.05, "weight decay at the end (cosine)", low=0)
    decayed: Literal["all", "weights", "matrices"] = option(
        "matrices", "what decays: all, weights or matrices"
    )
    drop_path: float = option(0.0, "largest rate of dropped residual branches", low=0, high=1)
    teacher: str = option(
        "handcrafted",
        "encoder to learn from: a name, NAME=FILE, or a weight file",
    )
    teacher_crops: tuple[float, ...] = option(
        (1.0,), "squares about the middle of its view that the teacher describes, shares of a side"
    )
    tokens: Literal["cls", "cls+mean"] = option(
        "cls", "what of the student is compared: the class token, or with the mean of its patches"
    )
    contrast: float = option(0.3, "weight of the contrastive loss beside the regression", low=0)
    hidden: int = option(512, "width of the projector's hidden layer", low=1)
    out: int = option(128, "length of a projection", low=1)
    temperature: float = option(0.2, "temperature of the contrast", low=0)

    def check(self) -> None:
        """Refuse a temperature or squares that cannot be."""
        require_temperature(self, "temperature")
        if not self.teacher_crops or not all(0 < share <= 1 for share in self.teacher_crops):
            raise UsageError(
                f"{self.said('teacher_crops')}: shares above 0, up to 1.",
                hint="teacher_crops = 0.5,1",
            )


class Distill(Method):
    """A student of a frozen encoder. Any trunk will do."""

    config: Config

    def __init__(self, backbones: Backbones, config: Config, length: Length) -> None:
        super().__init__()
        self.config = config
        self.teacher: Encoder = open_teacher(config.teacher)  # no part of the run's state
        self.trunk = backbones(role="student")
        joins = config.tokens == "cls+mean"
        if joins and self.trunk.patch_px is None:
            raise UsageError("tokens = cls+mean: the trunk has no patches.", hint="tokens = cls")
        dim = self.trunk.dim * (2 if joins else 1)
        teacher_dim = self.teacher.spec.dim * len(config.teacher_crops)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, teacher_dim))
        self.standardise = Standardise(teacher_dim)
        self.projector = projector((dim, config.hidden, config.out), bias=False, last_norm=True)

    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Regress the teacher's features of each tile from both of its views."""
        *views, plain_BCHW = _three_views(batch)
        target_BE = self.standardise(self._ask(plain_BCHW))
        x_BD, y_BD = (self._compared(tokens) for tokens in encode(self.trunk, views))
        said = self.head(torch.cat([x_BD, y_BD]))
        regression = functional.smooth_l1_loss(said, target_BE.repeat(2, 1))
        first, second = self.projector(torch.cat([x_BD, y_BD])).chunk(2)
        contrast = nt_xent(first, second, self.config.temperature)
        parts = {"regression": regression.detach(), "contrast": contrast.detach()}
        return StepOutput(regression + self.config.contrast * contrast, x_BD.detach(), parts)

    def _compared(self, tokens: Tokens) -> Tensor:
        """Return the vector of each image that is compared, (B, D)."""
        if self.config.tokens == "cls" or tokens.patch_BND is None:
            return tokens.cls_BD
        return torch.cat([tokens.cls_BD, tokens.patch_BND.mean(1)], 1)

    def after_update(self, step: int) -> None:
        """Count in the teacher's features."""
        self.standardise.move()

    @torch.no_grad()
    def _ask(self, plain_BCHW: Tensor) -> Tensor:
        """Return the teacher's features of unchanged views, all crops of one in a row, (B, E)."""
        mean, std = (
            torch.tensor(values, device=plain_BCHW.device).view(1, 3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        grey = ((plain_BCHW.float() * std + mean) * 255).round().clamp(0, 255)
        pixels_BHWC = grey.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        said = [
            self.teacher.encode(self.teacher.prepare(_middle(pixels_BHWC, share)))
            for share in self.config.teacher_crops
        ]
        return torch.from_numpy(np.concatenate(said, 1)).to(plain_BCHW)

    def encoder(self) -> Backbone:
        """Return the trunk."""
        return self.trunk

    def student(self) -> Backbone:
        """Return the trunk."""
        return self.trunk


def _middle(pixels_BHWC: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """Cut the square about the middle whose side is a share of the images'."""
    side = pixels_BHWC.shape[1]
    px = max(1, round(share * side))
    first = (side - px) // 2
    return np.ascontiguousarray(pixels_BHWC[:, first : first + px, first : first + px])


def _three_views(batch: Batch) -> list[Tensor]:
    """Return two global views and the teacher's.

    Raises:
        UsageError: the batch has others, or a single tile.
    """
    if batch.n_global != 2 or len(batch.views) != 3:
        raise UsageError(
            f"distillation takes two global views and the teacher's, not {len(batch.views)}.",
            hint="--recipe distill",
        )
    if len(batch.keys_B) < 2:
        raise UsageError("a process has a single tile, and nothing to compare it with.")
    return list(batch.views)


PLUGIN = PretrainPlugin(
    make=Distill,
    config=Config,
    summary="distillation from a frozen encoder, with contrast",
    views={"recipe": "distill"},
    sample=samples(),
)
