"""A Vision Transformer as DINOv2 defines it, in float64, and its files as authors lay them out.

Oquab et al., TMLR 2024, and Darcet et al., ICLR 2024 (registers). Independent of timm: the
features of a file that cytofm loads must be those that this computes from the same numbers.

Letters: B images, N tokens, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What varies between the published networks, small enough for a test.

    Attributes:
        patch_px: side of a patch.
        registers: tokens besides the class token.
        swiglu: gated MLP instead of GELU.
        scale: of LayerScale at the start; None: no LayerScale.
    """

    patch_px: int = 14
    registers: int = 0
    swiglu: bool = False
    scale: float | None = 1e-5
    dim: int = 32
    depth: int = 4
    heads: int = 4
    img_px: int = 224


def random_state(shape: Shape, seed: int = 0) -> State:
    """Draw weights under DINOv2's plain names; every one matters to the features."""
    own = torch.Generator().manual_seed(seed)

    def draw(*size: int, like: float = 0.2) -> Tensor:
        return torch.randn(*size, generator=own) * like

    d, n = shape.dim, (shape.img_px // shape.patch_px) ** 2
    hidden = 2 * round(d * 4 * 2 / 3 / 2) if shape.swiglu else 4 * d
    state = {
        "cls_token": draw(1, 1, d),
        "pos_embed": draw(1, 1 + n, d),
        "patch_embed.proj.weight": draw(d, 3, shape.patch_px, shape.patch_px, like=0.05),
        "patch_embed.proj.bias": draw(d),
        "norm.weight": 1 + draw(d),
        "norm.bias": draw(d),
    }
    if shape.registers:
        state["register_tokens"] = draw(1, shape.registers, d)
    for i in range(shape.depth):
        block = {
            "norm1.weight": 1 + draw(d), "norm1.bias": draw(d),
            "attn.qkv.weight": draw(3 * d, d), "attn.qkv.bias": draw(3 * d),
            "attn.proj.weight": draw(d, d), "attn.proj.bias": draw(d),
            "norm2.weight": 1 + draw(d), "norm2.bias": draw(d),
        }  # fmt: skip
        first, second = ("w12", "w3") if shape.swiglu else ("fc1", "fc2")
        wide = 2 * hidden if shape.swiglu else hidden
        block |= {f"mlp.{first}.weight": draw(wide, d), f"mlp.{first}.bias": draw(wide)}
        block |= {f"mlp.{second}.weight": draw(d, hidden), f"mlp.{second}.bias": draw(d)}
        if shape.scale is not None:
            block |= {"ls1.gamma": 0.5 + draw(d), "ls2.gamma": 0.5 + draw(d)}
        state |= {f"blocks.{i}.{name}": value for name, value in block.items()}
    return state


def class_token(state: Mapping[str, Tensor], shape: Shape, x_BCHW: Tensor) -> Tensor:
    """Return the class token of normalised images after the last norm, float64 (B, D)."""
    s = {name: value.double() for name, value in state.items()}
    weight, bias = s["patch_embed.proj.weight"], s["patch_embed.proj.bias"]
    x = functional.conv2d(x_BCHW.double(), weight, bias, stride=shape.patch_px)
    x_BND = x.flatten(2).mT
    cls = s["cls_token"].expand(len(x_BND), -1, -1)
    x_BND = torch.cat([cls, x_BND], dim=1) + s["pos_embed"]
    if shape.registers:
        registers = s["register_tokens"].expand(len(x_BND), -1, -1)
        x_BND = torch.cat([x_BND[:, :1], registers, x_BND[:, 1:]], dim=1)
    for i in range(shape.depth):
        own = {n.removeprefix(f"blocks.{i}."): v for n, v in s.items()}
        one, two = own.get("ls1.gamma", 1.0), own.get("ls2.gamma", 1.0)
        x_BND = x_BND + one * _attention(own, shape, _norm(own, "norm1", x_BND))
        x_BND = x_BND + two * _mlp(own, shape, _norm(own, "norm2", x_BND))
    return _norm(s, "norm", x_BND)[:, 0]


def _norm(own: Mapping[str, Tensor], name: str, x_BND: Tensor) -> Tensor:
    weight, bias = own[f"{name}.weight"], own[f"{name}.bias"]
    return functional.layer_norm(x_BND, weight.shape, weight, bias, eps=1e-6)


def _attention(own: Mapping[str, Tensor], shape: Shape, x_BND: Tensor) -> Tensor:
    qkv = functional.linear(x_BND, own["attn.qkv.weight"], own["attn.qkv.bias"])
    q, k, v = qkv.unflatten(-1, (3, shape.heads, -1)).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / (shape.dim // shape.heads) ** 0.5).softmax(-1)
    joined = (weights @ v).transpose(1, 2).flatten(2)
    return functional.linear(joined, own["attn.proj.weight"], own["attn.proj.bias"])


def _mlp(own: Mapping[str, Tensor], shape: Shape, x_BND: Tensor) -> Tensor:
    if not shape.swiglu:
        x = functional.gelu(functional.linear(x_BND, own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
        return functional.linear(x, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
    x = functional.linear(x_BND, own["mlp.w12.weight"], own["mlp.w12.bias"])
    gate, value = x.chunk(2, dim=-1)
    return functional.linear(
        functional.silu(gate) * value, own["mlp.w3.weight"], own["mlp.w3.bias"]
    )


def as_timm(state: State) -> State:
    """Return timm's names (UniCAS, RedDino, Lunit)."""
    names = {"w12": "fc1", "w3": "fc2"}
    renamed = {}
    for name, value in state.items():
        words = [names.get(word, word) for word in name.split(".")]
        renamed[".".join(words)] = value
    return renamed


def as_chunks(state: State, size: int = 2) -> State:
    """Return DINOv2's names with the blocks in chunks, as FSDP left them (CROWN, Smart-CCS)."""
    renamed = {}
    for name, value in state.items():
        words = name.split(".")
        if words[0] == "blocks":
            words.insert(1, str(int(words[1]) // size))
        renamed[".".join(words)] = value
    return renamed | {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def as_teacher(state: State) -> dict[str, State]:
    """Return a training checkpoint of DINOv2 with its head beside the trunk (DinoBloom)."""
    trunk = {f"backbone.{name}": value for name, value in as_chunks(state).items()}
    head = {
        "dino_head.mlp.0.weight": torch.ones(4, 4),
        "dino_head.last_layer.weight_v": torch.ones(2),
    }
    return {"teacher": trunk | head}


def as_hugging_face(state: State) -> State:
    """Return the names of transformers' Dinov2WithRegisters (Hibou)."""
    plain = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens", "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    }  # fmt: skip
    inner = {
        "attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }  # fmt: skip
    renamed = {"embeddings.mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    for name, value in state.items():
        if name in plain:
            renamed[plain[name]] = value
            continue
        _, number, rest = name.split(".", 2)
        stem = f"encoder.layer.{number}."
        if rest.startswith("attn.qkv."):
            kind = rest.rpartition(".")[2]
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {f"{stem}attention.attention.{which}.{kind}": part for which, part in parts}
            continue
        for ours, theirs in inner.items():
            rest = rest.replace(ours, theirs)
        renamed[stem + rest] = value
    return renamed
