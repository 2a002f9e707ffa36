"""A trained trunk as a file that `--encoder FILE` opens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from cytofm_cli.encoders import lora, weights
from cytofm_cli.encoders.base import PIXELS, EncoderSpec, Pooling
from cytofm_cli.encoders.pixel_statistics import N_STATISTICS, SCALES
from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig
from cytofm_cli.encoders.torch_encoder import pool
from cytofm_cli.encoders.weights import Updates
from cytofm_cli.errors import UsageError
from cytofm_cli.pretrain.backbone import Trunk, VitTrunk
from cytofm_cli.pretrain.base import Backbone

log = logging.getLogger(__name__)

_AT_A_TIME: Final = 64


def export(
    path: Path,
    backbone: Backbone,
    *,
    name: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    input_px: int,
    mpp: float | None,
    cell_um: float | None = None,
    licence: str = "not stated",
    pooling: Pooling = "cls",
    dtype: torch.dtype = torch.float16,
    state: Mapping[str, Tensor] | None = None,
    crops_BCHW: Tensor | None = None,
) -> EncoderSpec:
    """Write a trunk as an encoder: updates of low rank folded in, mask token left out.

    Args:
        path: ends in `.safetensors`; replaced atomically.
        backbone: made by `make_backbones`; it stays as it is.
        name: what the encoder is called in stores.
        mean: that the views were normalised with, RGB in 0 … 1.
        std: likewise.
        input_px: side of the image that the encoder is to see.
        mpp: µm/px of the tiles; None: no particular one.
        cell_um: side of the crops around nuclei that the views showed; None: they showed others.
        licence: of the weights.
        pooling: cls, or cls+mean (Vision Transformers with a class token), or these with
            statistics of the pixels (SR-ViT).
        dtype: of the stored weights; float32 where one is too large for it, with a warning.
        state: the backbone's state dict, where its own weights are sharded.
        crops_BCHW: uint8, of `input_px`: what the scales of tokens and pixels are measured on.

    Raises:
        UsageError: the trunk has no such pooling, or its weights are not finite.
    """
    if not isinstance(backbone, Trunk):
        raise UsageError(f"{type(backbone).__name__} is no trunk of cytofm.")
    pooling = pooling_of(backbone, pooling)
    tensors = _trunk_tensors(path, backbone, backbone.state_dict() if state is None else state)
    tensors = _narrowed(path, backbone, tensors, dtype)
    builder = _builder(backbone, input_px)
    if pooling == PIXELS:
        builder |= {"pixels": True}
        tensors |= _scales(tensors, builder, crops_BCHW, tuple(mean), tuple(std))
    triple = cast("Any", (tuple(mean), tuple(std)))
    spec = EncoderSpec(
        name=name,
        dim=backbone.dim * (1 if pooling not in ("cls+mean", PIXELS) else 2)
        + (N_STATISTICS if pooling == PIXELS else 0),
        input_px=input_px,
        mpp=mpp,
        cell_um=cell_um,
        mean=triple[0],
        std=triple[1],
        pooling=pooling,
        licence=licence,
    )
    weights.write_encoder(path, tensors, spec, arch=backbone.arch, config=builder)
    return spec


def export_updates(
    path: Path, backbone: Trunk, state: Mapping[str, Tensor], spec: EncoderSpec, updates: Updates
) -> None:
    """Write a trunk's updates of low rank, and what else of it is trained, without their base.

    Args:
        path: ends in `.safetensors`; replaced atomically.
        backbone: with updates.
        state: its state dict.
        spec: of the encoder that they and their base make, see `export`.
        updates: what they are.

    Raises:
        UsageError: one is not finite.
    """
    prefix = "trunk."
    own = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
    tensors = {key: x.float() for key, x in own.items() if not lora.rests(key)}
    _require_finite(path, tensors)
    builder = _builder(backbone, spec.input_px)
    weights.write_encoder(path, tensors, spec, arch=backbone.arch, config=builder, updates=updates)


def _builder(backbone: Trunk, input_px: int | None) -> dict[str, Any]:
    builder = dict(backbone.builder)
    if isinstance(backbone.trunk, SrVit):
        return builder | {"h": backbone.trunk.config.h}
    # Positions are resized on loading.
    return builder | ({"img_size": input_px} if isinstance(backbone, VitTrunk) else {})


def _require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that diverged.

    Raises:
        UsageError: one is not finite.
    """
    if broken := [key for key, x in tensors.items() if not bool(torch.isfinite(x).all())]:
        raise UsageError(
            f"{path}: weights are not finite: {broken[0]}.",
            hint="training diverged: a smaller --set lr, and --overwrite",
        )


def _trunk_tensors(path: Path, backbone: Trunk, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trunk's tensors without updates of low rank, by their names in the trunk.

    Raises:
        UsageError: one is not finite.
    """
    prefix = "trunk."
    plain = lora.plain_state(state, lora.scale_of(backbone))
    tensors = {k.removeprefix(prefix): x for k, x in plain.items() if k.startswith(prefix)}
    _require_finite(path, tensors)
    return tensors


def _narrowed(
    path: Path, backbone: Trunk, tensors: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the parameters in `dtype`, or all as they are where one is too large for it."""
    parameters = {name for name, _ in backbone.trunk.named_parameters()}
    # Buffers keep their type: a running variance may leave the range of float16.
    narrow = {key: x.to(dtype) if key in parameters else x for key, x in tensors.items()}
    if all(bool(torch.isfinite(x).all()) for x in narrow.values()):
        return narrow
    log.warning(
        "warning: %s: weights up to %.6g are more than %s holds: written in float32",
        path.name,
        max(float(x.abs().max()) for key, x in tensors.items() if key in parameters),
        str(dtype).removeprefix("torch."),
    )
    return tensors


def _scales(
    tensors: Mapping[str, Tensor],
    builder: Mapping[str, Any],
    crops_BCHW: Tensor | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Tensor]:
    """Return the entries of the layer that joins tokens and pixels, measured on some crops."""
    assert crops_BCHW is not None  # see `run._crops`
    network = SrVit(SrVitConfig.from_record(dict(builder))).eval()
    network.joined.normalised_with(mean, std)
    network.load_state_dict(tensors, strict=False)
    colour = network.joined.colour
    vectors = []
    with torch.inference_mode():
        for part in torch.split(crops_BCHW, _AT_A_TIME):
            x_BCHW = (part.float() / 255 - colour[0]) / colour[1]
            vectors.append(pool(network, x_BCHW, PIXELS))
    network.joined.balance(torch.cat(vectors))
    return {f"{SCALES}{name}": x for name, x in network.joined.state_dict().items()}


def pooling_of(backbone: Trunk, wanted: Pooling) -> Pooling:
    """Return how a trunk's tokens are pooled: as wanted, or its only way if it has no class token.

    Raises:
        UsageError: it has no class token to join with the mean.
    """
    own = _own_pooling(backbone)
    if wanted == PIXELS and not isinstance(backbone.trunk, SrVit):
        raise UsageError(
            f"{backbone.arch}: only an SR-ViT joins its tokens with statistics of pixels.",
            hint="--pooling cls+mean",
        )
    if wanted != "cls" and own != "cls":
        raise UsageError(
            f"{backbone.arch} has no class token to join with the mean.", hint="--pooling cls"
        )
    return wanted if own == "cls" else own


def _own_pooling(backbone: Trunk) -> Pooling:
    if not isinstance(backbone, VitTrunk):
        return "pool"
    return "cls" if backbone.trunk.cls_token is not None else "mean"
