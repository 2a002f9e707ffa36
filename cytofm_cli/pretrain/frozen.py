"""A frozen Vision Transformer as teacher: its tokens of the very views that the student sees.

Used by `distill_tokens`, `distill_relations` and `distill_dino`; `distill` asks any encoder for
one vector instead. In all three the running mean of the student is what is kept (Oquab et al.,
TMLR 2024, "distillation"), so that `TeacherMethod`'s second network is that mean here.

Letters: B tiles, V views, C H W an image, N patches, D features of the student, E of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from timm.models import is_model_in_modules
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from cytofm_cli.config import option
from cytofm_cli.encoders.base import Encoder
from cytofm_cli.encoders.catalogue import resolve
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.backbone import VitTrunk
from cytofm_cli.pretrain.base import Backbones, Batch, Length, Tokens
from cytofm_cli.pretrain.teacher import TeacherConfig, TeacherMethod
from cytofm_cli.views.augment import IMAGENET_MEAN, IMAGENET_STD

_ANY_SIZE: Final[dict[str, Any]] = {"dynamic_img_size": True}


def open_teacher(word: str, **how: object) -> Encoder:
    """Open the encoder that a student learns from, on the CPU.

    Args:
        word: a name, a weight file that describes itself, or NAME=FILE.
        **how: see `load_encoder`.

    Raises:
        UsageError: no such encoder, or none was named.
        WeightsError: its file cannot be used.
    """
    if not word:
        raise UsageError("no teacher is named.", hint="--set teacher=NAME=FILE, or FILE")
    name, equals, file = word.partition("=")
    weights = Path(file) if equals else None
    return load_encoder(name, weights=weights, device="cpu", **how)  # type: ignore[arg-type]


class FrozenTeacher:
    """The tokens of a frozen Vision Transformer on a grid that the student has too.

    Views are resized until the teacher has as many patches as the student: resizing its input is
    exact, resizing its tokens would not be (DINOv3's code does so for other strides).

    Args:
        word: see `open_teacher`.
        patch_px: side of the student's patches; None: it has none, whole views are compared.

    Attributes:
        name: of the encoder.
        dim: E.
    """

    def __init__(self, word: str, patch_px: int | None) -> None:
        encoder = open_teacher(word, **({"builder": _ANY_SIZE} if _is_timms_vit(word) else {}))
        model = getattr(encoder, "model", None)
        if not isinstance(model, VisionTransformer):
            raise UsageError(
                f"teacher {encoder.spec.name}: is no Vision Transformer, and has no tokens.",
                hint="--method distill learns from any encoder",
            )
        self.name = encoder.spec.name
        self._trunk = VitTrunk(model, self.name, {}).eval().requires_grad_(requires_grad=False)
        self.dim, self._patch_px = self._trunk.dim, patch_px
        self._mean, self._std = (_column(v) for v in (encoder.spec.mean, encoder.spec.std))

    @torch.no_grad()
    def __call__(self, view_BCHW: Tensor) -> Tokens:
        """Return the tokens of a normalised view, on its device: (B, E) and (B, N, E)."""
        trunk = self._trunk.to(view_BCHW.device)
        rows, columns = (
            side // (self._patch_px or trunk.patch_px) for side in view_BCHW.shape[-2:]
        )
        size = (rows * trunk.patch_px, columns * trunk.patch_px)
        x_BCHW = view_BCHW * _column(IMAGENET_STD).to(view_BCHW) + _column(IMAGENET_MEAN).to(
            view_BCHW
        )
        if size != tuple(x_BCHW.shape[-2:]):
            x_BCHW = functional.interpolate(
                x_BCHW, size=size, mode="bicubic", antialias=True
            ).clamp(0, 1)
        tokens: Tokens = trunk((x_BCHW - self._mean.to(x_BCHW)) / self._std.to(x_BCHW))
        return tokens


def _is_timms_vit(word: str) -> bool:
    """Tell whether a teacher is a plain Vision Transformer of timm, which can be any size."""
    if not word:
        return False
    name, _, file = word.partition("=")
    traced = resolve(name, weights=Path(file) if file else None)
    kinds = ["vision_transformer", "deit"]
    return traced.plugin == "timm" and is_model_in_modules(traced.model.partition(".")[0], kinds)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(tuple(values)).view(1, 3, 1, 1)


@dataclass(frozen=True, kw_only=True)
class StudentConfig(TeacherConfig):
    """Settings of a student that learns from a frozen teacher's tokens.

    As published (Oquab et al.): nothing is dropped, the running mean of the student is kept.
    """

    teacher: str = option("", "whom to learn from: NAME=FILE, or a weight file that names itself")
    weight_decay_end: float = option(0.04, "weight decay at the end (cosine)", low=0)
    decayed: Literal["all", "weights", "matrices"] = option(
        "matrices", "what decays: all, weights or matrices"
    )
    drop_path: float = option(0.0, "largest rate of dropped residual branches", low=0, high=1)
    momentum: float = option(
        0.994, "share of itself the running mean keeps, at the start", low=0, high=1
    )


class StudentMethod(TeacherMethod):
    """A student of a frozen Vision Transformer; what is kept is its running mean."""

    config: StudentConfig

    def __init__(self, backbones: Backbones, config: StudentConfig, length: Length) -> None:
        super().__init__(backbones, config, length)
        # No part of the module: neither trained nor saved with the run.
        self._frozen = (FrozenTeacher(config.teacher, self.student().patch_px),)

    @property
    def frozen(self) -> FrozenTeacher:
        """The teacher."""
        return self._frozen[0]


def patches_of(views: Sequence[Tokens]) -> Tensor | None:
    """Return the patch tokens of all views, (V · B, N, D); None: there are none."""
    patches = [view.patch_BND for view in views]
    if any(patch is None for patch in patches):
        return None
    return torch.cat([patch for patch in patches if patch is not None])


def global_views(batch: Batch) -> list[Tensor]:
    """Return the views of a batch that has only global ones.

    Raises:
        UsageError: it has others, which no teacher looks at here.
    """
    if len(batch.views) != batch.n_global:
        raise UsageError("this distillation compares whole views alone.", hint="--n-local 0")
    return list(batch.views)
