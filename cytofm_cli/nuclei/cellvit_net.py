"""The CellViT network: a ViT encoder with four taps and three U-shaped decoders.

Letters: B images, H W pixels, N tokens, D width, G heads, C channels.
Source: Hörst et al., arXiv:2306.15350 and arXiv:2501.05269 (architecture, widths, taps); the
encoders: Chen et al., HIPT (CVPR 2022), and Kirillov et al., SAM (arXiv:2304.02643). Written
from these and from the names of the tensors in published files, which it loads unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from cytofm_cli.nuclei.vit_encoders import PlainEncoder, SamEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """Width, depth and heads of an encoder, and the blocks whose outputs are tapped."""

    dim: int
    depth: int
    heads: int
    taps: tuple[int, int, int, int]
    sam: bool
    # SAM only: the blocks with attention over the whole image.
    global_blocks: tuple[int, ...] = ()


SIZES: Final = {
    "CellViT-256": EncoderSize(dim=384, depth=12, heads=6, taps=(3, 6, 9, 12), sam=False),
    "SAM-B": EncoderSize(
        dim=768, depth=12, heads=12, taps=(3, 6, 9, 12), sam=True, global_blocks=(2, 5, 8, 11)
    ),
    "SAM-L": EncoderSize(
        dim=1024, depth=24, heads=16, taps=(6, 12, 18, 24), sam=True, global_blocks=(5, 11, 17, 23)
    ),
    "SAM-H": EncoderSize(
        dim=1280, depth=32, heads=16, taps=(8, 16, 24, 32), sam=True, global_blocks=(7, 15, 23, 31)
    ),
}


class CellViT(nn.Module):
    """Maps of nuclei for an image whose sides are multiples of 16.

    `forward(x_BCHW)` takes normalised RGB and returns logits and distances:
    `nuclei_binary_map` (B, 2, H, W), `hv_map` (B, 2, H, W), `nuclei_type_map` (B, C, H, W) and
    `tissue_types` (B, tissues).
    """

    def __init__(
        self,
        size: EncoderSize,
        *,
        n_classes: int = 6,
        n_tissues: int = 19,
        regression: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        if size.sam:
            self.encoder: nn.Module = SamEncoder(
                size.dim, size.depth, size.heads, size.taps, size.global_blocks
            )
            self.classifier_head = nn.Linear(SamEncoder.NECK, n_tissues)
        else:
            self.encoder = PlainEncoder(size.dim, size.depth, size.heads, size.taps, n_tissues)
        skip, inner, low = (256, 128, 312) if size.dim < 512 else (512, 256, 512)
        dim = size.dim
        self.decoder0 = nn.Sequential(_Conv(3, 32), _Conv(32, 64))
        self.decoder1 = nn.Sequential(_Up(dim, skip), _Up(skip, inner), _Up(inner, 128))
        self.decoder2 = nn.Sequential(_Up(dim, skip), _Up(skip, 256))
        self.decoder3 = nn.Sequential(_Up(dim, low))
        self.nuclei_binary_map_decoder = _branch(dim, low, 2 + 2 * regression)
        self.hv_map_decoder = _branch(dim, low, 2)
        self.nuclei_type_maps_decoder = _branch(dim, low, n_classes)

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Run the network; see the class."""
        summary, taps = self.encoder(x_BCHW)
        # The four taps, coarse grids of tokens, brought up to 1/8, 1/4, 1/2 and 1 of the image.
        shared = (
            self.decoder0(x_BCHW),
            self.decoder1(taps[0]),
            self.decoder2(taps[1]),
            self.decoder3(taps[2]),
        )
        binary = _run_branch(self.nuclei_binary_map_decoder, shared, taps[3])
        return {
            "tissue_types": self.classifier_head(summary) if self.size.sam else summary,
            "nuclei_binary_map": binary[:, :2],
            "hv_map": _run_branch(self.hv_map_decoder, shared, taps[3]),
            "nuclei_type_map": _run_branch(self.nuclei_type_maps_decoder, shared, taps[3]),
        }


class _Conv(nn.Module):
    """3 × 3 convolution, batch norm, ReLU, dropout."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(fan_in, fan_out, 3, padding=1),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(inplace=True),
            nn.Dropout(0.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


class _Up(nn.Module):
    """2 × 2 transposed convolution, then as `_Conv`."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ConvTranspose2d(fan_in, fan_out, 2, stride=2),
            nn.Conv2d(fan_out, fan_out, 3, padding=1),
            nn.BatchNorm2d(fan_out),
            nn.ReLU(inplace=True),
            nn.Dropout(0.0),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y


def _branch(dim: int, low: int, n_out: int) -> nn.ModuleDict:
    """Build one decoder: from the last tap up to the image, a skip joining at every scale."""

    def double(fan_in: int) -> nn.Module:
        return nn.ConvTranspose2d(fan_in, fan_in // 2, 2, stride=2)

    return nn.ModuleDict(
        {
            "bottleneck_upsampler": nn.ConvTranspose2d(dim, low, 2, stride=2),
            "decoder3_upsampler": nn.Sequential(
                _Conv(2 * low, low),
                _Conv(low, low),
                _Conv(low, low),
                nn.ConvTranspose2d(low, 256, 2, stride=2),
            ),
            "decoder2_upsampler": nn.Sequential(_Conv(512, 256), _Conv(256, 256), double(256)),
            "decoder1_upsampler": nn.Sequential(_Conv(256, 128), _Conv(128, 128), double(128)),
            "decoder0_header": nn.Sequential(
                _Conv(128, 64), _Conv(64, 64), nn.Conv2d(64, n_out, 1)
            ),
        }
    )


def _run_branch(branch: nn.ModuleDict, shared: tuple[Tensor, ...], last: Tensor) -> Tensor:
    x = branch["bottleneck_upsampler"](last)
    for scale in (3, 2, 1):
        x = branch[f"decoder{scale}_upsampler"](torch.cat([shared[scale], x], dim=1))
    maps: Tensor = branch["decoder0_header"](torch.cat([shared[0], x], dim=1))
    return maps
