"""Optimisers, schedules and bag losses of the recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cytofm_cli.mil.base import BagLoss, Recipe


class Lookahead:
    """Slow weights that follow the fast ones (Zhang et al. 2019, alg. 1).

    They start where the fast ones are at the first slow step, not at the initial weights: so do
    the common implementations, and TransMIL's, whose results the recipe is to repeat.

    Args:
        inner: optimiser of the fast weights.
        every: fast steps to one slow step, k.
        rate: share of the way that the slow weights go, α.
    """

    def __init__(self, inner: torch.optim.Optimizer, every: int = 6, rate: float = 0.5) -> None:
        self.inner, self.every, self.rate, self.steps = inner, every, rate, 0
        self.param_groups = inner.param_groups
        self.slow: list[Tensor] = []

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.inner.param_groups for p in group["params"])

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Take a fast step, and every k-th time a slow one."""
        self.inner.step()
        self.steps += 1
        if self.steps % self.every == 0:
            self.slow = self.slow or [p.detach().clone() for p in self._parameters()]
            for slow, fast in zip(self.slow, self._parameters(), strict=True):
                slow.lerp_(fast, self.rate)
                fast.copy_(slow)


def warm_up() -> None:
    """Make torch load what it loads at a first update: seconds, which are no training."""
    weight = torch.zeros(1, requires_grad=True)
    torch.autograd.backward(weight.sum())
    torch.optim.SGD([weight], lr=0.0).step()


def make_optimizer(model: nn.Module, recipe: Recipe) -> Any:
    """Build the optimiser of a recipe."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    vectors = [p for p in parameters if p.ndim < 2 and not recipe.decay_vectors]
    others = [p for p in parameters if p.ndim >= 2 or recipe.decay_vectors]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": recipe.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9)
    betas = (recipe.betas[0], recipe.betas[1])
    if recipe.optimizer == "lookahead_radam":
        fast = torch.optim.RAdam(groups, recipe.lr, betas, decoupled_weight_decay=True)
        return Lookahead(fast)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.lr, betas=betas, fused=True)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch (0, 1, …)."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * (epoch + 1) / (recipe.warmup_epochs + 1)
    if recipe.schedule == "step":
        return recipe.lr * (recipe.step_factor if epoch >= recipe.step_epoch else 1.0)
    if recipe.schedule == "cosine":
        passed = max(0, epoch - recipe.warmup_epochs - recipe.hold_epochs)
        done = passed / max(1, recipe.epochs - recipe.warmup_epochs)
        return recipe.lr_end + (recipe.lr - recipe.lr_end) * (1 + math.cos(math.pi * done)) / 2
    return recipe.lr


def make_bag_loss(recipe: Recipe) -> BagLoss:
    """Return the bag loss of a recipe: (logits_BC, y_B) → scalar."""
    if recipe.bag_loss == "ordinal":
        return ordinal_loss
    if recipe.label_smoothing:
        return partial(nn.functional.cross_entropy, label_smoothing=recipe.label_smoothing)
    return nn.functional.cross_entropy


def ordinal_loss(logits_BC: Tensor, y_B: Tensor) -> Tensor:
    """Compute the squared earth mover's distance between ordered classes (Hou et al. 2016, eq. 9).

    The sum over classes of the squared difference of the cumulative distributions: a class two
    steps off costs more than its neighbour.
    """
    p_BC = logits_BC.softmax(-1)
    target_BC = nn.functional.one_hot(y_B, logits_BC.shape[-1]).to(p_BC.dtype)
    gap_BC = (p_BC - target_BC).cumsum(-1)
    return (gap_BC**2).sum(-1).mean()
