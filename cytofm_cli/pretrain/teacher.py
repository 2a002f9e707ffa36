"""What methods share: trunks over views of several sizes, a teacher, and its targets.

Letters: B tiles, V views, D features, K prototypes, N patches.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from cytofm_cli.config import option
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain import ema, parallel, schedules
from cytofm_cli.pretrain.base import (
    Backbone,
    Backbones,
    Batch,
    Length,
    Method,
    MethodConfig,
    Tokens,
)
from cytofm_cli.pretrain.heads import DinoHead
from cytofm_cli.pretrain.losses import Centre, Sinkhorn

# A teacher beyond these is said to rest: share of its start's weights, distance from it.
MOST_START: Final = 0.05
LEAST_MOVED: Final = 0.001


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(MethodConfig):
    """Settings of methods with a teacher."""

    momentum: float = option(
        0.996, "share of itself the teacher keeps, at the start", low=0, high=1
    )
    momentum_end: float = option(1.0, "the same at the end (cosine)", low=0, high=1)

    def momentum_at(self, step: int, length: Length) -> float:
        """Return the share of itself that the teacher keeps at an update."""
        return schedules.cosine(step, length.n_steps, self.momentum, self.momentum_end)


@dataclass(frozen=True, kw_only=True)
class PrototypeConfig(TeacherConfig):
    """Settings of methods whose teacher sorts tiles into prototypes (DINO, iBOT, DINOv2)."""

    prototypes: int = option(65536, "prototypes, K", low=2)
    hidden: int = option(2048, "width of the head's layers", low=1)
    bottleneck: int = option(256, "length of the vector that meets the prototypes", low=1)
    head_batch_norm: bool = option(
        False, "batch normalisation in the head: a short run starts to tell tiles apart at once"
    )
    student_temp: float = option(0.1, "temperature of the student", low=0)
    teacher_temp_start: float = option(0.04, "temperature of the teacher at the start", low=0)
    teacher_temp: float = option(0.07, "temperature of the teacher after its warm-up", low=0)
    # Published as 30 of 100 epochs.
    teacher_temp_warmup: float = option(
        0.3, "share of the steps in which it changes", low=0, high=1
    )
    centring: Literal["mean", "sinkhorn"] = option(
        "mean", "against collapse: running mean, or Sinkhorn"
    )
    centre_momentum: float = option(0.9, "share of the centre that stays", low=0, high=1)
    # Published as the first epoch of 100.
    freeze_last: float = option(
        0.01, "share of the steps in which the prototypes rest", low=0, high=1
    )

    def check(self) -> None:
        """Refuse temperatures that cannot be."""
        for name in ("student_temp", "teacher_temp_start", "teacher_temp"):
            require_temperature(self, name)
        coldest = min(self.teacher_temp_start, self.teacher_temp)
        if self.centring == "sinkhorn" and coldest < 0.0125:
            raise UsageError(
                f"a teacher's temperature of {coldest} is too low for Sinkhorn in float32.",
                hint="at least 0.0125, or centring = mean",
            )

    def make_head(self, dim: int, n_prototypes: int | None = None) -> DinoHead:
        """Return a head for features of this width; None: of as many prototypes as are set."""
        return DinoHead(
            dim,
            self.prototypes if n_prototypes is None else n_prototypes,
            hidden=self.hidden,
            bottleneck=self.bottleneck,
            batch_norm=self.head_batch_norm,
        )

    def make_targets(self) -> Centre | Sinkhorn:
        """Return what turns the teacher's scores into probabilities."""
        if self.centring == "sinkhorn":
            return Sinkhorn()
        return Centre(self.prototypes, self.centre_momentum)

    def temperature(self, length: Length, step: int) -> float:
        """Return the teacher's temperature at a step."""
        start, end = self.teacher_temp_start, self.teacher_temp
        share = self.teacher_temp_warmup
        return schedules.linear(step, length.n_steps, start, end, share=share)


def require_temperature(config: MethodConfig, name: str) -> None:
    """Refuse a temperature that nothing can be divided by.

    Raises:
        UsageError: it is not above 0.
    """
    if not getattr(config, name) > 0:
        raise UsageError(f"{config.said(name)}: a temperature is above 0.")


class Network(nn.Module):
    """A trunk and its heads.

    Args:
        trunk: the trunk.
        heads: by name.
    """

    def __init__(self, trunk: Backbone, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)


