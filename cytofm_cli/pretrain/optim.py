"""AdamW over the parameters of a method, with what the recipes ask of rates and gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn

from cytofm_cli.pretrain.base import Learner, Length, Method, MethodConfig
from cytofm_cli.pretrain.schedules import cosine

_TOKENS: Final = {"pos_embed", "cls_token", "reg_token", "mask_token"}
_BLOCK: Final = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


def parameter_groups(method: Learner) -> list[dict[str, Any]]:
    """Sort the parameters that take a gradient into groups.

    `decayed` of the configuration says which of them decay: all (MoCo v3); all but biases and
    other one-dimensional ones (DINO, iBOT, DINOv2: tokens and absolute positions decay, the
    mask token too); or only matrices, which leaves out tokens, absolute positions and what a
    module names in `no_weight_decay()`. The tables of relative positions decay in each case. A
    configuration with `layer_decay` or `patch_lr` (DINOv2) slows down
    the lower layers of the trunk.

    Returns:
        Dicts with `params`, `names`, and what the rates of an update are multiplied by:
        `lr_scale`, and `wd_scale` (0 or 1).
    """
    decays_of = _DECAYED[method.config.decayed](method)
    scales = _lr_scales(method)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = decays_of(name, parameter)
        scale = scales.get(id(parameter), 1.0)
        empty = {"params": [], "names": [], "lr_scale": scale, "wd_scale": float(decays)}
        group = groups.setdefault((decays, scale), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(method: Learner, *, fused: bool | None = None) -> torch.optim.AdamW:
    """Build AdamW for a method; whoever steps it sets the rates of each update in its groups."""
    return torch.optim.AdamW(parameter_groups(method), lr=method.config.lr, fused=fused)


def peak_lr(config: MethodConfig, batch: int) -> float:
    """Return the learning rate after the warm-up: lr · B/256, or lr · √(B/256)."""
    ratio = batch / 256
    return config.lr * (math.sqrt(ratio) if config.lr_scaling == "sqrt" else ratio)


def learning_rate(config: MethodConfig, length: Length, step: int) -> float:
    """Return the learning rate of an update: a linear rise, then half a cosine."""
    peak = peak_lr(config, length.batch)
    end = min(config.min_lr, peak)  # a small rate never rises towards the end
    return cosine(step, length.n_steps, peak, end, warmup=config.warmup)


def weight_decay(config: MethodConfig, length: Length, step: int) -> float:
    """Return the weight decay of an update: half a cosine over the whole run."""
    return cosine(step, length.n_steps, config.weight_decay, config.weight_decay_end)


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients down to a joint norm of `max_norm`; 0: leave them.

    DINO clips each parameter by itself; the joint norm keeps the direction of the update.

    Returns:
        The joint norm before, a scalar; not finite if a gradient is not.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    # Of sharded weights each process knows a part. (Importing DTensor takes as long as torch.)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def _weights(_: nn.Module) -> Callable[[str, Tensor], bool]:
    return lambda name, x: _is_token(name) or (x.ndim > 1 and not name.endswith(".bias"))


def _matrices(method: nn.Module) -> Callable[[str, Tensor], bool]:
    undecayed, weights = _undecayed(method), _weights(method)
    return lambda name, x: weights(name, x) and name not in undecayed


_DECAYED: Final[dict[str, Callable[[nn.Module], Callable[[str, Tensor], bool]]]] = {
    "all": lambda _: lambda name, x: True,
    "weights": _weights,
    "matrices": _matrices,
}


def _is_token(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in _TOKENS


def _undecayed(method: nn.Module) -> set[str]:
    names = {name for name, _ in method.named_parameters() if _is_token(name)}
    for prefix, module in method.named_modules():
        own = getattr(module, "no_weight_decay", None)
        if callable(own):
            names |= {f"{prefix}.{name}" if prefix else name for name in own()}
    return names


def _lr_scales(method: Learner) -> dict[int, float]:
    """Return the share of the learning rate that each parameter of the trunk gets, by id.

    Of L blocks, block i gets layer_decay^(L - i), what comes before the blocks
    layer_decay^(L + 1), the last norm 1; the patch embedding `patch_lr` times that (DINOv2).
    """
    decay, patch_lr = method.config.layer_decay, method.config.patch_lr
    if (decay == 1 and patch_lr == 1) or not isinstance(method, Method):
        return {}
    named = list(method.student().named_parameters())
    block_of = {name: int(hit[1]) for name, _ in named if (hit := _BLOCK.search(name))}
    n_blocks = max(block_of.values(), default=-1) + 1
    scales = {}
    for name, parameter in named:
        first = "patch_embed" in name or _is_token(name)
        level = 0 if first else block_of.get(name, n_blocks) + 1
        scale = decay ** (n_blocks + 1 - level)
        scales[id(parameter)] = scale * (patch_lr if "patch_embed" in name else 1.0)
    return scales
