"""Any network of timm, with a local weight file or, if asked for, its published weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cytofm_cli.encoders import assumptions, weights
from cytofm_cli.encoders.base import (
    PIXELS,
    Blueprint,
    EncoderRequest,
    EncoderSpec,
    Pooling,
    TrunkRequest,
    other_patches,
)
from cytofm_cli.encoders.published import PUBLISHED
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.registry import EncoderPlugin, samples

if TYPE_CHECKING:
    from cytofm_cli.encoders.torch_encoder import TorchEncoder

# A weight file may set these and nothing else: others of timm's could fetch or open files.
_BUILDER_KEYS = frozenset(
    "img_size patch_size embed_dim depth num_heads mlp_ratio init_values reg_tokens "
    "no_embed_class qkv_bias qk_norm pre_norm mlp_layer act_layer dynamic_img_size".split()
)

_LAST_STAGE = "last_stage"  # ours: of a ResNet's four, what comes after it is left out


def make(request: EncoderRequest) -> TorchEncoder:
    """Build a network of timm without its classifier and load its weights.

    Raises:
        UsageError: timm has no such network, or cannot build it this way.
        WeightsError: no weights, they do not fit, or the download failed.
    """
    import timm

    from cytofm_cli.encoders.torch_encoder import TorchEncoder, build, read_for
    from cytofm_cli.work.device import find_device

    require_model(request.model)
    if not request.download:
        state = read_for(request)
        request = assumptions.with_positions(request, state, network_outline(request))
        spec = _spec(request, network_outline(request))
        return build(request, lambda: _network(request), spec, state=state)
    arguments = network_arguments(request)
    spec = _spec(request, network_outline(request))
    if request.weights is not None or request.random_weights or request.builder:
        hint = f"download it from {request.name}'s source and pass --weights FILE"
        raise UsageError("a download goes with a plain timm/<name> only.", hint=hint)
    try:
        model = timm.create_model(request.model, **arguments | {"pretrained": True})
    except Exception as error:  # the hub, its cache and the network can each fail in their own way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{request.name}: its weights could not be fetched ({reason}).",
            hint="fetch them elsewhere and pass --weights FILE",
        ) from error
    spec = replace(spec, weights_sha256=weights.state_sha256(model.state_dict()))
    return TorchEncoder(model, spec, find_device(request.device))


def require_model(name: str) -> None:
    """Refuse a network that timm does not have.

    Raises:
        UsageError: likely ones are named.
    """
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=2)
        raise UsageError(
            f"timm has no model {name!r}.",
            hint=f"did you mean {' or '.join(f'timm/{model}' for model in close)}?"
            if close
            else "timm.list_models() lists them",
        )


def network_arguments(request: EncoderRequest) -> dict[str, Any]:
    """Return the arguments for `timm.create_model`."""
    import torch
    from timm.layers import SwiGLUPacked

    unknown = set(request.builder) - _BUILDER_KEYS - {_LAST_STAGE}
    if unknown:
        raise UsageError(f"{request.name}: timm networks take no setting {sorted(unknown)[0]!r}.")
    words = {"swiglu_packed": SwiGLUPacked, "silu": torch.nn.SiLU, "gelu": torch.nn.GELU}
    arguments = {key: value for key, value in request.builder.items() if key != _LAST_STAGE}
    for key in ("mlp_layer", "act_layer"):
        if key in arguments:
            if arguments[key] not in words:
                raise UsageError(f"{request.name}: unknown {key} {arguments[key]!r}.")
            arguments[key] = words[arguments[key]]
    if _is_vit(request.model):
        known = {"img_size": request.expects.get("input_px")} | arguments
        arguments["img_size"] = request.stated.get("input_px", known["img_size"])
    if arguments.get("img_size") is None:
        arguments.pop("img_size", None)
    return arguments | {"num_classes": 0, "pretrained": False}


def _network(request: EncoderRequest) -> Any:
    """Build the network; of a ResNet whose later stages are not wanted, without these.

    What is left of it says with `cut_off` which entries a weight file may have beyond it.
    """
    import timm
    from timm.models.resnet import ResNet
    from torch import nn

    model = timm.create_model(request.model, **network_arguments(request))
    last = request.builder.get(_LAST_STAGE)
    if last is None:
        return model
    if not isinstance(model, ResNet) or last not in (1, 2, 3):
        raise UsageError(f"{request.name}: {_LAST_STAGE} is 1, 2 or 3, of a ResNet.")
    for stage in range(last + 1, 5):
        setattr(model, f"layer{stage}", nn.Identity())
    model.num_features = model.head_hidden_size = model.feature_info[last]["num_chs"]
    model.cut_off = tuple(f"layer{stage}." for stage in range(last + 1, 5))
    return model


def _is_vit(name: str) -> bool:
    return name.startswith(("vit_", "deit", "eva", "beit"))


def network_outline(request: EncoderRequest) -> Any:
    """Build the network without memory for its weights, to learn its shape.

    Raises:
        UsageError: the settings do not make a network.
    """
    import torch

    try:
        with torch.device("meta"):
            return _network(request)
    except UsageError:
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(f"{request.name}: timm cannot build it ({error}).") from error


def _spec(request: EncoderRequest, outline: Any) -> EncoderSpec:
    """Combine what timm says about a network with what is known beforehand.

    timm's cropping of the borders (`crop_pct`) is left out: a tile is seen whole.
    """
    stated: Mapping[str, Any] = outline.pretrained_cfg
    size = stated.get("test_input_size") or stated["input_size"]
    pooling = request.pooling or request.expects.get("pooling") or _own_pooling(outline)
    n_tokens_pooled = 2 if pooling == "cls+mean" else 1
    usual = {key: stated[key] for key in ("mean", "std", "interpolation")} | {"input_px": size[-1]}
    known = assumptions.settle(request, usual)
    if request.download:  # what timm says is said of these very weights
        known["licence"] = stated.get("license") or "unknown"
    width = outline.num_features
    if pooling == "pool":  # MobileNet's kind has one more layer behind its pooling
        width = getattr(outline, "head_hidden_size", None) or width
    known |= {"pooling": pooling, "dim": width * n_tokens_pooled}
    if pooling == PIXELS:
        raise UsageError(f"{request.name}: only an SR-ViT joins its tokens with pixels.")
    if pooling in ("cls", "cls+mean", "mean") and not hasattr(outline, "num_prefix_tokens"):
        raise UsageError(f"{request.name} has no tokens: pooling {pooling!r} is impossible.")
    if pooling in ("cls", "cls+mean") and getattr(outline, "cls_token", None) is None:
        raise UsageError(f"{request.name} has no class token: pooling {pooling!r} is impossible.")
    patch_px = getattr(getattr(outline, "patch_embed", None), "patch_size", (1,))[0]
    if known["input_px"] % patch_px:
        fitting = max(1, round(known["input_px"] / patch_px)) * patch_px
        raise UsageError(
            f"{known['input_px']} px cannot be cut into patches of {patch_px} px.",
            hint=f"`cytofm embed --input-px {fitting}`",
        )
    if known["interpolation"] not in ("bicubic", "bilinear"):
        known["interpolation"] = "bicubic"
    return EncoderSpec(name=request.name, **known)


def _own_pooling(outline: Any) -> Pooling:
    """Return the class token where there is one (explicitly), else the network's own pooling."""
    has_class_token = getattr(outline, "cls_token", None) is not None
    tokens = getattr(outline, "global_pool", "") in ("token", "avg", "")
    return "cls" if has_class_token and tokens else "pool"


