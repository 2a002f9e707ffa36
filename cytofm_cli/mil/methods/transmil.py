"""TransMIL: correlated MIL with a transformer (Shao et al., NeurIPS 2021).

Legend: B bags, N instances, D features, W width, C classes, T tokens, S side of the square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import MilHead, MilOutput
from cytofm_cli.mil.nystrom import NystromAttention
from cytofm_cli.registry import Plugin, samples


@dataclass(frozen=True, kw_only=True)
class TransmilConfig(Settings):
    """Settings of TransMIL."""

    width: int = option(512, "token width; landmarks are half of it", low=16)
    heads: int = option(8, "attention heads", low=1)
    dropout: float = option(0.1, "dropout on the attention's output", low=0, high=0.95)
    padding: Literal["zeros", "masked"] = option(
        "zeros", "zeros: padding takes part in the attention, as published; masked: it does not"
    )
    compat: Literal["none", "0.0.9"] = option(
        "none", "0.0.9: the misaligned rows of the attention package that the authors pinned"
    )


class Transmil(MilHead):
    """Square the bag, attend, encode position by convolutions, attend, read the class token.

    The order of instances matters: the convolutions see the bag as a square in list order.
    The map is the class token's attention in the second layer, with the share of repeated
    instances added to the originals; raw values can be slightly negative and do not sum to 1
    (padding takes the rest), `attention_BKN` is clipped at 0 and scaled to sum to 1.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "lookahead_radam",
        "lr": 2e-4,
        "weight_decay": 1e-5,
        "decay_vectors": False,
        "epochs": 200,
        "patience": 10,
        "accumulate": 2,
    }
    CYTOFM: ClassVar[Mapping[str, Any]] = {"lr": 1e-4}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"width": 128, "padding": "masked"}
    order_matters: ClassVar[bool] = True
    gap: ClassVar[str] = "float32 instead of float16; attention rows aligned (nystrom ≥ 0.0.10)"

    def __init__(self, n_features: int, n_classes: int, config: TransmilConfig) -> None:
        super().__init__()
        width = config.width
        self.project = nn.Sequential(nn.Linear(n_features, width), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.layer1, self.layer2 = (_Layer(config) for _ in range(2))
        self.position = PositionEncoder(width)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, n_classes)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags, each at its own length; see `MilHead.forward`."""
        embedding: list[Tensor] = []
        raw: list[Tensor] = []
        first: list[Tensor] = []
        for b, x_ND in enumerate(x_BND):
            real = slice(None) if mask_BN is None else mask_BN[b]
            bag_W, layer1_N, layer2_N = self.judge(x_ND[real])
            embedding.append(bag_W)
            for rows, values_N in ((first, layer1_N), (raw, layer2_N)):
                row_N = x_ND.new_zeros(len(x_ND))
                row_N[real] = values_N
                rows.append(row_N)
        bag_BW = torch.stack(embedding)
        raw_BN = torch.stack(raw)
        clipped_BN = raw_BN.clamp(min=0)
        total_B1 = clipped_BN.sum(1, keepdim=True)
        n_B1 = x_BND.shape[1] if mask_BN is None else mask_BN.sum(1, keepdim=True)
        flat_BN = torch.ones_like(raw_BN) if mask_BN is None else mask_BN.to(raw_BN.dtype)
        attention_BN = torch.where(total_B1 > 0, clipped_BN / total_B1, flat_BN / n_B1)
        return MilOutput(
            self.classifier(bag_BW),
            attention_BN[:, None],
            raw_BN[:, None],
            bag_BW[:, None],
            aux={"layer1_BN": torch.stack(first)},
        )

    def judge(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class token's vector, and its attention in both layers (N,), folded."""
        h_NW = self.project(x_ND)
        n = len(h_NW)
        side = math.isqrt(n - 1) + 1
        h_TW = torch.cat([self.class_token, h_NW, h_NW[: side * side - n]])
        h_TW, first_T = self.layer1(h_TW)
        h_TW = self.position(h_TW, side)
        h_TW, second_T = self.layer2(h_TW)
        return self.norm(h_TW[0]), _fold(first_T, n), _fold(second_T, n)


class _Layer(nn.Module):
    def __init__(self, config: TransmilConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = NystromAttention(
            config.width,
            heads=config.heads,
            landmarks=config.width // 2,
            dropout=config.dropout,
            masked=config.padding == "masked",
            first_rows=config.compat == "0.0.9",
        )

    def forward(self, h_TW: Tensor) -> tuple[Tensor, Tensor]:
        y_TW, first_T = self.attention(self.norm(h_TW))
        return h_TW + y_TW, first_T


class PositionEncoder(nn.Module):
    """Add depth-wise 7×7, 5×5 and 3×3 convolutions of the square to itself (PPEG, §3.3).

    Convolutions are linear: the three and the identity are one 7×7 kernel.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, h_TW: Tensor, side: int) -> Tensor:
        """Encode all tokens but the first, which stand for a square in list order."""
        pad = nn.functional.pad
        kernel = self.conv7.weight + pad(self.conv5.weight, (1,) * 4)
        kernel = kernel + pad(self.conv3.weight, (2,) * 4)
        identity = torch.zeros_like(kernel)
        identity[..., 3, 3] = 1
        bias = self.conv7.bias + self.conv5.bias + self.conv3.bias  # type: ignore[operator]
        square = h_TW[1:].T.reshape(1, -1, side, side)
        y = nn.functional.conv2d(square, kernel + identity, bias, padding=3, groups=len(bias))
        return torch.cat([h_TW[:1], y.flatten(2)[0].T])


def _fold(attention_T: Tensor, n: int) -> Tensor:
    """Drop the class token; add the share of a repeated instance to its original."""
    folded_N = attention_T[1 : n + 1].clone()
    repeated = attention_T[n + 1 :]
    folded_N[: len(repeated)] += repeated
    return folded_N


PLUGIN = Plugin(
    make=Transmil,
    config=TransmilConfig,
    summary="transformer MIL (Shao 2021)",
    sample=samples({}, {"padding": "zeros"}),
)
