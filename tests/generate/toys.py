"""Small networks and encoders for the tests of generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cytofm_cli.generate.conditions import ConditionShape
from cytofm_cli.generate.frozen import Seen
from cytofm_cli.generate.repa_e import RepaE, Weights
from cytofm_cli.generate.sit import SitShape
from cytofm_cli.generate.vae import Resting, VaeShape
from cytofm_cli.pretrain.base import Batch, MethodConfig
from cytofm_cli.views.draws import sample_keys

VAE = VaeShape(base=8, multipliers=(1, 2), blocks=1)  # 32 px: a latent of 16 places a side
LEARNT = {"side": 16, "patch": 4}
RATES = MethodConfig(lr=1e-3, weight_decay=0.0, weight_decay_end=0.0, clip=0.0)


def sit_shape(**changes: Any) -> SitShape:
    usual: dict[str, Any] = {
        "side": 8, "depth": 2, "width": 16, "heads": 2, "patch": 2, "aligned_depth": 1,
        "aligned": 6, "projector": 8, "condition": ConditionShape(kind="encoder", dim=5),
    }  # fmt: skip
    return SitShape(**usual | changes)


class Eyes:
    """An encoder of 16 tokens of width 6 and a vector of 5, linear in the image's means."""

    def __init__(self) -> None:
        stream = torch.Generator().manual_seed(3)
        self.token = torch.randn(3, 6, generator=stream)
        self.vector = torch.randn(3, 5, generator=stream)

    def tokens(self, image_BCHW: Tensor) -> Tensor:
        means = torch.nn.functional.adaptive_avg_pool2d(image_BCHW, 4).flatten(2)
        return means.transpose(1, 2) @ self.token

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> Seen:
        vector = image_BCHW.mean((2, 3)) @ self.vector
        token_BTE = self.tokens(image_BCHW)
        return Seen(vector, token_BTE, token_BTE)


def learner(
    weights: Weights | None = None, *, resting: Resting | None = None, **changes: Any
) -> RepaE:
    torch.manual_seed(0)
    eyes: Any = Eyes()
    return RepaE(
        VAE,
        sit_shape(**LEARNT | changes),
        weights or Weights(gan=0.1),
        RATES,
        told=eyes,
        aligned=eyes,
        resting=resting,
    ).train()


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batch(n: int = 4, seed: int = 0) -> Batch:
    tiles = np.arange(n)
    return Batch(views=[images(n, seed)], n_global=1, keys_B=sample_keys(0, tiles), tiles_B=tiles)
