"""What a transformer attends to in its last layer, whoever wrote it.

torch is watched while the network runs: the last attention over all tokens of every image is
kept, be it a fused product (`scaled_dot_product_attention`), a plain softmax of scores, or
`nn.MultiheadAttention`. So rotary positions, bias, normalised queries, registers and LayerScale
need no code of their own. Windowed, cross-covariance and convolutional networks have none.
SR-ViT, whose kernels do not pass through torch, is asked itself.

Letters: B images, C H W an image, Q queries, N tokens, P patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cytofm_cli.encoders.sr_vit import SrVit

CLASS_TOKEN: Final = "class token"  # noqa: S105 - no secret
PATCHES: Final = "mean of patches"
_CLASS_NAMES: Final = ("cls_token", "class_token", "class_embedding", "cls_embedding")
_MOST_PREFIX: Final = 32  # class token and registers
_SOFTMAX: Final = (torch.softmax, Tensor.softmax, functional.softmax)


@dataclass(frozen=True)
class PatchAttention:
    """How a query divides its attention.

    Attributes:
        patches_BHP: float32 or float64, its share on each patch, row by row of the grid, for each
            image and head (H); the rest of 1 is on class token and registers.
        grid: rows and columns of patches.
        query: whose attention it is: `CLASS_TOKEN`, or `PATCHES` where there is none.
    """

    patches_BHP: Tensor
    grid: tuple[int, int]
    query: str


def patch_attention(model: nn.Module, x_BCHW: Tensor) -> PatchAttention | None:
    """Return the attention of the last layer from the class token, else from all patches.

    Args:
        model: any network, in evaluation mode; of timm's, `forward_features` is called.
        x_BCHW: normalised images.

    Returns:
        None: it has no attention over all tokens of an image.
    """
    if isinstance(model, SrVit):
        weights = model.attention_maps(x_BCHW)[-1]
        grid = _grid(model, x_BCHW, weights.shape[-1])
    else:
        weights, grid = _watched(model, x_BCHW)
    if grid is None:
        return None
    n_prefix = weights.shape[-1] - math.prod(grid)
    query, of_query = PATCHES, weights[:, :, n_prefix:].mean(2)
    if weights.shape[2] == 1 or (n_prefix and _has_class_token(model)):
        query, of_query = CLASS_TOKEN, weights[:, :, 0]
    return PatchAttention(of_query[..., n_prefix:], grid, query)


def _watched(model: Any, x_BCHW: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
    """Run a network; return the weights (B, heads, Q, N) of its last attention and its grid."""
    with _Watch(len(x_BCHW)) as watch:
        out = getattr(model, "forward_features", model)(x_BCHW)
    for (_, n_tokens), give in reversed(watch.last.items()):
        grid = _grid(model, x_BCHW, n_tokens)
        if grid is not None and _agrees(out, grid, n_tokens):
            weights = give()
            return weights.reshape(len(x_BCHW), -1, *weights.shape[-2:]), grid
    return x_BCHW, None


class _Watch(TorchFunctionMode):
    """Keeps the last attention of each size that torch computes in this thread.

    Args:
        n_images: B; attention within parts of an image has more rows.

    Attributes:
        last: by queries and tokens (Q, N), last ones last: computes its weights, (B, heads, Q, N)
            or (B · heads, Q, N).
    """

    def __init__(self, n_images: int) -> None:
        super().__init__()
        self._n_images = n_images
        self.last: dict[tuple[int, int], Callable[[], Tensor]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, and note it if it is attention."""
        named = dict(kwargs or {})
        if func is functional.multi_head_attention_forward:
            named |= {"need_weights": True, "average_attn_weights": False}
            out = func(*args, **named)
            weights: Tensor = out[1]  # type: ignore[assignment]  # they are asked for
            self._note(weights.shape, lambda: weights)
            return out
        if func is functional.scaled_dot_product_attention:
            self._note_product(*args, **named)
        out = func(*args, **named)
        if func in _SOFTMAX:
            self._note(out.shape, lambda: out)
        return out

    def _note_product(self, query: Tensor, key: Tensor, *rest: Any, **named: Any) -> None:
        mask = rest[1] if len(rest) > 1 else named.get("attn_mask")
        give = partial(_weights, query, key, mask, named.get("scale"))
        if query.shape[:-2] == key.shape[:-2]:
            self._note((*query.shape[:-1], key.shape[-2]), give)

    def _note(self, shape: Sequence[int], give: Callable[[], Tensor]) -> None:
        whole = len(shape) == 4 and shape[0] == self._n_images
        folded = len(shape) == 3 and shape[0] % self._n_images == 0
        if (whole or folded) and shape[-2] in (1, shape[-1]):
            self.last.pop((shape[-2], shape[-1]), None)
            self.last[shape[-2], shape[-1]] = give


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Return softmax(query · key · scale + mask), at least in float32."""
    kind = torch.promote_types(query.dtype, torch.float32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        scores = query.to(kind) @ key.to(kind).mT * scale
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask.to(kind)
        return scores.softmax(-1)


def _grid(model: Any, x_BCHW: Tensor, n_tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of the patches among so many tokens, None if these are others."""
    patch = _patch_px(model)
    if patch is None:  # a network that shrinks by steps: a square, at most a class token before it
        rows = columns = math.isqrt(n_tokens)
        most = 1
    else:
        rows, columns = (-(-s // p) for s, p in zip(x_BCHW.shape[-2:], patch, strict=True))
        most = _MOST_PREFIX
    n_prefix = n_tokens - rows * columns
    known = getattr(model, "num_prefix_tokens", None)
    fits = 0 <= n_prefix <= most if known is None else n_prefix == known
    return (rows, columns) if fits and rows * columns > 1 else None


def _agrees(out: object, grid: tuple[int, int], n_tokens: int) -> bool:
    """Tell whether what a network gives can be of this grid; else channels met, not places."""
    if not isinstance(out, Tensor):
        return True
    if out.ndim == 4:
        return grid in (tuple(out.shape[1:3]), tuple(out.shape[2:]))
    n_patches = math.prod(grid)
    return out.ndim != 3 or out.shape[1] in (n_tokens, n_patches, n_tokens - n_patches)


def _patch_px(model: Any) -> tuple[int, int] | None:
    """Return height and width of a patch: timm's word, else the stride of the first convolution."""
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(embed, "feat_ratio"):  # hybrids: of the whole stem
        ratio = embed.feat_ratio()
        return (int(ratio), int(ratio)) if isinstance(ratio, int) else tuple(map(int, ratio))  # type: ignore[return-value]
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride or first.stride[0] == 1:
        return None
    return first.stride[0], first.stride[1]


def _has_class_token(model: nn.Module) -> bool:
    names = (name.rpartition(".")[2] for name, _ in model.named_parameters())
    return any(name in _CLASS_NAMES for name in names)
