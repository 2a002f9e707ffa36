"""Fit a state dict onto a timm model: other projects' names, positions, and nothing left out.

Known: timm; DINO and iBOT (same names); DINOv2 (blocks in chunks, registers, packed SwiGLU);
Hugging Face's ViT and Dinov2. What is renamed, dropped or resized stands in the report; what
is then missing or left over is an error.

Letters: N tokens, D channels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytofm_cli.errors import WeightsError

State = dict[str, Tensor]

_PREFIXES: Final = (
    *("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "teacher.", "student."),
    *("vit.", "dinov2.", "dinov2_with_registers."),
)
# What training leaves beside the trunk. Dropped only where the model has no such part.
_HEADS: Final = re.compile(
    r"(module\.)?(head|heads|head_dist|fc|classifier|dino_head|ibot_head|dino_loss|ibot_patch_loss"
    r"|projector|predictor|pooler|decoder|masked_embed|mask_token|prototypes)(\.|$)"
)
_SHOWN: Final = 4


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to the entries of a weight file.

    Attributes:
        n_loaded: entries that are now in the model.
        dropped: entries of training heads, left out on purpose.
        added: the model's own entries that the file may lack and lacked.
        notes: renamings and resizings, one line each.
    """

    n_loaded: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    notes: tuple[str, ...]


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    may_lack: Collection[str] = (),
) -> LoadReport:
    """Load `state` into `model`, strictly.

    Args:
        model: a timm model without classifier; may lie on the meta device, and then takes
            copies of the tensors over.
        state: entries as they are in the file.
        where: the file, for messages.
        may_lack: names of the model's entries that the file need not have.

    Raises:
        WeightsError: an entry is missing, left over, of another shape, or not finite.
    """
    notes: list[str] = []
    wanted = model.state_dict()
    found = _to_timm_names(dict(state), wanted, notes, where)
    dropped = tuple(key for key in found if key not in wanted and _HEADS.match(key))
    found = {key: value for key, value in found.items() if key not in dropped}
    _fit_positions(found, model, wanted, notes)
    missing = [key for key in wanted if key not in found and key not in may_lack]
    surplus = [key for key in found if key not in wanted]
    misfits = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {word} ({', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''})"
        for word, keys in (("missing", missing), ("unexpected", surplus), ("misfit", misfits))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{where}: does not fit the model: {'; '.join(problems)}; "
            f"{len(wanted) - len(missing) - len(misfits)} of {len(wanted)} fit.",
            hint="is it the right architecture?",
        )
    broken = [key for key in found if not bool(torch.isfinite(found[key]).all())]
    if broken:
        raise WeightsError(f"{where}: {broken[0]} holds values that are not finite.")
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:  # the model takes the tensors over; its own type, and no tie to the mapped file
        found = {key: value.to(wanted[key].dtype, copy=True) for key, value in found.items()}
    model.load_state_dict(found, strict=False, assign=on_meta)
    return LoadReport(
        n_loaded=len(found),
        dropped=dropped,
        added=tuple(key for key in wanted if key not in found),
        notes=tuple(notes),
    )


def _to_timm_names(
    state: State, wanted: Mapping[str, Tensor], notes: list[str], where: str
) -> State:
    state = _strip_prefixes(state, wanted, notes, where)
    if any(key.startswith("embeddings.") for key in state):
        state = _from_hugging_face(state)
        notes.append("renamed from Hugging Face's ViT or Dinov2")
    renames: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("blocks in chunks", lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)),
        ("register_tokens", lambda key: "reg_token" if key == "register_tokens" else key),
        ("SwiGLU", _swiglu),
    )
    for what, rename in renames:
        # EfficientNet's own names look like blocks in chunks: what fits stays.
        renamed = {k if k in wanted else rename(k): value for k, value in state.items()}
        if renamed.keys() != state.keys():
            notes.append(f"renamed from DINOv2: {what}")
            state = renamed
    return state


def _swiglu(key: str) -> str:
    return key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")


