"""Read checkpoints of the heads' authors: their parameter names, our parts.

A conversion is a list of pieces: this official tensor is that slice of our tensor. The same
list read backwards takes our gradients apart for comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.mil.base import MilHead, make_head
from cytofm_cli.work.files import plain
from cytofm_cli.work.unpickle import load_pickle


@dataclass(frozen=True)
class Piece:
    """An official tensor and the rows of ours that it fills.

    Attributes:
        official: name in the official checkpoint.
        ours: name in our head.
        start: first row; None: the whole tensor.
        rows: how many rows.
    """

    official: str
    ours: str
    start: int | None = None
    rows: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of our tensor."""
        return tensor if self.start is None else tensor[self.start : self.start + self.rows]


def pieces(method: str, head: MilHead, official: Mapping[str, Tensor]) -> list[Piece]:
    """List how an official checkpoint of this head maps onto ours.

    Raises:
        UsageError: there is no conversion for the method.
    """
    makers = {
        "abmil": _abmil,
        "clam_sb": _clam,
        "clam_mb": _clam,
        "dsmil": _dsmil,
        "transmil": _transmil,
        "dtfd": _dtfd,
        "less": _less,
    }
    if method not in makers:
        raise UsageError(f"no official checkpoints of {method!r} are known.")
    return list(makers[method](dict(head.named_parameters()), official))


def load_official(head: MilHead, method: str, official: Mapping[str, Tensor]) -> None:
    """Fill a head with official weights, strictly.

    Raises:
        WeightsError: a tensor is missing, left over, or of another shape.
    """
    ours = dict(head.named_parameters())
    parts = pieces(method, head, official)
    filled = dict.fromkeys(ours, 0)
    with torch.no_grad():
        for piece in parts:
            source, target = official.get(piece.official), piece.of(ours[piece.ours])
            if source is None:
                raise WeightsError(f"the checkpoint lacks {piece.official}: not one of {method}.")
            if source.numel() != target.numel() or source.shape[0] != target.shape[0]:
                raise WeightsError(
                    f"{piece.official} has shape {tuple(source.shape)}, {method} here needs "
                    f"{tuple(target.shape)}: other width or number of classes."
                )
            target.copy_(source.to(torch.float32).reshape(target.shape))
            filled[piece.ours] += target.numel()
    unused = set(official) - {piece.official for piece in parts}
    partial = [name for name, count in filled.items() if count != ours[name].numel()]
    if unused or partial:
        raise WeightsError(
            f"not a checkpoint of {method}: "
            f"left over {sorted(unused)[:3]}, not filled {sorted(partial)[:3]}."
        )


def read_official(path: Path, method: str) -> tuple[MilHead, dict[str, Any]]:
    """Build a head from the file of an official CLAM or TransMIL checkpoint.

    Args:
        path: weights-only pickle or safetensors; nothing in it is executed.
        method: `clam_sb`, `clam_mb` or `transmil`.

    Returns:
        head in evaluation mode, and its settings.

    Raises:
        WeightsError: unreadable, or of another head.
    """
    state = _tensors(path)
    # Lightning and DataParallel wrap the model; some CLAM forks save the loss as well.
    for prefix in ("model.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    state = {n: v for n, v in state.items() if not n.startswith(("instance_loss_fn", "loss"))}
    try:
        n_features, n_classes, settings = _settings(method, state)
    except KeyError as error:
        raise WeightsError(f"{path}: lacks {error}: not a checkpoint of {method}.") from error
    head, _ = make_head(method, n_features, n_classes, settings)
    load_official(head, method, state)
    return head.eval(), settings


def _settings(method: str, state: Mapping[str, Tensor]) -> tuple[int, int, dict[str, Any]]:
    """Read widths and classes off the shapes."""
    if method in ("clam_sb", "clam_mb"):
        first = state["attention_net.0.weight"]
        gate = state[f"attention_net.{_clam_gate(state)}.attention_a.0.weight"]
        classes = sum(
            name.startswith("instance_classifiers.") and name.endswith("weight") for name in state
        )
        settings = {"hidden": first.shape[0], "attention": gate.shape[0], "overlap": True}
        return first.shape[1], classes, settings
    if method == "transmil":
        width, n_features = state["_fc1.0.weight"].shape
        return n_features, state["_fc2.weight"].shape[0], {"width": width}
    raise UsageError(f"no official checkpoint files of {method!r} are known.")


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(plain(path))
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: not a readable safetensors file ({error}).") from error
    content = load_pickle(
        path,
        kind=WeightsError,
        hint="save the state_dict alone: torch.save(model.state_dict(), path)",
    )
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path}: holds no state_dict.")
    return content


