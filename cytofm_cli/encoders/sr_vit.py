"""SR-ViT: timm's VisionTransformer with top-h attention and relative positions.

Cyto-SSL: every block keeps only the h best keys of each query and knows relative positions,
iRPE (Wu et al., ICCV 2021); `cytofm_kernels` computes both. Four arms: {dense, top-h} ×
{relative positions off, on}. The parameters are timm's, plus zero-initialised tables, so weights
of a plain ViT (timm, DINO, iBOT) load into it, and with h ≥ N it starts out equal to that ViT.

Letters: B images, C H W an image, N tokens, H heads, D channels (a head's, in attention),
R buckets.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cytofm_cli.encoders.pixel_statistics import Joined
from cytofm_cli.errors import UsageError
from cytofm_kernels import (
    RelPos,
    Ties,
    product_buckets,
    product_n_buckets,
    top_h_attention,
    top_h_attention_reference,
)

SIZES: dict[str, tuple[int, int, int]] = {  # width, blocks, heads
    "nano": (128, 6, 4),  # for single cells at 64 px: 65 tokens with patches of 8 px
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}

# The relative positions that there are, in the words of the paper, as weight files record them:
# a vector a bucket, of queries, keys and values, shared by all heads.
_IRPE: Final[dict[str, Any]] = {
    "method": "product",
    "mode": "contextual",
    "on": "qkv",
    "ratio": None,
    "share_heads": True,
}


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of an image lie.

    Attributes:
        hw: rows and columns of the patch grid.
        n_prefix: tokens before the patches (class token, registers).
    """

    hw: tuple[int, int]
    n_prefix: int

    @property
    def n_tokens(self) -> int:
        """N."""
        return self.n_prefix + self.hw[0] * self.hw[1]


@dataclass(frozen=True, kw_only=True)
class SrVitConfig:
    """The architecture, as it is stored beside its weights.

    Attributes:
        size: nano, tiny, small or base.
        patch_px: side of a patch.
        img_px: side of the image that the absolute positions are laid out for; others get
            them resized.
        registers: register tokens; absolute positions then leave out the prefix, like DINOv2's.
        h: keys that each query keeps; None: all (dense).
        exact_h: of equal scores at the threshold keep the first instead of all (eq. 5).
        irpe: relative positions.
        layer_scale: initial value of LayerScale; None: without.
        drop_path: largest rate of dropped residual branches.
        pixels: it can join its tokens with statistics of the pixels (`pixel_statistics.Joined`).
    """

    size: str = "tiny"
    patch_px: int = 16
    img_px: int = 224
    registers: int = 0
    h: int | None = 16
    exact_h: bool = False
    irpe: bool = True
    layer_scale: float | None = None
    drop_path: float = 0.0
    pixels: bool = False

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise UsageError(f"SR-ViT has no size {self.size!r}.", hint=", ".join(SIZES))
        if self.h is not None and self.h < 1:
            raise UsageError(f"h is {self.h}: keep at least one key.")

    @staticmethod
    def from_record(record: dict[str, Any]) -> SrVitConfig:
        """Rebuild from what `to_record` gave; unknown keys are refused."""
        if "irpe" in record:
            record = record | {"irpe": _reads_irpe(record["irpe"])}
        try:
            return SrVitConfig(**record)
        except TypeError as error:
            raise UsageError(f"SR-ViT's configuration: {error}.") from error

    def to_record(self) -> dict[str, Any]:
        """Return the configuration as plain JSON values."""
        record = asdict(self) | {"irpe": dict(_IRPE) if self.irpe else None}
        if not self.pixels:  # files from before there were any have no such entry
            record.pop("pixels")
        return record


def _reads_irpe(stated: object) -> bool:
    """Tell whether a record asks for relative positions.

    Raises:
        UsageError: for others than there are.
    """
    if stated is None:
        return False
    if not isinstance(stated, dict) or _IRPE | stated not in (_IRPE, _IRPE | {"ratio": 1.9}):
        raise UsageError(f"SR-ViT has no relative positions {stated}.", hint=f"{_IRPE}, or none")
    return True


