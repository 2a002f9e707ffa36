"""The heads that a training checkpoint of DINOv2's kind keeps beside its teacher's trunk.

Known layouts: `<prefix>dino_head.mlp.<0|2|4>.*` and `<prefix>dino_head.last_layer` with or without
weight normalisation; `<prefix>ibot_head` likewise, or none where patches share the head of views.

Letters: B rows, D features, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.errors import WeightsError

_FIRST: Final = "dino_head.mlp.0.weight"
_LAYERS: Final = (0, 2, 4)


class PublishedHead(nn.Module):
    """Three layers with GELU, a unit vector, and its products with the last layer's rows.

    Args:
        state: of the head, without its prefix.
        where: the file, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        super().__init__()
        missing = [
            n for i in _LAYERS for n in (f"mlp.{i}.weight", f"mlp.{i}.bias") if n not in state
        ]
        if missing:
            raise WeightsError(f"{where}: its head has no {missing[0]}: no head of DINOv2's kind.")
        for i in _LAYERS:
            self.register_buffer(f"weight_{i}", state[f"mlp.{i}.weight"].float().clone())
            self.register_buffer(f"bias_{i}", state[f"mlp.{i}.bias"].float().clone())
        self.register_buffer("last_KD", _last_layer(state, where))

    @torch.no_grad()
    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the scores of features (…, D): (…, K)."""
        for i in _LAYERS:
            x_BD = functional.linear(x_BD, getattr(self, f"weight_{i}"), getattr(self, f"bias_{i}"))
            x_BD = functional.gelu(x_BD) if i != _LAYERS[-1] else x_BD
        return functional.linear(functional.normalize(x_BD, dim=-1, eps=1e-6), self.last_KD)  # type: ignore[arg-type]


def _last_layer(state: Mapping[str, Tensor], where: str) -> Tensor:
    """Return the matrix (K, D) of the last layer, whichever way it is stored."""
    if "last_layer.weight" in state:
        return state["last_layer.weight"].float().clone()
    for length, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        if f"last_layer.{direction}" in state:
            v_KD = state[f"last_layer.{direction}"].float()
            g_K1 = state.get(f"last_layer.{length}", torch.ones(len(v_KD), 1)).float()
            return g_K1 * functional.normalize(v_KD, dim=1)
    raise WeightsError(f"{where}: its head has no last layer.")


def published_heads(state: Mapping[str, Tensor], where: str) -> dict[str, PublishedHead]:
    """Return the heads of views, "cls", and of patches, "patch"; {} where the file has none.

    Args:
        state: all entries of the file, see `weights.read_state`.
        where: the file, for messages.

    Raises:
        WeightsError: heads of another kind.
    """
    prefixes = [name.removesuffix(_FIRST) for name in state if name.endswith(_FIRST)]
    if not prefixes:
        return {}
    prefix = min(prefixes, key=lambda p: ("teacher" not in p, p))  # the student's come second
    heads: dict[str, PublishedHead] = {}
    for ours, theirs in (("cls", "dino_head."), ("patch", "ibot_head.")):
        start = prefix + theirs
        own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        heads[ours] = PublishedHead(own, where) if own else heads["cls"]
    return heads
