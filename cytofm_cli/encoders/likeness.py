"""Which of the common architectures a weight file looks like, for the hint of an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor

from cytofm_cli.encoders import networks

_SIZES: Final = ("tiny", "small", "base", "large")
_COMMON: Final = (
    *(f"vit_{size}_patch16_224" for size in _SIZES),
    *(f"vit_{size}_patch8_224" for size in ("small", "base")),
    *(f"vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")),
    *(f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant")),
    "vit_huge_patch14_224",
    *(f"vit_{size}_patch16_dinov3" for size in ("small", "base", "large")),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"convnext_{size}" for size in _SIZES),
    *(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")),
    *("densenet121", "efficientnet_b0", "mobilenetv3_large_100"),
)


def guess(state: Mapping[str, Tensor], rename: Callable[..., str]) -> str | None:
    """Return the common architecture of timm that a file fits best; None: it fits none well.

    Args:
        state: entries of the file, under any prefix.
        rename: see `layouts.timm_name`.
    """
    import timm

    best: tuple[float, str] | None = None
    for name in filter(timm.is_model, _COMMON):
        with torch.device("meta"):
            wanted = timm.create_model(name, num_classes=0, pretrained=False).state_dict()
        groups = networks.group_by_prefix(state, wanted, partial(rename, wanted=wanted))
        n_fit = max((n for n, _ in groups.values()), default=0)
        share = n_fit / max(len(wanted), 1)
        if share > 0.95 and (best is None or n_fit > best[0]):
            best = n_fit, name
    return None if best is None else best[1]
