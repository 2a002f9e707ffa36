"""The patch discriminator of the autoencoder (Isola et al., CVPR 2017): 64 filters, 3 layers.

Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Images in [-1, 1] to a map of scores, high where it takes them to be real.

    Args:
        filters: of the first layer.
        layers: that halve the image.
    """

    def __init__(self, filters: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, filters, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = filters
        for at in range(1, layers + 1):
            wide, stride = filters * min(2**at, 8), 1 if at == layers else 2
            conv = nn.Conv2d(width, wide, 4, stride, 1, bias=False)
            parts += [conv, nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)]
            width = wide
        self.main = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return scores (B, 1, h, w)."""
        scores: Tensor = self.main(x_BCHW)
        return scores


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss: ½ mean relu(1 - D(x)) + ½ mean relu(1 + D(x̂))."""
    return 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
