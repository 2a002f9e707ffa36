"""Fit a state dict onto a timm model: other projects' names, positions, and nothing left out.

Known: timm; DINO and iBOT (same names); DINOv2 (blocks in chunks, registers, packed SwiGLU);
Hugging Face's ViT and Dinov2; each under any prefix (`networks`). What is renamed, dropped or
resized stands in the report; what is then missing or left over is an error.

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

from cytofm_cli.encoders import likeness, networks
from cytofm_cli.errors import WeightsError

State = dict[str, Tensor]

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
        dropped: entries of training heads and of layers beyond the last, left out on purpose.
        added: the model's own entries that the file may lack and lacked.
        notes: renamings, resizings and what else the file holds, one line each.
        network: prefix of the entries that were taken; "" if they have none.
        others: prefixes of other networks in the file that would have fitted.
        positions: how the grid of absolute positions was resized, e.g. "16x16 → 37x37".
    """

    n_loaded: int
    dropped: tuple[str, ...]
    added: tuple[str, ...]
    notes: tuple[str, ...]
    network: str = ""
    others: tuple[str, ...] = ()
    positions: str | None = None

    @property
    def choice(self) -> str | None:
        """Say which of several networks was taken; None: there was one."""
        if not self.others:
            return None
        names = " and ".join(_named(other) for other in self.others)
        key = self.others[0].rstrip(".")
        other_one = f"; --weights-key {key} takes another" if key else ""
        return f"took the network {_named(self.network)} and not {names}{other_one}"


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    where: str,
    may_lack: Collection[str] = (),
    key: str | None = None,
) -> LoadReport:
    """Load one network of `state` into `model`, strictly.

    Args:
        model: a timm model without classifier; may lie on the meta device, and then takes
            copies of the tensors over. Entries that begin as its `cut_off` says, if it has any,
            belong to layers that it goes without.
        state: all entries of the file, as `weights.read_state` gives them.
        where: the file, for messages.
        may_lack: names of the model's entries that the file need not have.
        key: which network of the file, see `networks.pick`; None: the one meant for use.

    Raises:
        WeightsError: an entry is missing, left over, of another shape, or not finite.
    """
    notes: list[str] = []
    wanted = model.state_dict()
    picked = networks.pick(
        state, wanted, lambda name: timm_name(name, wanted), where=where, key=key
    )
    renamed = _to_timm_names(picked.state, wanted, notes)
    cut_off = tuple(getattr(model, "cut_off", ()))
    dropped = tuple(
        key
        for key in renamed
        if key not in wanted and (_HEADS.match(key) or key.startswith(cut_off))
    )
    renamed = {key: value for key, value in renamed.items() if key not in dropped}
    heads, rest = _sort_left(picked)
    notes += _file_notes(picked, rest)
    positions = _fit_positions(renamed, model, wanted, notes)
    problems, n_fit = _problems(renamed, wanted, may_lack)
    if problems:
        raise _misfit(state, wanted, f"{where}: does not fit the model: {problems}", n_fit)
    broken = [key for key in renamed if not bool(torch.isfinite(renamed[key]).all())]
    if broken:
        raise WeightsError(f"{where}: {broken[0]} holds values that are not finite.")
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta:  # the model takes the tensors over; its own type, and no tie to the mapped file
        renamed = {key: value.to(wanted[key].dtype, copy=True) for key, value in renamed.items()}
    model.load_state_dict(renamed, strict=False, assign=on_meta)
    return LoadReport(
        n_loaded=len(renamed),
        dropped=dropped + heads,
        added=tuple(key for key in wanted if key not in renamed),
        notes=tuple(notes),
        network=picked.prefix,
        others=picked.others,
        positions=positions,
    )


def _problems(
    state: State, wanted: Mapping[str, Tensor], may_lack: Collection[str]
) -> tuple[str, int]:
    """Return what does not fit, "" if all does, and how many entries do."""
    missing = [key for key in wanted if key not in state and key not in may_lack]
    surplus = [key for key in state if key not in wanted]
    misfits = [
        f"{key} {tuple(state[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    said = [
        f"{len(keys)} {word} ({', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''})"
        for word, keys in (("missing", missing), ("unexpected", surplus), ("misfit", misfits))
        if keys
    ]
    n_fit = sum(key in state and state[key].shape == wanted[key].shape for key in wanted)
    return "; ".join(said), n_fit


def positions_side(
    model: nn.Module, state: Mapping[str, Tensor], *, where: str, key: str | None = None
) -> int:
    """Return the side of the square grid of a file's absolute positions, in patches; 0: none."""
    wanted = model.state_dict()
    picked = networks.pick(
        state, wanted, lambda name: timm_name(name, wanted), where=where, key=key
    )
    renamed = {timm_name(name, wanted): value for name, value in picked.state.items()}
    pos_1ND = renamed.get("pos_embed")
    if pos_1ND is None or "pos_embed" not in wanted or pos_1ND.ndim != 3:
        return 0
    n_prefix = int(getattr(model, "num_prefix_tokens", 0))
    # With or without positions of the class token, and of the registers.
    return next((side for n in (1, 0, n_prefix) if (side := _side(pos_1ND.shape[1] - n))), 0)


