"""Which network of a weight file to take: prefixes of wrappers, teachers, averages, students.

A training checkpoint is one flat list of names, `teacher.module.backbone.blocks.0.norm1.weight`.
What stands before a name that the model knows is a prefix; names with one prefix are a network.
Of several that fit, the one is taken that its authors use for features: a teacher or a running
mean before anything else, but the base encoder of MoCo and the online network of BYOL before
what follows them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cytofm_cli.errors import WeightsError

State = dict[str, Tensor]
Groups = dict[str, tuple[int, int]]
Rename = Callable[[str], str]

_FIRST: Final = {"teacher", "ema", "averaged", "swa"}
_LAST: Final = {"student", "momentum", "k", "key"}
# Where a trunk begins in a name, for files that hold no network of the wanted kind.
_TRUNK: Final = re.compile(
    r"(?:^|(?<=\.))(?:blocks|layers?\d*|stages|features|patch_embed|cls_token|pos_embed|embeddings"
    r"|encoder\.layers?|conv1|bn1|stem|conv_stem|norm|layernorm)(?:\.|$)"
)
# What wraps a part of a network, not the whole: FSDP and checkpointing each block, compile some.
_WRAPPED_PART: Final = re.compile(
    r"((?:^|\.)(?:\d+|patch_embed|norm|stem|layer\d)\.)"
    r"(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
)


@dataclass(frozen=True, kw_only=True)
class Picked:
    """One network of a file.

    Attributes:
        prefix: that its names had, with the last dot; "" without.
        others: prefixes of networks that would have fitted too.
        state: its entries, without the prefix.
        left: the file's other entries, under their whole names, but those of `others`.
    """

    prefix: str
    others: tuple[str, ...]
    state: State
    left: tuple[str, ...]


def pick(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    rename: Rename,
    *,
    where: str,
    key: str | None = None,
) -> Picked:
    """Take one network out of the entries of a file.

    Args:
        state: all entries of the file.
        wanted: the model's own entries.
        rename: gives a name without prefix as the model has it.
        where: the file, for messages.
        key: a part of the prefix to take, such as `student`; None: chosen as above.

    Raises:
        WeightsError: no network has this key; several fit and nothing tells which to use; an
            entry is there twice.
    """
    bare = {_WRAPPED_PART.sub(r"\1", name): value for name, value in state.items()}
    state = bare if len(bare) == len(state) else state
    groups = group_by_prefix(state, wanted, rename)
    fitting = _whole(groups, wanted)
    if key is not None:
        fitting = _with_key(fitting or list(groups), key, where)
    prefix = _best(fitting, state, where) if fitting else _largest(groups)
    others = tuple(other for other in _whole(groups, wanted) if other != prefix)
    inner = tuple(other for other in others if other.startswith(prefix))
    own = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not name.startswith(inner or "\0")
    }
    left = [n for n in state if not n.startswith(prefix) and not n.startswith(others or "\0")]
    for name in list(left):
        if prefix and fitting and rename(name) in wanted:  # bare names beside some wrappers
            if name in own:
                raise WeightsError(f"{where}: {name} is there twice, with and without {prefix}")
            own[name] = state[name]
            left.remove(name)
    return Picked(prefix=prefix, others=others, state=own, left=tuple(left))


def group_by_prefix(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rename: Rename
) -> Groups:
    """Count, for each prefix, the model's entries that it has: of the right shape, of any shape."""
    fitting: dict[str, set[str]] = defaultdict(set)
    named: dict[str, set[str]] = defaultdict(set)
    for name, value in state.items():
        start = 0
        while start >= 0:
            own = rename(name[start:])
            if own in wanted:
                named[name[:start]].add(own)
                shape, whole = tuple(value.shape), tuple(wanted[own].shape)
                # Hugging Face keeps query, key and value apart.
                if shape == whole or (shape[:1], *shape[1:]) == (_third(whole), *whole[1:]):
                    fitting[name[:start]].add(own)
                break
            start = name.find(".", start) + 1 or -1
    return {prefix: (len(fitting[prefix]), len(names)) for prefix, names in named.items()}


def _third(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // 3 for size in shape[:1] if size % 3 == 0)


def describe(state: Mapping[str, Tensor], groups: Groups, n_wanted: int) -> str:
    """Return what stands before the names of a file and how much of the model each prefix has."""
    sizes: Counter[str] = Counter()
    for name in state:
        trunk = _TRUNK.search(name)
        sizes[name[: trunk.start()] if trunk else name.partition(".")[0] + "."] += 1
    fit = {prefix: groups.get(prefix, (0, 0))[0] for prefix in sizes}
    return "; ".join(
        f"{prefix or 'no prefix'} ({size} entries, {fit[prefix]} of {n_wanted} fit)"
        for prefix, size in sizes.most_common(4)
    )


def _whole(groups: Groups, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of whole networks: about as much as the best, and half of the model."""
    best = max((n_fit for n_fit, _ in groups.values()), default=0)
    least = max(0.9 * best, len(wanted) / 2)
    return [prefix for prefix, (n_fit, _) in groups.items() if n_fit >= least]


def _largest(groups: Groups) -> str:
    return max(groups, key=lambda prefix: groups[prefix], default="")


def _with_key(prefixes: list[str], key: str, where: str) -> list[str]:
    sought = f".{key.strip('.')}."
    holding = [prefix for prefix in prefixes if sought in f".{prefix}"]
    exact = [prefix for prefix in holding if f".{prefix}" == sought]
    if not holding:
        names = ", ".join(prefix or "(without prefix)" for prefix in prefixes[:6])
        raise WeightsError(f"{where}: no network is called {key!r}.", hint=f"there are: {names}")
    return exact or holding


def _best(prefixes: list[str], state: Mapping[str, Tensor], where: str) -> str:
    ranks = {prefix: _rank(prefix, prefixes) for prefix in prefixes}
    lowest = min(ranks.values())
    first, *ties = [prefix for prefix in prefixes if ranks[prefix] == lowest]
    for other in ties:
        if not _equal(state, first, other):
            key = other.rstrip(".") or first.rstrip(".")
            raise WeightsError(
                f"{where}: holds several networks that fit ({first or 'without prefix'}, {other}).",
                hint=f"`cytofm embed --weights-key {key}` takes one",
            )
    return first


def _rank(prefix: str, prefixes: list[str]) -> int:
    """Return 0 for what is meant for use, 2 for what only serves training, 1 for anything else."""
    words = set(re.split(r"[._]", prefix))
    if "target" in words:  # BYOL keeps the online network, I-JEPA the target encoder
        return 2 if any("online" in re.split(r"[._]", other) for other in prefixes) else 0
    if words & _LAST:
        return 2
    return 0 if words & _FIRST else 1


def _equal(state: Mapping[str, Tensor], first: str, second: str) -> bool:
    names = [name.removeprefix(first) for name in state if name.startswith(first)]
    pairs = [(state[first + name], state.get(second + name)) for name in names]
    return all(right is not None and torch.equal(left, right) for left, right in pairs)
