"""Low-rank updates of linear layers: y = x Wᵀ + b + (α / r) x Aᵀ Bᵀ (Hu et al., arXiv:2106.09685).

The pretrained W stays as it is; A (r × in) and B (out × r) are trained. B starts at zero, so a
network with updates starts out equal to the one without. At the end W + (α / r) B A is the
weight of a plain layer again.

A layer with updates keeps the names of its weight and bias, and has `lora_a` and `lora_b` beside
them. Letters: r rank, α alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.errors import UsageError

ATTENTION: Final = ("qkv", "proj")
_A, _B = ".lora_a", ".lora_b"


class LoraLinear(nn.Linear):
    """A linear layer whose weight is fixed and whose low-rank update is trained.

    Args:
        plain: the layer whose weight and bias are taken over (the tensors, not copies).
        rank: r.
        alpha: α.
    """

    def __init__(self, plain: nn.Linear, rank: int, alpha: float) -> None:
        most = min(plain.in_features, plain.out_features)
        if not 1 <= rank <= most:
            raise UsageError(f"low-rank updates of rank {rank}: at most {most}, at least 1.")
        if not alpha > 0:
            raise UsageError(f"low-rank updates with alpha {alpha}: it must be above 0.")
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(plain.weight.new_empty(rank, plain.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as in the authors' code

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b + (α / r) x Aᵀ Bᵀ."""
        low = functional.linear(functional.linear(x, self.lora_a), self.lora_b)
        return functional.linear(x, self.weight, self.bias) + self.scale * low


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    *,
    trained: tuple[str, ...] = (".rpe_", "mask_token"),
) -> list[str]:
    """Give the linear layers of attention low-rank updates, in place, and freeze everything else.

    Args:
        model: a Vision Transformer.
        rank: r, 1 … the smaller side of each layer.
        alpha: α, above 0; the update is scaled by α / r.
        trained: other parameters that stay trained, by parts of their names; the relative
            tables and the mask token, which pretrained weights do not have.

    Returns:
        the names of the layers.

    Raises:
        UsageError: impossible rank or alpha, or no such layer.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in ATTENTION
    }
    if not layers:
        raise UsageError(
            f"the network has no linear layers called {', '.join(ATTENTION)} to update.",
            hint="low-rank updates are for Vision Transformers; --lora-rank 0 trains all weights",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    for name, layer in layers.items():
        _replace(model, name, LoraLinear(layer, rank, alpha))
    return list(layers)


def plain_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return a state dict with all updates folded into the weights; the given one stays.

    Args:
        state: of a network with or without updates.
        scale: α / r.
    """
    plain = {key: value for key, value in state.items() if not key.endswith((_A, _B))}
    for key, a in state.items():
        if key.endswith(_A):
            stem = key.removesuffix(_A)
            weight = f"{stem}.weight"
            plain[weight] = _fold(state[weight], a, state[stem + _B], scale)
    return plain


def scale_of(model: nn.Module) -> float:
    """Return α / r of a network's updates, 0 if it has none."""
    return next((x.scale for x in model.modules() if isinstance(x, LoraLinear)), 0.0)


def _fold(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    # In float64: the sum is then rounded once, to the nearest weight there is.
    update = b.detach().double() @ a.detach().double()
    return (weight.detach().double() + scale * update).to(weight.dtype)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
