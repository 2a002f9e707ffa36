"""SR-ViT: Vision Transformers with top-h attention and relative positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from cytofm_cli.encoders.base import (
    PIXELS,
    Blueprint,
    EncoderRequest,
    EncoderSpec,
    Pooling,
    TrunkRequest,
    other_patches,
)
from cytofm_cli.encoders.entries import IMAGENET, SHIPPED, Entry
from cytofm_cli.errors import UsageError
from cytofm_cli.registry import EncoderPlugin, samples

if TYPE_CHECKING:
    from cytofm_cli.encoders.torch_encoder import TorchEncoder


def make(request: EncoderRequest) -> TorchEncoder:
    """Build the network and load its weights; those of a plain ViT fit too.

    Raises:
        UsageError: impossible settings, or a download, of which there is none.
        WeightsError: no weights, or they do not fit.
    """
    import torch

    from cytofm_cli.encoders import assumptions, sr_vit
    from cytofm_cli.encoders.pixel_statistics import SCALES
    from cytofm_cli.encoders.torch_encoder import build, read_for

    if request.download:
        raise UsageError(
            f"no weights of {request.name!r} are published.", hint="pass --weights FILE"
        )
    config = sr_vit.SrVitConfig.from_record(request.builder)
    state = read_for(request)
    if state is not None and any(key.startswith(SCALES) for key in state):
        config = replace(config, pixels=True)  # also where the file is asked for by arch
    with torch.device("meta"):
        request = assumptions.with_positions(request, state, sr_vit.SrVit(config))
    usual = {
        "input_px": config.img_px,
        "mean": IMAGENET[0],
        "std": IMAGENET[1],
        "interpolation": "bicubic",
        "pooling": "cls",
    }
    expects = assumptions.settle(request, usual)
    if "img_px" not in request.builder or "input_px" in request.stated:
        config = replace(config, img_px=expects["input_px"])
    width = sr_vit.SIZES[config.size][0]
    expects["dim"] = _dim(width, expects["pooling"], config.pixels)
    spec = EncoderSpec(**expects, name=request.name)
    if spec.input_px is not None and spec.input_px % config.patch_px:
        raise UsageError(f"{spec.input_px} px cannot be cut into patches of {config.patch_px} px.")
    return build(
        request,
        lambda: sr_vit.SrVit(config),
        spec,
        state=state,
        may_lack=sr_vit.relative_keys,
    )


def _dim(width: int, pooling: Pooling, has_pixels: bool) -> int:
    """Return the length of the pooled vector.

    Raises:
        UsageError: statistics of pixels are wanted, and the file has no scales for them.
    """
    from cytofm_cli.encoders.pixel_statistics import N_STATISTICS

    if pooling == PIXELS and not has_pixels:
        raise UsageError(
            f"pooling {PIXELS}: the weights were not written with it.",
            hint=f"cytofm pretrain --pooling {PIXELS} writes such",
        )
    return {PIXELS: 2 * width + N_STATISTICS, "cls+mean": 2 * width}.get(pooling, width)


def trunk(request: TrunkRequest) -> Blueprint:
    """Return how the network is built that a pretraining run trains.

    Raises:
        UsageError: the name says other patches than the views'.
    """
    from cytofm_cli.encoders.sr_vit import SrVit, SrVitConfig

    size, own_px = request.builder["size"], request.builder["patch_px"]
    if request.name != f"sr-vit-{size}" and own_px != request.patch_px:  # its name says the patch
        raise other_patches(request.name, own_px, request.patch_px)
    plan = SrVitConfig(
        size=size,
        patch_px=request.patch_px,
        img_px=request.img_px,
        h=request.h,
        irpe=request.irpe,
    )
    return Blueprint(
        arch=request.name,
        builder=plan.to_record(),
        is_vit=True,
        network=lambda rate: SrVit(replace(plan, drop_path=rate)),
    )


def _entries() -> Iterable[Entry]:
    yield Entry(
        name="cytofm-tiny",
        model="tiny",
        dim=384,
        input_px=64,
        mpp=None,
        pooling="cls+mean",
        licence="Apache-2.0",
        source="ships with cytofm; for single cells",
        needs_weights=False,
        shipped=SHIPPED / "cytofm-tiny.safetensors",
    )
    yield Entry(
        name="cytofm-tiny-2",
        model="tiny",
        dim=888,
        input_px=64,
        mpp=None,
        pooling=PIXELS,
        licence="Apache-2.0",
        source="ships with cytofm; for single cells: tokens and statistics of the pixels",
        needs_weights=False,
        shipped=SHIPPED / "cytofm-tiny-2.safetensors",
    )
    yield Entry(
        name="sr-vit-nano",
        model="nano",
        dim=128,
        builder={"size": "nano", "patch_px": 8, "img_px": 64},
        input_px=64,
        mpp=None,
        licence="that of the weights",
        source="cytofm pretrain; for single cells",
        any_weights=True,
        views={"patch_px": 8, "global_px": 64, "local_px": 32},
    )
    for size, dim in (("tiny", 192), ("small", 384), ("base", 768)):
        for patch_px, suffix in ((16, ""), (14, "-p14")):
            yield Entry(
                name=f"sr-vit-{size}{suffix}",
                model=size,
                dim=dim,
                builder={"size": size, "patch_px": patch_px},
                mpp=None,
                licence="that of the weights",
                source="cytofm pretrain",
                any_weights=True,
            )


PLUGIN = EncoderPlugin(
    make=make,
    summary="top-h attention with relative positions",
    needs=("timm",),
    entries=tuple(_entries()),
    trunk=trunk,
    sample=samples({"name_or_file": "sr-vit-tiny", "random_weights": True}),
)