def _strip_prefixes(
    state: State, wanted: Mapping[str, Tensor], notes: list[str], where: str
) -> State:
    """Take off wrappers' prefixes, as long as most entries share one that the model lacks."""
    while True:
        counts = Counter(prefix for key in state for prefix in _PREFIXES if key.startswith(prefix))
        if not counts:
            return state
        prefix, n = counts.most_common(1)[0]
        layers = any(key.startswith("encoder.layer.") for key in state)
        own = any(key.startswith(prefix) for key in wanted)
        if n <= len(state) / 2 or own or (prefix == "encoder." and layers):
            return state
        stripped: State = {}
        for key, value in state.items():
            short = key.removeprefix(prefix)
            if short in stripped:
                raise WeightsError(f"{where}: {short} is there twice, with and without {prefix}")
            stripped[short] = value
        state = stripped
        notes.append(f"prefix {prefix} taken off")


_HF_NAMES: Final = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
)
_HF_QKV: Final = re.compile(r"^(.*)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


def _from_hugging_face(state: State) -> State:
    """Rename, and join query, key and value into timm's one matrix."""
    renamed: State = {}
    for old, value in state.items():
        key = old
        for pattern, new in _HF_NAMES:
            key = re.sub(pattern, new, key)
        renamed[key] = value
    for key in [key for key in renamed if key.endswith((".query.weight", ".query.bias"))]:
        match = _HF_QKV.match(key)
        if match is None:
            continue
        stem, _, kind = match.groups()
        parts = [
            renamed.pop(f"{stem}.attention.attention.{name}.{kind}", None)
            for name in ("query", "key", "value")
        ]
        renamed[f"{stem}.attn.qkv.{kind}"] = torch.cat([p for p in parts if p is not None])
    return renamed


def _fit_positions(
    found: State, model: nn.Module, wanted: Mapping[str, Tensor], notes: list[str]
) -> None:
    """Bring absolute positions onto the model's grid and prefix, in place."""
    if "pos_embed" not in found or "pos_embed" not in wanted:
        return
    pos_1ND, target = found["pos_embed"], wanted["pos_embed"]
    if pos_1ND.shape == target.shape or pos_1ND.ndim != 3 or target.ndim != 3:
        return
    all_prefix = int(getattr(model, "num_prefix_tokens", 0))
    n_prefix = 0 if getattr(model, "no_embed_class", False) else all_prefix
    if n_prefix == 0 and all_prefix and "cls_token" in found and not _side(pos_1ND.shape[1]):
        # DINOv2 gives the class token a position; timm with registers adds it to the token.
        found["cls_token"] = found["cls_token"] + pos_1ND[:, :1]
        pos_1ND = pos_1ND[:, 1:]
        notes.append("position of the class token added to the token itself")
    old, new = _side(pos_1ND.shape[1] - n_prefix), _side(target.shape[1] - n_prefix)
    if old and new and old != new:
        pos_1ND = resize_positions(pos_1ND, (new, new), n_prefix=n_prefix)
        notes.append(f"positions resized from {old} × {old} to {new} × {new} (bicubic)")
    found["pos_embed"] = pos_1ND


def _side(n: int) -> int:
    """Return the side of a square grid of `n` patches, 0 if it is none."""
    side = math.isqrt(max(n, 0))
    return side if side * side == n else 0


def resize_positions(pos_1ND: Tensor, grid_hw: tuple[int, int], *, n_prefix: int) -> Tensor:
    """Resize the absolute positions of a square grid: bicubic, antialiased, prefix untouched."""
    prefix, patches = pos_1ND[:, :n_prefix], pos_1ND[:, n_prefix:]
    side = _side(patches.shape[1])
    image_1DHW = patches.float().mT.reshape(1, -1, side, side)
    image_1DHW = functional.interpolate(
        image_1DHW, size=grid_hw, mode="bicubic", antialias=True, align_corners=False
    )
    resized = image_1DHW.permute(0, 2, 3, 1).flatten(1, 2).to(pos_1ND.dtype)
    return torch.cat([prefix, resized], dim=1)
