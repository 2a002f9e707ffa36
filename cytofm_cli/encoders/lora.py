"""Low-rank updates of linear layers: y = x Wᵀ + b + (α / r) x Aᵀ Bᵀ (Hu et al., arXiv:2106.09685).

The pretrained W stays as it is; A (r × in) and B (out × r) are trained. B starts at zero, so a
network with updates starts out equal to the one without. At the end W + (α / r) B A is the
weight of a plain layer again.

A layer with updates keeps the names of its weight and bias, and has `lora_a` and `lora_b` beside
them. `pretrain` trains them on views, `cells` on labels. Letters: r rank, α alpha.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.encoders import weights
from cytofm_cli.encoders.torch_encoder import TorchEncoder
from cytofm_cli.errors import UsageError, WeightsError

ATTENTION: Final = ("qkv", "proj")
TRAINED: Final = (".rpe_", "mask_token")  # what pretrained weights do not have
_A, _B = ".lora_a", ".lora_b"
Arrays = dict[str, NDArray[np.float32]]


class LoraLinear(nn.Linear):
    """A linear layer whose weight is fixed and whose low-rank update is trained.

    Args:
        plain: the layer whose weight and bias are taken over (the tensors, not copies).
        rank: r.
        alpha: α.
        generator: draws A; None: the global one.
    """

    def __init__(
        self,
        plain: nn.Linear,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ) -> None:
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
        # As in the authors' code.
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b + (α / r) x Aᵀ Bᵀ."""
        low = functional.linear(functional.linear(x, self.lora_a), self.lora_b)
        return functional.linear(x, self.weight, self.bias) + self.scale * low


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    *,
    targets: Collection[str] = ATTENTION,
    trained: tuple[str, ...] = TRAINED,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Give linear layers low-rank updates, in place, and freeze everything else.

    Args:
        model: a Vision Transformer.
        rank: r, 1 … the smaller side of each layer.
        alpha: α, above 0; the update is scaled by α / r.
        targets: names of the layers: qkv and proj of attention, fc1 and fc2 of the MLP behind it.
        trained: other parameters that stay trained, by parts of their names; the relative
            tables and the mask token, which pretrained weights do not have.
        generator: draws the updates; None: the global one.

    Returns:
        the names of the layers.

    Raises:
        UsageError: impossible rank or alpha, or no such layer.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets
    }
    if not layers:
        raise UsageError(
            f"the network has no linear layers called {', '.join(targets)} to update.",
            hint="low-rank updates are for Vision Transformers: --encoder cytofm-tiny, timm/vit_…",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained))
    for name, layer in layers.items():
        _replace(model, name, LoraLinear(layer, rank, alpha, generator))
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


def with_updates(
    encoder: TorchEncoder, rank: int, alpha: float, generator: torch.Generator
) -> nn.Module:
    """Return an encoder's network with updates that can be trained; all else is shared with it.

    Raises:
        UsageError: see `add_lora`.
    """
    model = _sharing_copy(encoder.model)
    add_lora(model, rank, alpha, trained=(), generator=generator)
    return model


def adapters_of(model: nn.Module) -> Arrays:
    """Return the updates of a network, float32, by the names of its state dict."""
    state = model.state_dict()
    return {
        name: value.detach().float().cpu().numpy().copy()
        for name, value in state.items()
        if name.endswith((_A, _B))
    }


def adapted(encoder: TorchEncoder, adapters: Mapping[str, NDArray[Any]], scale: float) -> Any:
    """Return the encoder with updates folded into its weights; the given one stays.

    Args:
        encoder: the one they were trained on.
        adapters: what `adapters_of` gave, and parameters that take the place of its own (see
            `TRAINED`); empty: the encoder itself.
        scale: α / r.

    Raises:
        WeightsError: they are of another network.
    """
    if not adapters:
        return encoder
    model = _sharing_copy(encoder.model)
    state = model.state_dict()
    own = {
        name: torch.from_numpy(np.asarray(values)).to(encoder.device)
        for name, values in adapters.items()
    }
    changed = {f"{name.removesuffix(_A)}.weight" for name in own if name.endswith(_A)}
    whole = {name for name in own if not name.endswith((_A, _B))}
    try:
        if misfits := [name for name in whole if state[name].shape != own[name].shape]:
            raise KeyError(misfits[0])
        plain = plain_state({**state, **own}, scale)
        for name in changed | whole:
            layer, _, last = name.rpartition(".")
            setattr(model.get_submodule(layer), last, nn.Parameter(plain[name]))
    except (KeyError, RuntimeError, AttributeError) as error:
        raise WeightsError(
            f"low-rank updates that do not fit encoder {encoder.spec.name} ({error})."
        ) from error
    return TorchEncoder(model, encoder.spec, encoder.device, encoder.report)


def with_updates_of(encoder: Any, path: Path) -> Any:
    """Return an encoder with the updates of a file folded into its weights; the given one stays.

    Args:
        encoder: with the weights that they were trained on.
        path: `adapters.safetensors` of a RUN, see `weights.write_encoder`.

    Raises:
        WeightsError: they were trained on other weights, are damaged, or are not finite.
    """
    updates = weights.read_description(path).updates
    assert updates is not None  # whoever traced the file has looked
    if encoder.spec.weights_sha256 != updates.base_sha256:
        raise WeightsError(
            f"{path}: its updates were trained on {updates.base} (SHA-256 "
            f"{updates.base_sha256[:12]}…), not on these weights "
            f"({(encoder.spec.weights_sha256 or 'none')[:12]}…).",
            hint="--weights with the file that `cytofm pretrain --init` had",
        )
    state = weights.read_state(path)
    if broken := [name for name, value in state.items() if not bool(value.isfinite().all())]:
        raise WeightsError(f"{path}: {broken[0]} holds values that are not finite.")
    arrays = {name: value.float().numpy() for name, value in state.items()}
    merged = adapted(encoder, arrays, updates.alpha / updates.rank)
    spec = replace(encoder.spec, weights_sha256=weights.sha256(path))
    return TorchEncoder(merged.model, spec, merged.device, merged.report)


def rests(name: str) -> bool:
    """Tell whether a parameter of a network with updates is one of those that are not trained."""
    return not (name.endswith((_A, _B)) or any(part in name for part in TRAINED))


def scale_of(model: nn.Module) -> float:
    """Return α / r of a network's updates, 0 if it has none."""
    return next((x.scale for x in model.modules() if isinstance(x, LoraLinear)), 0.0)


def _fold(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    # In float64: the sum is then rounded once, to the nearest weight there is.
    update = b.detach().double() @ a.detach().double()
    return (weight.detach().double() + scale * update).to(weight.dtype)


def _sharing_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose tensors are the same ones: a layer can be exchanged in it."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