class RelativeTable(nn.Module):
    """A vector for every bucket, zero at first, under the name of the paper's code.

    Args:
        head_dim: D.
        n_prefix: prefix tokens; they share one more bucket.
        transposed: (1, D, R), met by q or k, instead of (1, R, D), added to v.
    """

    def __init__(self, head_dim: int, n_prefix: int, *, transposed: bool) -> None:
        super().__init__()
        rows = product_n_buckets(n_prefix)
        shape = (1, head_dim, rows) if transposed else (1, rows, head_dim)
        self.lookup_table_weight = nn.Parameter(torch.zeros(shape))


class TopHAttention(Attention):  # type: ignore[misc]
    """timm's self-attention, keeping the h best keys, with relative positions.

    Built as timm builds it, dense; `equip` then sets the rest.
    """

    def __init__(self, dim: int, **kwargs: Any) -> None:
        super().__init__(dim, **kwargs)
        if self.attn_drop.p > 0:
            raise UsageError("top-h attention has no dropout of attention weights.")
        self.h: int | None = None
        self.ties: Ties = "all"
        self.irpe = False

    def equip(self, config: SrVitConfig, n_prefix: int) -> None:
        """Set h and add the tables of `config`."""
        self.h, self.ties, self.irpe = config.h, "first" if config.exact_h else "all", config.irpe
        for letter in _IRPE["on"] if config.irpe else "":
            table = RelativeTable(self.head_dim, n_prefix, transposed=letter != "v")
            self.add_module(f"rpe_{letter}", table)

    def forward(
        self, x_BND: Tensor, attn_mask: TokenGrid | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend within each image.

        Args:
            x_BND: tokens.
            attn_mask: the token grid, through the one argument that timm's blocks hand on.
            is_causal: not supported.
        """
        if is_causal:
            raise UsageError("top-h attention is not causal.")
        q_BHND, k_BHND, v_BHND = self._project(x_BND)
        n = q_BHND.shape[-2]
        rel = self._positions(attn_mask, n, x_BND.device)
        h = n if self.h is None else min(self.h, n)
        if h == n and rel is None:
            o_BHND = _dense(q_BHND, k_BHND, v_BHND)
        else:
            o_BHND = top_h_attention(q_BHND, k_BHND, v_BHND, h, rel=rel, ties=self.ties)
        o_BND = self.norm(o_BHND.transpose(1, 2).flatten(2))
        out: Tensor = self.proj_drop(self.proj(o_BND))
        return out

    def attention_map(self, x_BND: Tensor, grid: TokenGrid) -> Tensor:
        """Return the attention weights, (B, H, N, N), float32."""
        q_BHND, k_BHND, v_BHND = self._project(x_BND)
        n = q_BHND.shape[-2]
        h = n if self.h is None else min(self.h, n)
        rel = self._positions(grid, n, x_BND.device)
        shown = top_h_attention_reference(q_BHND, k_BHND, v_BHND, h, rel=rel, ties=self.ties)
        return shown.attn_BHNN

    def _project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, self.head_dim))
        q_BHND, k_BHND, v_BHND = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q_BHND), self.k_norm(k_BHND), v_BHND

    def _positions(self, grid: TokenGrid | None, n: int, device: torch.device) -> RelPos | None:
        if not self.irpe:
            return None
        if grid is None or grid.n_tokens != n:
            raise UsageError(f"relative positions of {n} tokens need their grid, got {grid}.")
        tables = {
            f"table_{letter}": cast("Tensor", getattr(self, f"rpe_{letter}").lookup_table_weight)
            for letter in _IRPE["on"]
        }
        return RelPos(bucket=_buckets(*grid.hw, grid.n_prefix, device), **tables)


def _dense(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """Attend to all keys; on a CPU in float32, for torch's backward in half precision is slow.

    With 65 tokens it takes six times as long there, and was nearly half of an update with bf16.
    """
    if q_BHND.device.type != "cpu" or torch.compiler.is_compiling():
        return functional.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x if x.dtype == torch.float64 else x.float() for x in (q_BHND, k_BHND, v_BHND))
        return functional.scaled_dot_product_attention(q, k, v).to(q_BHND.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _buckets(height: int, width: int, n_prefix: int, device: torch.device) -> Tensor:
    """Return the bucket of every pair of tokens, (N, N), made once. Do not write to it."""
    return _tabulated(height, width, n_prefix, device)


@functools.lru_cache(maxsize=64)
def _tabulated(height: int, width: int, n_prefix: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):  # the table outlives the call and may meet autograd
        return product_buckets((height, width), n_prefix, device=device)


class SrVit(VisionTransformer):  # type: ignore[misc]
    """A Vision Transformer with top-h attention and relative positions in every block.

    Args:
        config: the architecture.
        num_classes: outputs of a linear head; 0: features.
        vit: further arguments of timm's `VisionTransformer`.
    """

    def __init__(self, config: SrVitConfig, *, num_classes: int = 0, **vit: Any) -> None:
        width, depth, heads = SIZES[config.size]
        shape = {
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "patch_size": config.patch_px,
            "img_size": config.img_px,
            "reg_tokens": config.registers,
            "no_embed_class": config.registers > 0,
            "init_values": config.layer_scale,
            "drop_path_rate": config.drop_path,
        }
        super().__init__(
            **(shape | vit),
            num_classes=num_classes,
            dynamic_img_size=True,
            attn_layer=TopHAttention,
        )
        self.config = config
        for block in self.blocks:
            block.attn.equip(config, self.num_prefix_tokens)
        if config.pixels:
            self.joined = Joined(2 * self.embed_dim)

    def forward_features(
        self, x_BCHW: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the normalised tokens, (B, N, D), prefix first.

        Sides must be multiples of the patch; masks are not supported.
        """
        if attn_mask is not None or is_causal:
            raise UsageError("SR-ViT takes no attention mask.")
        tokens_BND, grid = self.embed(x_BCHW)
        out: Tensor = self.norm(self.run_blocks(tokens_BND, grid))
        return out

    def embed(self, x_BCHW: Tensor) -> tuple[Tensor, TokenGrid]:
        """Return the tokens that enter the first block, and their grid."""
        patches_BHWD = self.patch_embed(x_BCHW)
        _, height, width, _ = patches_BHWD.shape
        tokens_BND = self.norm_pre(self.patch_drop(self._pos_embed(patches_BHWD)))
        return tokens_BND, TokenGrid((height, width), self.num_prefix_tokens)

    def run_blocks(self, x_BND: Tensor, grid: TokenGrid) -> Tensor:
        """Pass tokens through all blocks."""
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x_BND = checkpoint(block, x_BND, grid, use_reentrant=False)
            else:
                x_BND = block(x_BND, attn_mask=grid)
        return x_BND

    def forward_intermediates(self, x_BCHW: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Do as timm's method of this name does, with relative positions."""
        height, width = self.patch_embed.dynamic_feat_size(x_BCHW.shape[-2:])
        kwargs["attn_mask"] = TokenGrid((height, width), self.num_prefix_tokens)
        return super().forward_intermediates(x_BCHW, *args, **kwargs)

    def attention_maps(self, x_BCHW: Tensor, layers: tuple[int, ...] = (-1,)) -> dict[int, Tensor]:
        """Return the attention weights of blocks: {block: (B, H, N, N) float32}.

        Args:
            x_BCHW: normalised images.
            layers: which blocks, negative ones from the end.

        Rows are queries and sum to 1; tokens are prefix first, then the grid row by row.
        """
        depth = len(self.blocks)
        outside = [layer for layer in layers if not -depth <= layer < depth]
        if outside:
            raise UsageError(f"there is no block {outside[0]} among {depth}.")
        wanted = {layer % depth: layer for layer in layers}
        x_BND, grid = self.embed(x_BCHW)
        maps = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            if i in wanted:
                maps[wanted[i]] = block.attn.attention_map(block.norm1(x_BND), grid)
            x_BND = block(x_BND, attn_mask=grid)
        return maps

    def set_h(self, h: int | None) -> None:
        """Keep `h` keys of every query from now on; None: all. Weights stay."""
        self.config = replace(self.config, h=h)
        for block in self.blocks:
            block.attn.h = h

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay; the tables do decay, as in iRPE's code."""
        return {"pos_embed", "cls_token", "reg_token"}


def annealed_h(step: int, *, n_steps: int, n_tokens: int, h: int) -> int:
    """Return the keys to keep at a step: from all down to `h`, geometrically, then `h`.

    Dense weights turned top-h at once jump, since dropping keys is no identity; closing in by a
    constant factor a step is the gentle way.
    """
    if step >= n_steps or n_tokens <= h:
        return h
    return round(math.exp(math.log(n_tokens) + (math.log(h / n_tokens)) * max(step, 0) / n_steps))


def relative_keys(model: nn.Module) -> set[str]:
    """Name the parameters that a plain ViT lacks: the tables."""
    return {name for name, _ in model.named_parameters() if ".rpe_" in name}
