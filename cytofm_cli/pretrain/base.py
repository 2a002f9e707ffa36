"""What every self-supervised method takes and gives.

A method is a module in `cytofm_cli/pretrain/methods/` that exports `PLUGIN`; `PLUGIN.make` is a
subclass of `Method`, called as `make(backbones, config, length)`, `PLUGIN.config` its settings.

The way of a step, of which the loop (`loop.py`) knows everything but the method's inside:

    batch   = next(batches)                     # views on the device, data.py
    out     = method(batch, step)               # loss and what to log; DDP wraps the method
    out.loss.backward()
    method.before_update(step)                  # e.g. drop the gradients of a frozen last layer
    optimiser.step()
    method.after_update(step)                   # e.g. the teacher follows the student

Randomness: a method draws from counters only (`views.draws`, keys of the batch), or from torch's
generator, which the loop seeds anew at every step. So a resumed run needs no generator state.

Letters: B tiles, C H W an image, N patches, D features, K prototypes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.views.draws import Keys


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a backbone says about images of one size.

    Attributes:
        cls_BD: one vector an image: the class token after the last norm, or what the network pools.
        patch_BND: the patch tokens after the last norm; None: the network has none (ResNet).
    """

    cls_BD: Tensor
    patch_BND: Tensor | None


class Backbone(nn.Module):
    """A trunk that takes images of any size and, if it has patches, masks.

    Attributes:
        dim: D.
        patch_px: side of a patch; None: no patches.
    """

    dim: int
    patch_px: int | None

    @abstractmethod
    def forward(self, x_BCHW: Tensor, mask_BN: Tensor | None = None) -> Tokens:
        """Return the tokens; True in `mask_BN` replaces a patch by the mask token (before the
        positions are added, as iBOT does)."""


class Backbones(Protocol):
    """Makes the trunks of a method: all start from the same weights."""

    def __call__(self, *, role: str, masks: bool = False) -> Backbone:
        """Return a new trunk.

        Args:
            role: "student" or "teacher"; a teacher drops no paths and takes no gradient.
            masks: give it a mask token.

        Raises:
            UsageError: masks are wanted and the encoder has no patches.
        """


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is.

    Attributes:
        n_steps: updates in all.
        steps_per_epoch: updates in which every tile is seen about once (at least 1).
        batch: tiles an update, over all processes and accumulations.
    """

    n_steps: int
    steps_per_epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The views of some tiles.

    Attributes:
        views: float32 (B, 3, S, S) each, normalised, global ones first.
        n_global: how many views are global.
        keys_B: one key a tile and visit, on the host, for a method's own draws.
        tiles_B: the number of each tile in the index, on the host; None: they are of no index.
    """

    views: list[Tensor]
    n_global: int
    keys_B: Keys
    tiles_B: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class StepOutput:
    """What a method says about a batch.

    Attributes:
        loss: scalar, of this process.
        parts: detached scalars to log: the parts of the loss and monitors ("teacher_entropy").
        features_BD: detached student features of the first global view, for the collapse monitors.
    """

    loss: Tensor
    features_BD: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Settings):
    """Settings that every method has; a method's own defaults are its published recipe.

    A rate is for a batch of 256 and scales with the batch as `lr_scaling` says.

    Attributes:
        SHORT_RUNS: the defaults are for short runs: `by_length` leaves them.
    """

    SHORT_RUNS: ClassVar[bool] = False

    lr: float = option(5e-4, "learning rate at batch 256", low=0)
    lr_scaling: Literal["linear", "sqrt"] = option("linear", "how it follows the batch")
    min_lr: float = option(1e-6, "learning rate at the end", low=0)
    warmup: float = option(0.1, "share of the steps in which the rate rises", low=0, high=1)
    weight_decay: float = option(0.04, "weight decay at the start", low=0)
    weight_decay_end: float = option(0.4, "weight decay at the end (cosine)", low=0)
    decayed: Literal["all", "weights", "matrices"] = option(
        "weights",
        "what decays: all; weights: all but biases and norms (DINO, iBOT, DINOv2); matrices: "
        "nor tokens and positions",
    )
    clip: float = option(3.0, "largest gradient norm; 0: no clipping", low=0)
    layer_decay: float = option(
        1.0, "learning rate of a block, as a share of the next one's", low=0, high=1
    )
    patch_lr: float = option(
        1.0, "learning rate of the patch embedding, as a share of the others'", low=0, high=1
    )
    drop_path: float = option(0.1, "largest rate of dropped residual branches", low=0, high=1)


class Learner(nn.Module):
    """What the loop trains: networks and a loss.

    Parameters that take no gradient (teachers) have `requires_grad = False`. Buffers that are
    part of the run's state (centres, queues) are persistent, so `state_dict()` is all there is.
    """

    config: MethodConfig

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> StepOutput:
        """Return the loss of a batch at an update, counted from 0."""

    def before_update(self, step: int) -> None:
        """Change gradients after they were unscaled and before they are clipped."""

    def after_update(self, step: int) -> None:
        """Follow the student."""

    def monitors(self, step: int) -> dict[str, float]:
        """Return further numbers for the log after so many updates, by name."""
        return {}

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know of the settings, one line each."""
        return ()


class Method(Learner):
    """A student, mostly a teacher, their heads, and a loss: it leaves an encoder."""

    @abstractmethod
    def encoder(self) -> Backbone:
        """Return the trunk to keep: the teacher where there is one."""

    @abstractmethod
    def student(self) -> Backbone:
        """Return the trunk that is trained."""
