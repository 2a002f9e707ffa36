"""The autoencoder of latent diffusion, in the f8d4 layout and under its key names.

Esser et al., CVPR 2021, and Rombach et al., CVPR 2022 (`AutoencoderKL`): of base 128, multipliers
1, 2, 4, 4 and 4 channels its state dict has 248 entries and 83,653,863 parameters, those of
`REPA-E/sdvae`. There is no factor .18215: the norm of the latents replaces it (`latents`).

Letters: B images, C channels, H W pixels, h w places of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS: Final = 1e-6
_LEAST_IN_GROUP: Final = 4  # channels, as upstream's finest level has
_LOGVAR: Final = (-30.0, 20.0)
_FIRST_LOGVAR: Final = -6.0  # a standard deviation of 0.05, beside means that spread by 0.2


@dataclass(frozen=True, kw_only=True)
class VaeShape:
    """Sizes of an autoencoder.

    Attributes:
        base: channels of the finest level.
        multipliers: channels of each level, over `base`; each but the last halves the image.
        blocks: residual blocks a level; the decoder has one more.
        latent: channels of the latent.
    """

    base: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent: int = 4

    @property
    def groups(self) -> int:
        """Return the groups of every norm: 32 at base 128, and of four channels below.

        Of one channel each, as 32 groups at base 32 would be, the decoder's last norm would take
        the mean of every channel out of every image: no image could have a colour of its own.
        """
        return min(32, max(1, self.base // _LEAST_IN_GROUP))

    @property
    def factor(self) -> int:
        """Return how many pixels a place of the latent stands for, a side."""
        return int(2 ** (len(self.multipliers) - 1))


@dataclass(frozen=True)
class Posterior:
    """A normal distribution a place of the latent, with independent channels.

    Attributes:
        mean_BChw: of the latent.
        logvar_BChw: clamped to [-30, 20].
    """

    mean_BChw: Tensor
    logvar_BChw: Tensor

    def sample(self, noise_BChw: Tensor) -> Tensor:
        """Return mean + standard deviation · noise, with its gradient."""
        return self.mean_BChw + torch.exp(0.5 * self.logvar_BChw) * noise_BChw

    def divergence(self) -> Tensor:
        """Return the divergence from N(0, I) of each image, in nats: ½ Σ(μ² + σ² - 1 - log σ²)."""
        terms = self.mean_BChw**2 + self.logvar_BChw.exp() - 1 - self.logvar_BChw
        return 0.5 * terms.flatten(1).sum(1)


class Vae(nn.Module):
    """Images in [-1, 1] to a posterior, and latents back to images.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _Encoder(shape)
        self.decoder = _Decoder(shape)
        self.quant_conv = nn.Conv2d(2 * shape.latent, 2 * shape.latent, 1)
        self.post_quant_conv = nn.Conv2d(shape.latent, shape.latent, 1)
        self._begin_quietly()

    @torch.no_grad()
    def _begin_quietly(self) -> None:
        """Start with little noise in the latent.

        As PyTorch draws the layer, the noise would be five times as wide as the means spread, and
        the loss takes thousands of updates to narrow it: till then nothing, not even the colour of
        an image, comes through.
        """
        self.quant_conv.weight[self.shape.latent :].zero_()
        self.quant_conv.bias[self.shape.latent :].fill_(_FIRST_LOGVAR)  # type: ignore[index]

    def encode(self, x_BCHW: Tensor) -> Posterior:
        """Return the posterior of images, float (B, 3, H, W) in [-1, 1]; sides of whole latents."""
        mean, logvar = self.quant_conv(self.encoder(x_BCHW)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*_LOGVAR))

    def decode(self, z_BChw: Tensor) -> Tensor:
        """Return images near [-1, 1], float (B, 3, H, W)."""
        image: Tensor = self.decoder(self.post_quant_conv(z_BChw))
        return image


@dataclass(frozen=True)
class Resting:
    """An autoencoder that is not trained.

    Attributes:
        vae: it.
        norm: the statistics of its latents, as `LatentNorm.state_dict` has them.
    """

    vae: Vae
    norm: Mapping[str, Tensor]


def _norm(channels: int, shape: VaeShape) -> nn.GroupNorm:
    return nn.GroupNorm(shape.groups, channels, eps=_EPS)


class _Block(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, n_in: int, n_out: int, shape: VaeShape) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(n_in, shape), _norm(n_out, shape)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        if n_in != n_out:
            self.nin_shortcut = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x_BCHW)))
        h = self.conv2(functional.silu(self.norm2(h)))
        short = self.nin_shortcut(x_BCHW) if hasattr(self, "nin_shortcut") else x_BCHW
        total: Tensor = short + h
        return total


class _Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int, shape: VaeShape) -> None:
        super().__init__()
        self.norm = _norm(channels, shape)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.norm(x_BCHW)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        total: Tensor = x_BCHW + self.proj_out(mixed.transpose(1, 2).reshape(x_BCHW.shape))
        return total


class _Down(nn.Module):
    """Half the side: a convolution of stride 2 over an image with one more row and column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        halved: Tensor = self.conv(functional.pad(x_BCHW, (0, 1, 0, 1)))
        return halved


class _Up(nn.Module):
    """Twice the side: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        doubled: Tensor = self.conv(functional.interpolate(x_BCHW, scale_factor=2.0))
        return doubled


class _Level(nn.Module):
    """The blocks of one resolution; what changes it bears the layout's name."""

    def __init__(self, widths: Sequence[int], shape: VaeShape) -> None:
        super().__init__()
        pairs = pairwise(widths)
        self.block = nn.ModuleList(_Block(n_in, n_out, shape) for n_in, n_out in pairs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return x_BCHW


class _Middle(nn.Module):
    def __init__(self, channels: int, shape: VaeShape) -> None:
        super().__init__()
        self.block_1 = _Block(channels, channels, shape)
        self.attn_1 = _Attention(channels, shape)
        self.block_2 = _Block(channels, channels, shape)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class _Encoder(nn.Module):
    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths = [shape.base * m for m in shape.multipliers]
        self.conv_in = nn.Conv2d(3, shape.base, 3, padding=1)
        self.down: Any = nn.ModuleList()
        for n_in, n_out in zip([shape.base, *widths[:-1]], widths, strict=True):
            level = _Level([n_in, *[n_out] * shape.blocks], shape)
            if len(self.down) < len(widths) - 1:
                level.downsample = _Down(n_out)
            self.down.append(level)
        self.mid = _Middle(widths[-1], shape)
        self.norm_out = _norm(widths[-1], shape)
        self.conv_out = nn.Conv2d(widths[-1], 2 * shape.latent, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h = self.conv_in(x_BCHW)
        for level in self.down:
            h = level(h)
            h = level.downsample(h) if hasattr(level, "downsample") else h
        out: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(h))))
        return out


class _Decoder(nn.Module):
    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths = [shape.base * m for m in shape.multipliers]
        self.conv_in = nn.Conv2d(shape.latent, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], shape)
        levels = []
        for at in reversed(range(len(widths))):
            n_in = widths[min(at + 1, len(widths) - 1)]
            level = _Level([n_in, *[widths[at]] * (shape.blocks + 1)], shape)
            if at:
                level.upsample = _Up(widths[at])
            levels.append(level)
        self.up: Any = nn.ModuleList(reversed(levels))  # numbered from the finest
        self.norm_out = _norm(widths[0], shape)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_BChw: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z_BChw))
        for level in reversed(self.up):
            h = level(h)
            h = level.upsample(h) if hasattr(level, "upsample") else h
        out: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return out
