"""What can be said of an image's pixels without weights, as part of a network.

Colour and texture in rings about the middle, where a cell's nucleus is: means, spreads, extremes.
Unlike tokens that were trained not to heed colour they keep it exactly; unlike
`encoders.handcrafted` they are computed by the network from the images that it is given, on its
device, and know where the middle is. All are unchanged by quarter turns and mirroring, up to
rounding.

Source of the densities: Ruifrok & Johnston 2001. The combination is our own.

Letters: B images, C colours, P planes, H W pixels, N pixels of an image, R rings, E statistics.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.errors import UsageError

# Whole, nucleus, its surroundings, the rest: from and to so many half sides from the middle.
RINGS: Final = ((0.0, 9.0), (0.0, 0.3), (0.3, 0.6), (0.6, 9.0))
_EDGE: Final = 0.04  # half sides over which a ring fades
_EXTREME_LEVELS: Final = (1, 2, 3)  # times the planes are halved
_TEXTURE_LEVELS: Final = (1, 2, 3)
_LEAST: Final = 1e-3  # optical density: smaller differences are sensor and JPEG noise
_N_PLANES: Final = 7
_N_RINGS: Final = len(RINGS)
N_STATISTICS: Final = _N_RINGS * (
    3 * _N_PLANES + 2 * _N_PLANES * len(_EXTREME_LEVELS) + 9 * (1 + 2 * len(_TEXTURE_LEVELS))
)
SCALES: Final = "joined."  # what the entries of `Joined` are called in a weight file
_WHOLE_PX: Final = 8  # three halvings leave whole pixels, so that mirror images are alike
_VECTOR: Final = 0.5  # of the pixels' weight: with 1 neighbours lose (docs/cytofm-tiny.md)
IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Joined(nn.Module):
    """Joins a network's vector with statistics of the image, each centred and at a scale.

    `(x - offset) * scale` per feature, nothing at first: `balance` gives them values. Cosines, as
    of neighbours, weigh features by their scales, and see little of what lies far from 0.

    Args:
        dim: length of the network's vector, D.

    Attributes:
        colour: mean and deviation that images were normalised with, (2, 3, 1, 1).
    """

    offset: Tensor
    scale: Tensor
    colour: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("offset", torch.zeros(dim + N_STATISTICS))
        self.register_buffer("scale", torch.ones(dim + N_STATISTICS))
        self.register_buffer("colour", torch.tensor(IMAGENET).view(2, 3, 1, 1))

    def forward(self, vector_BD: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return the joined vectors of normalised images, float32 (B, D + N_STATISTICS)."""
        pixels_BE = measure(x_BCHW * self.colour[1] + self.colour[0])
        joined_BE = torch.cat([vector_BD.float(), pixels_BE], 1)
        return (joined_BE - self.offset) * self.scale

    def normalised_with(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Say what images are normalised with."""
        self.colour.copy_(torch.tensor([mean, std]).view(2, 3, 1, 1))

    def balance(self, joined_BE: Tensor) -> None:
        """Centre on some images' vectors, of a layer as it was built, and weigh the parts.

        Each part is scaled by one number, so that its variances sum to 1, those of the network's
        vector to `_VECTOR` squared: of a part's own features, those that vary most stay so.
        """
        parts_BE = torch.split(joined_BE.double(), [self.dim, N_STATISTICS], 1)
        spreads = [x.var(0, correction=0).sum().clamp_min(1e-12).sqrt() for x in parts_BE]
        self.offset.copy_(joined_BE.double().mean(0))
        self.scale[: self.dim], self.scale[self.dim :] = _VECTOR / spreads[0], 1 / spreads[1]


def require_side(side: int) -> None:
    """Refuse images that cannot be halved three times.

    Raises:
        UsageError: it is no multiple of 8, or below 16.
    """
    if side % _WHOLE_PX or side < 2 * _WHOLE_PX:
        raise UsageError(
            f"statistics of pixels are taken of images whose side is a multiple of {_WHOLE_PX} px, "
            f"at least {2 * _WHOLE_PX}, not of {side} px.",
            hint="cut views and crops of 64 px",
        )


def measure(rgb_BCHW: Tensor) -> Tensor:
    """Return the statistics of square images.

    Args:
        rgb_BCHW: float (B, 3, S, S), 0 to 1; S see `require_side`.

    Returns:
        float32 (B, N_STATISTICS), finite; optical densities, or base-10 logarithms of them.
    """
    require_side(rgb_BCHW.shape[-1])
    with torch.autocast(rgb_BCHW.device.type, enabled=False):
        density_BCHW = -torch.log10((rgb_BCHW.float().clamp(0, 1) * 255 + 1) / 256)
        halved_BPHW = _planes(functional.avg_pool2d(density_BCHW, 2))
        parts = [_moments(halved_BPHW), *_textures(density_BCHW[:, 1:2])]
        level_BPHW = halved_BPHW
        for level in range(1, max(*_EXTREME_LEVELS, *_TEXTURE_LEVELS) + 1):
            if level in _EXTREME_LEVELS:
                parts.append(_extremes(level_BPHW))
            if level in _TEXTURE_LEVELS:
                parts += _textures(level_BPHW[:, 3:5])
            level_BPHW = functional.avg_pool2d(level_BPHW, 2)
        return torch.cat(parts, 1)


def _planes(density_BCHW: Tensor) -> Tensor:
    """Return the densities, the least of them, the span, and two differences, (B, P, H, W)."""
    red, green, blue = density_BCHW.unbind(1)
    dark, strongest = density_BCHW.amin(1), density_BCHW.amax(1)
    contrasts = (dark, strongest - dark, red - green, blue - (red + green) / 2)
    return torch.cat([density_BCHW, torch.stack(contrasts, 1)], 1)


@functools.lru_cache(maxsize=32)
def rings(side: int) -> Tensor:
    """Return how much each pixel counts in each ring, float32 (R, side²), rows sum to 1."""
    along = (torch.arange(side, dtype=torch.float32) * 2 + 1) / side - 1
    away_HW = torch.hypot(along[:, None], along[None])
    rows = []
    for near, far in RINGS:
        inside_HW = torch.sigmoid((far - away_HW) / _EDGE)
        if near > 0:
            inside_HW = inside_HW * torch.sigmoid((away_HW - near) / _EDGE)
        rows.append((inside_HW / inside_HW.sum()).flatten())
    return torch.stack(rows)


@functools.lru_cache(maxsize=32)
def _within(side: int) -> tuple[Tensor, ...]:
    """Return the pixels of each ring, those nearest to it where it falls between them."""
    ring_RN = rings(side)
    return tuple((row_N > row_N.max() / 2).nonzero()[:, 0] for row_N in ring_RN)


def _moments(plane_BPHW: Tensor) -> Tensor:
    """Return mean, deviation and the cubic root of the third moment, (B, 3 · P · R)."""
    ring_RN = rings(plane_BPHW.shape[-1]).to(plane_BPHW.device)
    x_BPN = plane_BPHW.flatten(2)
    mean_BPR = x_BPN @ ring_RN.T
    away_BPRN = x_BPN[:, :, None] - mean_BPR[..., None]
    square_BPRN = away_BPRN * away_BPRN
    deviation_BPR = ((square_BPRN * ring_RN).sum(-1) + _LEAST**2).sqrt()
    third_BPR = (square_BPRN * away_BPRN * ring_RN).sum(-1)
    lean_BPR = third_BPR.sign() * third_BPR.abs().pow(1 / 3)
    return torch.cat([x.flatten(1) for x in (mean_BPR, deviation_BPR, lean_BPR)], 1)


def _extremes(plane_BPHW: Tensor) -> Tensor:
    """Return the largest and the smallest value in each ring, (B, 2 · P · R)."""
    x_BPN = plane_BPHW.flatten(2)
    values = []
    for index_N in _within(plane_BPHW.shape[-1]):
        ring_BPN = x_BPN[..., index_N.to(x_BPN.device)]
        values += [ring_BPN.amax(-1), ring_BPN.amin(-1)]
    return torch.stack(values, -1).flatten(1)


def _textures(plane_BPHW: Tensor) -> Iterator[Tensor]:
    """Give mean, root mean square and largest of slopes, bright and dark spots, (B, …) each."""
    side = plane_BPHW.shape[-1]
    ring_RN = rings(side).to(plane_BPHW.device)
    padded = functional.pad(plane_BPHW, (1, 1, 1, 1), mode="replicate")
    left, right = padded[..., 1:-1, :-2], padded[..., 1:-1, 2:]
    up, down = padded[..., :-2, 1:-1], padded[..., 2:, 1:-1]
    slope = ((right - left).square() + (down - up).square() + _LEAST**2).sqrt() / 2
    spot = plane_BPHW - (left + right + up + down) / 4
    x_BPN = torch.cat([slope, spot.clamp_min(0), (-spot).clamp_min(0)], 1).flatten(2)
    yield (x_BPN @ ring_RN.T + _LEAST).log10().flatten(1)
    yield ((x_BPN * x_BPN @ ring_RN.T).sqrt() + _LEAST).log10().flatten(1)
    peaks = [x_BPN[..., index_N.to(x_BPN.device)].amax(-1) for index_N in _within(side)]
    yield torch.stack(peaks, -1).flatten(1)
