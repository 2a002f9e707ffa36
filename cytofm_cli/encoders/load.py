"""Open an encoder by name, or from a file that names its own architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cytofm_cli import registry
from cytofm_cli.encoders.base import Encoder, EncoderRequest, Pooling
from cytofm_cli.encoders.catalogue import resolve


def load_encoder(
    name_or_file: str,
    *,
    weights: Path | None = None,
    device: str = "auto",
    download: bool = False,
    seed: int = 0,
    random_weights: bool = False,
    pooling: Pooling | None = None,
    input_px: int | None = None,
    resize_px: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    weights_key: str | None = None,
    builder: Mapping[str, Any] | None = None,
) -> Encoder:
    """Open an encoder by name, or from a file that `cytofm pretrain` wrote.

    Random weights must be asked for: with neither a file, nor `download`, nor
    `random_weights`, a network is an error. They also show in the name (`…-random0`), so that
    their vectors can never pass for real ones in a store. What `weights.pth.toml` beside a file
    states (see `sidecar`) goes before what the catalogue or the file says.

    Args:
        name_or_file: `handcrafted`, `sr-vit-tiny`, `timm/<name>`, a name of the catalogue, or a
            weight file that names its own architecture, or the `adapters.safetensors` of
            `pretrain --lora-rank`, with their base as `weights`.
        weights: local file with the weights.
        device: `auto` takes the GPU if there is one.
        download: fetch published weights (`timm/<name>` only).
        seed: of random weights.
        random_weights: take random weights, as a floor or for a test.
        pooling: how tokens become one vector, instead of the encoder's own way.
        input_px: side of the square that the model is to see; None: what the catalogue or the
            file says, else what the weights' absolute positions are laid out for.
        resize_px: side to which images are resized first, whose middle `input_px` is cut out;
            None: what is known, else `input_px`.
        mean: that the weights were trained with, RGB in [0, 1], instead of what is known.
        std: likewise.
        weights_key: a part of the prefix of the network to take, where the file holds several.
        builder: settings of the network, over those that are known: `{"init_values": 1e-5}`.

    Raises:
        UsageError: no such encoder, or an impossible combination.
        WeightsError: the file is missing, unsafe, or does not fit.
    """
    request = resolve(name_or_file, weights=weights)
    plugin = registry.encoders.load(request.plugin)
    stated = {"input_px": input_px, "resize_px": resize_px, "mean": mean, "std": std}
    encoder: Encoder = plugin.make(
        EncoderRequest(
            name=request.name,
            model=request.model,
            weights=request.weights,
            device=device,
            download=download,
            random_weights=random_weights,
            seed=seed,
            pooling=pooling,
            builder={**request.builder, **(builder or {})},
            expects=dict(request.expects),
            stated={key: value for key, value in stated.items() if value is not None},
            weights_key=weights_key,
        )
    )
    if request.updates is None:
        return encoder
    from cytofm_cli.encoders import lora

    merged: Encoder = lora.with_updates_of(encoder, request.updates)
    return merged


def load_untrained(
    name_or_file: str, *, device: str = "auto", seed: int = 0, input_px: int | None = None
) -> Encoder:
    """Build the network of an encoder with random weights: what its architecture alone gives.

    Args:
        name_or_file: as for `load_encoder`; of a file only what it says of itself is taken.
        device: `auto` takes the GPU if there is one.
        seed: of the weights.
        input_px: side of the square that the model is to see; None: as known of the encoder.

    Raises:
        UsageError: no such encoder, or one without weights.
    """
    request = resolve(name_or_file)
    encoder: Encoder = registry.encoders.load(request.plugin).make(
        EncoderRequest(
            name=request.name,
            model=request.model,
            device=device,
            random_weights=True,
            seed=seed,
            builder=dict(request.builder),
            expects=dict(request.expects),
            stated={} if input_px is None else {"input_px": input_px},
        )
    )
    return encoder
