"""SR-ViT: Vision Transformers with top-h attention and relative positions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cytofm_cli.encoders.base import EncoderRequest, EncoderSpec
from cytofm_cli.errors import UsageError
from cytofm_cli.registry import Plugin

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
    from cytofm_cli.encoders.catalogue import IMAGENET
    from cytofm_cli.encoders.torch_encoder import build, read_for

    if request.download:
        raise UsageError(
            f"no weights of {request.name!r} are published.", hint="pass --weights FILE"
        )
    config = sr_vit.SrVitConfig.from_record(request.builder)
    state = read_for(request)
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
    expects["dim"] = 2 * width if expects["pooling"] == "cls+mean" else width
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


PLUGIN = Plugin(make=make, summary="top-h attention with relative positions", needs=("timm",))
