"""Small trunks as `pretrain` makes them, and their names.

Import as `from .trunks import …` (tests of this folder only).
"""

from __future__ import annotations

import functools

import pytest
import torch

from cytofm_cli.encoders.sr_vit import SIZES
from cytofm_cli.pretrain.backbone import make_backbones
from cytofm_cli.pretrain.config import PretrainConfig

SR, VIT, CONV = "sr-vit-tiny", "timm/test_vit", "timm/test_resnet"
NO_CLASS_TOKEN, ATTENTION_POOL = "timm/test_vit2", "timm/test_vit3"


@pytest.fixture(autouse=True, scope="module")
def small_sr_vit():
    """Let SR-ViT be as small as timm's test networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", (64, 6, 2))
        yield


@functools.cache  # the random weights are drawn once; every trunk has copies of its own
def make(encoder=SR, *, drop_path=0.1, patch_px=16, img_px=64, **more):
    config = PretrainConfig(encoder=encoder, **{"h": 4} | more)
    return make_backbones(config, drop_path=drop_path, patch_px=patch_px, img_px=img_px)


def trunk(encoder=SR, *, role="teacher", masks=False, **more):
    return make(encoder, **more)[0](role=role, masks=masks)


def images(n=2, side=64, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