def _both(official: str, ours: str, start: int | None = None, rows: int = 0) -> Iterator[Piece]:
    for kind in ("weight", "bias"):
        yield Piece(f"{official}.{kind}", f"{ours}.{kind}", start, rows)


def _gate(v: str, u: str, ours: str, width: int) -> Iterator[Piece]:
    yield from _both(v, f"{ours}.hidden", 0, width)
    yield from _both(u, f"{ours}.hidden", width, width)


def _abmil(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    yield from _both("feature_extractor_part2.0", "project.0")
    if "attention_w.weight" in official:
        width = ours["attention.score.weight"].shape[1]
        yield from _gate("attention_V.0", "attention_U.0", "attention", width)
        yield from _both("attention_w", "attention.score")
    else:
        yield from _both("attention.0", "attention.hidden")
        yield from _both("attention.2", "attention.score")
    yield from _both("classifier.0", "classifier")


def _clam_gate(official: Mapping[str, Tensor]) -> int:
    # With dropout (all current code) the gate is the fourth module, without it the third.
    return 3 if "attention_net.3.attention_a.0.weight" in official else 2


def _clam(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    gate = f"attention_net.{_clam_gate(official)}"
    width = ours["attention.score.weight"].shape[1]
    yield from _both("attention_net.0", "project.0")
    yield from _gate(f"{gate}.attention_a.0", f"{gate}.attention_b.0", "attention", width)
    yield from _both(f"{gate}.attention_c", "attention.score")
    n_classes = len(ours["classifier.bias"])
    if "classifiers.weight" in official:
        yield from _both("classifiers", "classifier")
    else:
        for c in range(n_classes):
            yield from _both(f"classifiers.{c}", "classifier", c, 1)
    for c in range(n_classes):
        yield from _both(f"instance_classifiers.{c}", f"instance.{c}")


def _dsmil(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    yield from _both("i_classifier.fc.0", "instance")
    if "query.2.weight" in ours:
        yield from _both("b_classifier.q.0", "query.0")
        yield from _both("b_classifier.q.2", "query.2")
    else:
        yield from _both("b_classifier.q", "query")
    yield from _both("b_classifier.fcc", "bag")


def _transmil(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    yield from _both("_fc1.0", "project.0")
    yield Piece("cls_token", "class_token")
    for layer in ("layer1", "layer2"):
        yield from _both(f"{layer}.norm", f"{layer}.norm")
        yield Piece(f"{layer}.attn.to_qkv.weight", f"{layer}.attention.qkv.weight")
        yield from _both(f"{layer}.attn.to_out.0", f"{layer}.attention.out.0")
        yield Piece(f"{layer}.attn.res_conv.weight", f"{layer}.attention.residual.weight")
    for name, conv in (("proj", "conv7"), ("proj1", "conv5"), ("proj2", "conv3")):
        yield from _both(f"pos_layer.{name}", f"position.{conv}")
    yield from _both("norm", "norm")
    yield from _both("_fc2", "classifier")


def _dtfd(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    width = ours["attention.score.weight"].shape[1]
    yield Piece("dimReduction.fc1.weight", "project.0.weight")
    for prefix, tier in (("", ""), ("attCls.", "2")):
        v, u = (f"{prefix}attention.attention_{half}.0" for half in "VU")
        yield from _gate(v, u, f"attention{tier}", width)
        yield from _both(f"{prefix}attention.attention_weights", f"attention{tier}.score")
        yield from _both(f"{prefix}classifier.fc", f"classifier{tier}")


def _less(ours: Mapping[str, Tensor], official: Mapping[str, Tensor]) -> Iterator[Piece]:
    rules = (
        (r"cls_token\.", "class_tokens."),
        (r"^norm\.", "norms."),
        (r"^head1\.", "heads."),
        (r"^(blocks\.\d+)\.blocks\.", r"\1.layers."),
        (r"\.mlp\.", "."),
        (r"\.revert_projs\.", ".back."),
        (r"\.projs\.", ".there."),
        (r"\.fusion\.(\d)\.norm1\.", r".cross.\1.norm."),
        (r"\.fusion\.(\d)\.attn\.w([qkv])\.", r".cross.\1.\2."),
        (r"\.fusion\.(\d)\.attn\.proj\.", r".cross.\1.proj."),
    )
    for name in official:
        renamed = name
        for pattern, into in rules:
            renamed = re.sub(pattern, into, renamed)
        if renamed in ours:
            yield Piece(name, renamed)
