"""Which of the common architectures a weight file looks like, for the hint of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor

from cytofm_cli.encoders import networks

_WIDTHS: Final = {
    192: "tiny",
    384: "small",
    768: "base",
    1024: "large",
    1280: "huge",
    1536: "giant",
}
_VITS: Final = ("224", "dinov2", "reg4_dinov2", "dinov3")
_OTHERS: Final = {  # an entry that each of a family has, and what it may be
    "layer1.0.conv1.weight": tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "stages.0.blocks.0.conv_dw.weight": tuple(
        f"convnext_{size}" for size in ("tiny", "small", "base", "large")
    ),
    "layers.0.blocks.0.attn.qkv.weight": tuple(
        f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base")
    ),
    "features.denseblock1.denselayer1.conv1.weight": ("densenet121",),
    "conv_stem.weight": ("efficientnet_b0", "mobilenetv3_large_100"),
}
_PATCHES: Final = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")


def guess(state: Mapping[str, Tensor], rename: Callable[..., str]) -> str | None:
    """Return the common architecture of timm that a file fits best; None: it fits none well.

    Args:
        state: entries of the file, under any prefix.
        rename: see `layouts.timm_name`.
    """
    import timm

    best: tuple[float, str] | None = None
    for name in filter(timm.is_model, _candidates(state)):
        with torch.device("meta"):
            wanted = timm.create_model(name, num_classes=0, pretrained=False).state_dict()
        groups = networks.group_by_prefix(state, wanted, partial(rename, wanted=wanted))
        n_fit = max((n for n, _ in groups.values()), default=0)
        share = n_fit / max(len(wanted), 1)
        if share > 0.95 and (best is None or n_fit > best[0]):
            best = n_fit, name
    return None if best is None else best[1]


def _candidates(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the names of architectures worth building, of which there are few."""
    for entry, names in _OTHERS.items():
        if any(key.endswith(entry) for key in state):
            yield from names
    patches = next((value for key, value in state.items() if key.endswith(_PATCHES)), None)
    if patches is not None and patches.ndim == 4 and len(patches) in _WIDTHS:
        stem = f"vit_{_WIDTHS[len(patches)]}_patch{patches.shape[-1]}"
        yield from (f"{stem}_{kind}" for kind in _VITS)
