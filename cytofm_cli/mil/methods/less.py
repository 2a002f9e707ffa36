"""LESS aggregator: two token streams that exchange class tokens (Zhao et al., MICCAI 2023).

The multi-scale vision transformer of CrossViT (Chen, Fan & Panda, ICCV 2021) on bags of
features: a small and a large branch, no positional embedding. Fed with one kind of features,
both branches see the same bag ("single scale"); with the features of two scales side by side
(`small_columns`) each sees its own.
Legend: B bags, N instances, D features, T tokens (class token first), W branch width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cytofm_cli.config import Settings, option
from cytofm_cli.mil.base import MilHead, MilOutput
from cytofm_cli.registry import Plugin, samples

EPS = 1e-6


class Size(NamedTuple):
    """Widths of the branches and attention heads."""

    small: int
    large: int
    heads: int


# Heads of tiny and small as in CrossViT; base as in LESS.
SIZES = {
    "tiny": Size(96, 192, 3),
    "small": Size(192, 384, 6),
    "base": Size(384, 768, 16),
    "mini": Size(48, 96, 4),
}


@dataclass(frozen=True, kw_only=True)
class LessConfig(Settings):
    """Settings of the LESS aggregator."""

    size: Literal["tiny", "small", "base", "mini"] = option(
        "tiny", "branch widths; base has 103 million weights"
    )
    blocks: int = option(3, "multi-scale blocks", low=1)
    small_depth: int = option(1, "self-attention layers of a block, small branch", low=1)
    large_depth: int = option(4, "self-attention layers of a block, large branch", low=1)
    small_columns: int = option(
        0,
        "leading feature columns that the small branch sees, the large one the rest; 0: all",
        low=0,
    )
    adapter: bool = option(True, "bring features to the branch width by a linear layer")
    dropout: float = option(0.1, "dropout on the cross-attention's output", low=0, high=0.95)


class Less(MilHead):
    """Attend within each branch, then let each class token read the other branch.

    Time grows with the square of the instances, as in the official code: every instance attends
    to every other one.

    Two maps, neither of a class: `attention_0` what the small branch's class token reads in the
    large branch's instances, `attention_1` the other way round; last block, mean over heads.
    """

    OFFICIAL: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 1e-6,
        "weight_decay": 0.1,
        "decay_vectors": False,
        "epochs": 100,
        "patience": 0,
        "schedule": "cosine",
        "hold_epochs": 2,
        "select": "accuracy",
        "shuffle": False,
    }
    OFFICIAL_HEAD: ClassVar[Mapping[str, Any]] = {"size": "base"}
    CYTOFM: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "epochs": 30, "patience": 8}
    CYTOFM_HEAD: ClassVar[Mapping[str, Any]] = {"size": "mini", "blocks": 1, "large_depth": 2}
    gap: ClassVar[str] = (
        "selection on validation accuracy (official: on test); features of one scale in both "
        "branches unless small_columns is set; float32"
    )

    def __init__(self, n_features: int, n_classes: int, config: LessConfig) -> None:
        super().__init__()
        size = SIZES[config.size]
        self.small_columns = config.small_columns
        columns = (
            (config.small_columns, n_features - config.small_columns)
            if config.small_columns
            else (n_features, n_features)
        )
        widths = (size.small, size.large)
        self.adapters = nn.ModuleList(
            nn.Linear(d, w) if config.adapter else nn.Identity()
            for d, w in zip(columns, widths, strict=True)
        )
        self.class_tokens = nn.ParameterList(nn.Parameter(torch.zeros(1, 1, w)) for w in widths)
        self.blocks = nn.ModuleList(_MultiScaleBlock(config, size) for _ in range(config.blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(w, eps=EPS) for w in widths)
        self.heads = nn.ModuleList(nn.Linear(w, n_classes) for w in widths)
        self.apply(_initialise)
        for token in self.class_tokens:
            nn.init.trunc_normal_(token, std=0.02)

    def forward(
        self, x_BND: Tensor, mask_BN: Tensor | None = None, seeds: Sequence[int] | None = None
    ) -> MilOutput:
        """Judge bags; see `MilHead.forward`."""
        cut = self.small_columns
        views = (x_BND[..., :cut], x_BND[..., cut:]) if cut else (x_BND, x_BND)
        h = [
            torch.cat([token.expand(len(x_BND), -1, -1), adapter(view)], dim=1)
            for token, adapter, view in zip(self.class_tokens, self.adapters, views, strict=True)
        ]
        mask_BT = None if mask_BN is None else nn.functional.pad(mask_BN, (1, 0), value=True)
        raw: list[Tensor] = []
        for block in self.blocks:
            h, raw = block(h, mask_BT)
        vectors = [norm(tokens)[:, 0] for norm, tokens in zip(self.norms, h, strict=True)]
        branches = [head(vector) for head, vector in zip(self.heads, vectors, strict=True)]
        raw_B2N = torch.stack(raw, dim=1)[..., 1:]
        return MilOutput(
            torch.stack(branches).mean(0),
            raw_B2N / raw_B2N.sum(-1, keepdim=True),
            raw_B2N,
            torch.cat(vectors, dim=-1)[:, None],
            (None, None),
            aux={"small_BC": branches[0], "large_BC": branches[1]},
        )


class _Attention(nn.Module):
    """Multi-head self-attention; only its output is needed, never the matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor, mask_BT: Tensor | None) -> Tensor:
        q, k, v = (_split(part, self.n_heads) for part in self.qkv(x_BTW).chunk(3, dim=-1))
        allowed = None if mask_BT is None else mask_BT[:, None, None]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    """Pre-norm transformer layer with a fourfold GELU perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=EPS) for _ in range(2))
        self.attn = _Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTW: Tensor, mask_BT: Tensor | None) -> Tensor:
        x_BTW = x_BTW + self.attn(self.norm1(x_BTW), mask_BT)
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x_BTW))))
        return x_BTW + y


class _CrossAttention(nn.Module):
    """A class token reads another branch's patch tokens and itself."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = heads
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTW: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        y_BTW = self.norm(x_BTW)
        q, k, v = (
            _split(part, self.n_heads)
            for part in (self.q(y_BTW[:, :1]), self.k(y_BTW), self.v(y_BTW))
        )
        scores_BH1T = q @ k.mT * q.shape[-1] ** -0.5
        if mask_BT is not None:
            scores_BH1T = scores_BH1T.masked_fill(~mask_BT[:, None, None], -torch.inf)
        attention_BH1T = scores_BH1T.softmax(-1)
        read = self.proj((attention_BH1T @ v).transpose(1, 2).flatten(2))
        return x_BTW[:, :1] + self.dropout(read), attention_BH1T[:, :, 0].mean(1)