def trunk(request: TrunkRequest) -> Blueprint:
    """Return how the network is built that a pretraining run trains.

    Raises:
        UsageError: timm has no such network, it has other patches, or patches without being a
            plain Vision Transformer.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    require_model(request.model)
    name, builder = request.model, dict(request.builder)
    plain = EncoderRequest(name=request.name, model=name, builder=builder)
    arguments, outline = network_arguments(plain), network_outline(plain)
    is_vit = isinstance(outline, VisionTransformer)
    if is_vit:
        own_px = int(outline.patch_embed.feat_ratio())
        if request.patch_px % own_px:
            raise other_patches(name, own_px, request.patch_px)
        builder |= {"img_size": request.img_px}
        arguments |= {"img_size": request.img_px, "dynamic_img_size": True}
    elif hasattr(outline, "patch_embed") or hasattr(outline, "num_prefix_tokens"):
        raise UsageError(
            f"{name}: of networks with patches, only plain Vision Transformers are pretrained.",
            hint="timm.list_models('vit_*') lists them",
        )

    def network(rate: float) -> Any:
        return timm.create_model(name, **arguments, **({"drop_path_rate": rate} if rate else {}))

    return Blueprint(arch=request.name, builder=builder, is_vit=is_vit, network=network)


_VIT_TINY = {"name_or_file": "timm/vit_tiny_patch16_224", "random_weights": True}
PLUGIN = EncoderPlugin(
    make=make,
    summary="any network of timm: timm/<name>",
    needs=("timm",),
    entries=PUBLISHED,
    models="<name>",
    require=require_model,
    trunk=trunk,
    sample=samples(
        _VIT_TINY,
        _VIT_TINY | {"pooling": "cls+mean"},
        _VIT_TINY | {"name_or_file": "timm/resnet18"},
    ),
)
