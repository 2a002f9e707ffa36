"""Which architecture a weight file looks like, for the hint of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

import torch
from torch import Tensor

from cytofm_cli import registry
from cytofm_cli.encoders import catalogue, networks
from cytofm_cli.encoders.base import TrunkRequest
from cytofm_cli.encoders.entries import Entry
from cytofm_cli.errors import UsageError

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
_SIDE: Final = 16  # patches a side, of which any number will do
_SHOWN: Final = 3
_PATCHES: Final = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")


def guess(state: Mapping[str, Tensor], rename: Callable[..., str]) -> str | None:
    """Return what a file fits best, by name: a common architecture of timm, else encoders.

    Args:
        state: entries of the file, under any prefix.
        rename: see `layouts.timm_name`.

    Returns:
        "timm/resnet34", "uni", or "unicas or crown", which weights do not tell apart; None: it
        fits none well.
    """
    found: dict[int, list[str]] = {}
    for name, network in (*_of_timm(state), *_of_entries(state)):
        # Absolute positions depend on the size of the image alone.
        wanted = {key: value for key, value in network.items() if key != "pos_embed"}
        groups = networks.group_by_prefix(state, wanted, partial(rename, wanted=wanted))
        n_fit = max((n for n, _ in groups.values()), default=0)
        if n_fit > 0.95 * len(wanted):
            found.setdefault(n_fit, []).append(name)
    if not found:
        return None
    best = found[max(found)]
    return best[0] if best[0].startswith("timm/") else " or ".join(best[:_SHOWN])


def _of_timm(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the common architectures worth building, of which there are few, and their entries."""
    import timm

    for name in filter(timm.is_model, _candidates(state)):
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0, pretrained=False)
        yield f"timm/{name}", network.state_dict()


def _of_entries(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the encoders known by name, of networks that differ from timm's, and their entries."""
    projection = _projection(state)
    if projection is None:
        return
    width, patch_px = len(projection), projection.shape[-1]
    built: dict[str, Mapping[str, Tensor] | None] = {}  # several names have one network
    for plugin, entry in catalogue.entries().values():
        if entry.builder and entry.dim in (width, 2 * width):
            key = f"{plugin} {entry.model} {sorted(entry.builder.items())}"
            if key not in built:
                built[key] = _built(plugin, entry, patch_px)
            if (network := built[key]) is not None:
                yield entry.name, network


def _built(plugin: str, entry: Entry, patch_px: int) -> Mapping[str, Tensor] | None:
    """Return the entries of a network; None: it has other patches, or cannot be built alone."""
    trunk = registry.encoders.load(plugin).trunk
    if trunk is None:
        return None
    request = TrunkRequest(
        name=entry.name,
        model=entry.model,
        builder=entry.builder,
        patch_px=patch_px,
        img_px=_SIDE * patch_px,
        h=None,
        irpe=True,
    )
    try:
        with torch.device("meta"):
            network: Mapping[str, Tensor] = trunk(request).network(0.0).state_dict()
    except UsageError:
        return None
    return network


def _candidates(state: Mapping[str, Tensor]) -> Iterator[str]:
    for entry, names in _OTHERS.items():
        if any(key.endswith(entry) for key in state):
            yield from names
    projection = _projection(state)
    if projection is not None and len(projection) in _WIDTHS:
        stem = f"vit_{_WIDTHS[len(projection)]}_patch{projection.shape[-1]}"
        yield from (f"{stem}_{kind}" for kind in _VITS)


def _projection(state: Mapping[str, Tensor]) -> Tensor | None:
    """Return the weights (width, 3, patch, patch) that make tokens of patches, if there are."""
    found = next((value for key, value in state.items() if key.endswith(_PATCHES)), None)
    return found if found is not None and found.ndim == 4 else None