class _MultiScaleBlock(nn.Module):
    def __init__(self, config: LessConfig, size: Size) -> None:
        super().__init__()
        widths = (size.small, size.large)
        depths = (config.small_depth, config.large_depth)
        self.layers = nn.ModuleList(
            nn.ModuleList(_Layer(w, size.heads) for _ in range(depth))
            for w, depth in zip(widths, depths, strict=True)
        )
        self.there, self.back = (
            nn.ModuleList(_bridge(a, b) for a, b in pairs)
            for pairs in (
                zip(widths, widths[::-1], strict=True),
                zip(widths[::-1], widths, strict=True),
            )
        )
        self.cross = nn.ModuleList(
            _CrossAttention(w, size.heads, config.dropout) for w in widths[::-1]
        )

    def forward(
        self, h: Sequence[Tensor], mask_BT: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        within = []
        for tokens, layers in zip(h, self.layers, strict=True):
            for layer in layers:  # type: ignore[attr-defined]
                tokens = layer(tokens, mask_BT)  # noqa: PLW2901
            within.append(tokens)
        out, attention = [], []
        for i in (0, 1):
            visitor = self.there[i](within[i][:, :1])
            read, row_BT = self.cross[i](torch.cat([visitor, within[1 - i][:, 1:]], 1), mask_BT)
            out.append(torch.cat([self.back[i](read), within[i][:, 1:]], dim=1))
            attention.append(row_BT)
        return out, attention


def _bridge(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width_in, eps=EPS), nn.GELU(), nn.Linear(width_in, width_out))


def _split(x_BTW: Tensor, heads: int) -> Tensor:
    b, t, w = x_BTW.shape
    return x_BTW.reshape(b, t, heads, w // heads).transpose(1, 2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


PLUGIN = Plugin(
    make=Less,
    config=LessConfig,
    summary="two-branch transformer of LESS (Zhao 2023)",
    sample=samples({}, {"small_columns": 8}, preset={"size": "mini"}),
)