class TeacherMethod(Method):
    """A method whose teacher follows the student.

    Args:
        backbones: makes the trunks.
        config: its settings.
        length: of the run.
        masks: the student gets a mask token.

    Subclasses say in `make_heads` which heads both have.
    """

    config: TeacherConfig
    start_P: Tensor  # what the teacher's trunk started from

    def __init__(
        self, backbones: Backbones, config: TeacherConfig, length: Length, *, masks: bool = False
    ) -> None:
        super().__init__()
        self.config, self.length = config, length
        trunk = backbones(role="student", masks=masks)
        heads = self.make_heads(trunk.dim)
        self.student_net = Network(trunk, heads)
        self.teacher_net = Network(backbones(role="teacher"), copy.deepcopy(heads))
        ema.copy_weights(self.teacher_net, self.student_net)
        self.teacher_net.requires_grad_(requires_grad=False)
        start = parameters_to_vector(self._following()).detach()
        self.register_buffer("start_P", start, persistent=False)

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """Return the heads for features of this width, by name."""
        raise NotImplementedError

    def after_update(self, step: int) -> None:
        """Move the teacher; its momentum follows a cosine."""
        momentum = self.config.momentum_at(step, self.length)
        ema.follow(self.teacher_net, self.student_net, momentum)

    def monitors(self, step: int) -> dict[str, float]:
        """Return how far the teacher has come from its start after so many updates.

        teacher_start: the share of the start's weights in it, the product of its momenta.
        teacher_moved: the distance of its trunk from the start, over the length of that; NaN of
        sharded weights.
        """
        return {"teacher_start": self._start_shares[step], "teacher_moved": self._moved()}

    def notes(self) -> tuple[str, ...]:
        """Say so where the teacher will keep much of its start."""
        share, n_steps, c = self._start_shares[-1], self.length.n_steps, self.config
        if share <= MOST_START:
            return ()
        return (
            f"warning: the teacher will still be {share:.0%} its start after {n_steps} updates "
            f"at momentum {c.momentum:.3g} to {c.momentum_end:.3g}: see Short runs in "
            "docs/pretraining.md",
        )

    @functools.cached_property
    def _start_shares(self) -> list[float]:
        """Return the product of the momenta before every update and after the last."""
        momenta = (self.config.momentum_at(s, self.length) for s in range(self.length.n_steps))
        return list(itertools.accumulate(momenta, operator.mul, initial=1.0))

    def _following(self) -> list[nn.Parameter]:
        """Return the parameters of the teacher's trunk that can move."""
        return ema.own_parameters(self.teacher_net.trunk, self.student_net.trunk)

    @torch.no_grad()
    def _moved(self) -> float:
        now = self._following()
        if any(parallel.is_sharded(p) for p in now):
            return math.nan
        distance = (parameters_to_vector(now) - self.start_P).norm()
        return float(distance / self.start_P.norm())

    def encoder(self) -> Backbone:
        """Return the teacher's trunk."""
        return self.teacher_net.trunk

    def student(self) -> Backbone:
        """Return the student's trunk."""
        return self.student_net.trunk


class PrototypeMethod(TeacherMethod):
    """A method whose heads end in prototypes; `make_targets` has one entry a head."""

    config: PrototypeConfig

    def __init__(
        self, backbones: Backbones, config: PrototypeConfig, length: Length, *, masks: bool = False
    ) -> None:
        super().__init__(backbones, config, length, masks=masks)
        names = ("cls", "patch") if masks else ("cls",)
        self.targets = nn.ModuleDict({name: config.make_targets() for name in names})

    def before_update(self, step: int) -> None:
        """Let the prototypes rest at the start (DINO, appendix D)."""
        if step < self.config.freeze_last * self.length.n_steps:
            for name, parameter in self.student_net.heads.named_parameters():
                if name.endswith("prototypes"):
                    parameter.grad = None

    def after_update(self, step: int) -> None:
        """Move the teacher and the centres."""
        super().after_update(step)
        for targets in self.targets.values():
            targets.move()  # type: ignore[operator]


def encode(
    trunk: Backbone, views: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
) -> list[Tokens]:
    """Return the tokens of each view, with one pass of the trunk an image size.

    Args:
        trunk: the trunk.
        views: images (B, C, H, W) of any sizes.
        masks: (B, N) bool or None of each view; views of one size all have one, or none has.
    """
    tokens_of: dict[int, Tokens] = {}
    sizes = [tuple(view.shape[-2:]) for view in views]
    masks = masks if masks is not None else [None] * len(views)
    for size in dict.fromkeys(zip(sizes, [mask is None for mask in masks], strict=True)):
        places = [i for i, mask in enumerate(masks) if (sizes[i], mask is None) == size]
        mask_BN = [mask for i in places if (mask := masks[i]) is not None]
        joined = trunk(
            torch.cat([views[i] for i in places]), torch.cat(mask_BN) if mask_BN else None
        )
        cls = joined.cls_BD.chunk(len(places))
        patch = [None] * len(places)
        if joined.patch_BND is not None:
            patch = joined.patch_BND.chunk(len(places))
        for i, cls_BD, patch_BND in zip(places, cls, patch, strict=True):
            tokens_of[i] = Tokens(cls_BD=cls_BD, patch_BND=patch_BND)
    return [tokens_of[i] for i in range(len(views))]


def two_views(batch: Batch) -> list[Tensor]:
    """Return the views of a batch that has exactly two, both global.

    Raises:
        UsageError: it has others, or a single tile, which has nothing to be compared with.
    """
    if batch.n_global != 2 or len(batch.views) != 2:
        raise UsageError(
            f"this method compares two global views, but a tile has {batch.n_global} global and "
            f"{len(batch.views) - batch.n_global} local ones.",
            hint="n_local = 0 in [views]",
        )
    if len(batch.views[0]) < 2:
        raise UsageError(
            "a process has a single tile, and nothing to compare it with.",
            hint="a larger --batch, or a smaller --accumulate",
        )
    return batch.views