def _misfit(
    state: State | Mapping[str, Tensor], wanted: State, said: str, n_fit: int
) -> WeightsError:
    """Say what the file holds instead, and which architecture it looks like."""
    groups = networks.group_by_prefix(state, wanted, lambda name: timm_name(name, wanted))
    held = networks.describe(state, groups, len(wanted))
    guess = likeness.guess(state, timm_name)
    return WeightsError(
        f"{said}; {n_fit} of {len(wanted)} fit. The file has {held}.",
        hint=f"it looks like {guess}" if guess else "is it the right architecture?",
    )


def _named(prefix: str) -> str:
    return prefix.rstrip(".") or "without prefix"


def _sort_left(picked: networks.Picked) -> tuple[tuple[str, ...], Counter[str]]:
    """Tell the heads beside a network from what else its file holds, counted by first word."""
    heads: list[str] = []
    rest: Counter[str] = Counter()
    for name in picked.left:
        parents = picked.prefix.split(".")[:-1]
        words = name.split(".")
        while parents and words and parents[0] == words[0]:
            parents, words = parents[1:], words[1:]
        if _HEADS.match(".".join(words)):
            heads.append(name)
        else:
            rest[words[0]] += 1
    return tuple(heads), rest


def _file_notes(picked: networks.Picked, rest: Counter[str]) -> list[str]:
    notes = [f"prefix {picked.prefix} taken off"] if picked.prefix else []
    if rest:
        names = ", ".join(f"{name} ({count})" for name, count in rest.most_common(_SHOWN))
        notes.append(f"entries left out: {names}{', …' if len(rest) > _SHOWN else ''}")
    return notes


def timm_name(name: str, wanted: Collection[str]) -> str:
    """Return an entry's name as timm has it; a name that the model has itself stays."""
    if name in wanted:
        return name
    if name.startswith(_HF_STARTS):
        name = _HF_QKV.sub(r"\1.attn.qkv.\3", _hugging_face_name(name))
    for _, rename in _RENAMES:
        name = name if name in wanted else rename(name)
    return name


def _to_timm_names(state: State, wanted: Mapping[str, Tensor], notes: list[str]) -> State:
    if any(key.startswith("embeddings.") for key in state):
        state = _from_hugging_face(state)
        notes.append("renamed from Hugging Face's ViT or Dinov2")
    for what, rename in _RENAMES:
        # EfficientNet's own names look like blocks in chunks: what fits stays.
        renamed = {k if k in wanted else rename(k): value for k, value in state.items()}
        if renamed.keys() != state.keys():
            notes.append(f"renamed from DINOv2: {what}")
            state = renamed
    return state


def _swiglu(key: str) -> str:
    return key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")


_RENAMES: Final[tuple[tuple[str, Callable[[str], str]], ...]] = (
    ("blocks in chunks", lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key)),
    ("register_tokens", lambda key: "reg_token" if key == "register_tokens" else key),
    ("SwiGLU", _swiglu),
)
_HF_STARTS: Final = ("embeddings.", "encoder.layer.", "layernorm.")
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
        renamed[_hugging_face_name(old)] = value
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


def _hugging_face_name(name: str) -> str:
    for pattern, new in _HF_NAMES:
        name = re.sub(pattern, new, name)
    return name


def _fit_positions(
    state: State, model: nn.Module, wanted: Mapping[str, Tensor], notes: list[str]
) -> str | None:
    """Bring absolute positions onto the model's grid and prefix, in place; say how, if at all."""
    if "pos_embed" not in state or "pos_embed" not in wanted:
        return None
    pos_1ND, target = state["pos_embed"], wanted["pos_embed"]
    if pos_1ND.shape == target.shape or pos_1ND.ndim != 3 or target.ndim != 3:
        return None
    all_prefix = int(getattr(model, "num_prefix_tokens", 0))
    n_prefix = 0 if getattr(model, "no_embed_class", False) else all_prefix
    if n_prefix == 0 and all_prefix and "cls_token" in state and not _side(pos_1ND.shape[1]):
        # DINOv2 gives the class token a position; timm with registers adds it to the token.
        state["cls_token"] = state["cls_token"] + pos_1ND[:, :1]
        pos_1ND = pos_1ND[:, 1:]
        notes.append("position of the class token added to the token itself")
    old, new = _side(pos_1ND.shape[1] - n_prefix), _side(target.shape[1] - n_prefix)
    if old and new and old != new:
        pos_1ND = resize_positions(pos_1ND, (new, new), n_prefix=n_prefix)
        notes.append(f"positions resized from {old} × {old} to {new} × {new} (bicubic)")
    state["pos_embed"] = pos_1ND
    return f"{old}x{old} → {new}x{new}" if old and new and old != new else None


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
