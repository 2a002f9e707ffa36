"""The frozen encoder whose vectors are conditions and whose tokens are aligned with.

Decided, where upstream leaves it open: an encoder sees images of its own input size, made from
what the generator sees; its grid of tokens is brought to the generator's by area means where one
is a multiple of the other, else bilinearly. Its vector is pooled as its spec says, so that
conditions are what `cytofm embed` stores but for the resampling of the crop.

Letters: B images, C channels, H W pixels, T tokens, E width of a token, V width of the vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from cytofm_cli.encoders.base import PIXELS, EncoderSpec
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.backbone import VitTrunk
from cytofm_cli.pretrain.frozen import open_teacher

_POOLINGS: Final = ("cls", "cls+mean", "mean", PIXELS)  # of a trunk whose tokens are known


@dataclass(frozen=True)
class Seen:
    """What an encoder says of images.

    Attributes:
        vector_BV: its vectors.
        token_BTE: its tokens on the generator's grid; None: it has none.
        own_BTE: on its own grid, as `FrozenEncoder.tokens` gives them; None likewise.
    """

    vector_BV: Tensor
    token_BTE: Tensor | None
    own_BTE: Tensor | None = None


class FrozenEncoder:
    """See the module.

    Args:
        word: a name, NAME=FILE, or a weight file that names itself.
        grid: tokens a side of the generator.

    Attributes:
        spec: of the encoder.
        dim: V.
        token_dim: E; 0: it has no tokens.
    """

    def __init__(self, word: str, grid: int) -> None:
        self._encoder: Any = open_teacher(word)
        self.spec: EncoderSpec = self._encoder.spec
        self.dim, self._grid = self.spec.dim, grid
        model = getattr(self._encoder, "model", None)
        self._trunk = None
        if isinstance(model, VisionTransformer) and self.spec.pooling in _POOLINGS:
            self._trunk = VitTrunk(model, self.spec.name, {}).eval()
            self._trunk.requires_grad_(requires_grad=False)
        self.token_dim = self._trunk.dim if self._trunk else 0

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Seen:
        """Return what it says of images, float (B, 3, H, W) in [0, 1], on their device."""
        if self._trunk is None:
            return Seen(self._vector(image_BCHW), None)
        cls_BE, patch_BTE = self._tokens(image_BCHW)
        mean_BE = patch_BTE.mean(1)
        both_BV = torch.cat([cls_BE, mean_BE], 1)
        vector = {"cls": cls_BE, "mean": mean_BE}.get(self.spec.pooling, both_BV)
        if self.spec.pooling == PIXELS:
            vector = self._encoder.model.joined(both_BV, self.normalised(image_BCHW))
        return Seen(vector.float(), to_grid(patch_BTE, self._grid).float(), patch_BTE)

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        """Return its own patch tokens (B, T, E), with the gradient for the images.

        Raises:
            UsageError: it has none.
        """
        return self._tokens(image_BCHW)[1]

    def _tokens(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        if self._trunk is None:
            raise UsageError(f"encoder {self.spec.name} is no Vision Transformer: no tokens.")
        trunk = self._trunk.to(image_BCHW.device)
        said = trunk(self.normalised(image_BCHW))
        return said.cls_BD, said.patch_BND

    def normalised(self, image_BCHW: Tensor) -> Tensor:
        """Return images in [0, 1] as the network takes them: resized, less mean, over spread."""
        side = self.spec.input_px or image_BCHW.shape[-1]
        if tuple(image_BCHW.shape[-2:]) != (side, side):
            image_BCHW = functional.interpolate(
                image_BCHW, size=(side, side), mode=self.spec.interpolation, antialias=True
            )
        mean, std = (
            torch.tensor(v, device=image_BCHW.device).view(1, 3, 1, 1)
            for v in (self.spec.mean, self.spec.std)
        )
        return (image_BCHW - mean) / std

    def _vector(self, image_BCHW: Tensor) -> Tensor:
        levels = (image_BCHW.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        vectors = self._encoder.encode(self._encoder.prepare(np.ascontiguousarray(levels)))
        return torch.from_numpy(vectors).to(image_BCHW.device)


def to_grid(token_BTE: Tensor, grid: int) -> Tensor:
    """Bring a square grid of tokens to another one, (B, grid², E)."""
    n, tokens, width = token_BTE.shape
    side = math.isqrt(tokens)
    if side == grid:
        return token_BTE
    square = token_BTE.transpose(1, 2).reshape(n, width, side, side)
    if side % grid == 0:
        resized = functional.avg_pool2d(square, side // grid)
    else:
        resized = functional.interpolate(
            square, size=(grid, grid), mode="bilinear", antialias=side > grid
        )
    return resized.flatten(2).transpose(1, 2)
