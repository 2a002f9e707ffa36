"""The encoders known by name, and how a name or a file is traced to the plug-in that opens it.

What is known of one (architecture, normalisation, size, resize, resolution, pooling, licence of
its weights) is brought by its plug-in, as `Entry`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cytofm_cli import registry
from cytofm_cli.encoders.entries import Entry
from cytofm_cli.encoders.sidecar import NETWORK, SUFFIX, sidecar
from cytofm_cli.encoders.weights import (
    SUFFIXES,
    SelfDescription,
    holds_updates,
    read_description,
)
from cytofm_cli.errors import UsageError, WeightsError


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A name or file, traced to the plug-in that opens it.

    Attributes:
        weights: the file of weights, if there is one.
        updates: file of updates of low rank that are added to them.
    """

    name: str
    plugin: str
    model: str
    weights: Path | None
    builder: Mapping[str, Any]
    expects: Mapping[str, Any]
    updates: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `cytofm encoders`; None means that it depends, or that any will do."""

    name: str
    dim: int | None
    input_px: int | None
    mpp: float | None
    licence: str
    needs_weights: bool
    gated: bool
    source: str
    params_m: float | None
    note: str
    preparation: Mapping[str, Any]  # how images are prepared, as `EncoderSpec` has it


def entries() -> dict[str, tuple[str, Entry]]:
    """Return the plug-in and the entry of every name; cytofm's own plug-ins go first."""
    plugins, own = registry.encoders.usable(), registry.encoders.own()
    named: dict[str, tuple[str, Entry]] = {}
    for plugin in sorted(plugins, key=lambda name: (name not in own, name)):
        for entry in plugins[plugin].entries:
            named.setdefault(entry.name, (plugin, entry))
    return named


def describe() -> list[Row]:
    """List all encoders for `cytofm encoders`, without importing torch."""
    rows = [
        Row(
            name=entry.name,
            dim=entry.dim,
            input_px=entry.input_px,
            mpp=entry.mpp,
            licence=entry.licence,
            needs_weights=entry.needs_weights,
            gated=entry.gated,
            source=entry.source,
            params_m=entry.params_m,
            note=entry.note,
            preparation=_preparation(entry.expects()),
        )
        for _, entry in entries().values()
    ]
    return rows + [
        Row(
            name=f"{name}/{plugin.models}" if plugin.models else name,
            dim=plugin.expects.get("dim"),
            input_px=plugin.expects.get("input_px"),
            mpp=plugin.expects.get("mpp"),
            licence=plugin.expects.get("licence", "that of the weights"),
            needs_weights=plugin.needs_weights,
            gated=False,
            source=name,
            params_m=None,
            note="",
            preparation=_preparation(plugin.expects),
        )
        for name, plugin in registry.encoders.usable().items()
        if plugin.models or not plugin.entries
    ]


def _preparation(expects: Mapping[str, Any]) -> dict[str, Any]:
    names = ("resize_px", "cell_um", "mean", "std", "interpolation", "pooling")
    return {name: expects[name] for name in names if expects.get(name) is not None}


def needs_weights(name_or_file: str) -> bool:
    """Tell whether an encoder needs weights that the user passes; a file is its own."""
    named = entries().get(name_or_file)
    if named is not None:
        return named[1].needs_weights
    word = registry.encoders.key(name_or_file.partition("/")[0])
    plugin = None if _is_file_name(name_or_file) else registry.encoders.usable().get(word)
    return plugin is None or plugin.needs_weights


def resolve(name_or_file: str, *, weights: Path | None = None) -> Resolved:
    """Trace a name, or a file that names its own architecture, to its plug-in.

    What the file beside the weights states goes before what the catalogue or they themselves say.

    Raises:
        UsageError: nothing is called that.
        WeightsError: the file does not say what it is.
    """
    if _is_file_name(name_or_file):
        path = Path(name_or_file)
        if weights is not None and holds_updates(path):
            return _resolve_updates(path, weights)
        if weights is not None:
            raise UsageError(
                f"{name_or_file} is a weight file, and {weights} another one.",
                hint="name an encoder with --encoder, and its file with --weights",
            )
        return _resolve_file(path)
    owner, entry = entries().get(name_or_file, ("", None))
    if entry is not None and entry.shipped is not None:
        if weights is not None:
            raise UsageError(
                f"{entry.name} ships with its weights, and {weights} are others.",
                hint=f"--encoder {weights}",
            )
        return _resolve_file(entry.shipped)
    if entry is not None:
        return _with_sidecar(
            Resolved(
                name=entry.name,
                plugin=owner,
                model=entry.model,
                weights=weights,
                builder=entry.builder,
                expects=entry.expects(),
            )
        )
    word, _, model = name_or_file.partition("/")
    word = registry.encoders.key(word)
    plugin = registry.encoders.find(word) if word in registry.encoders.names() else None
    if plugin is None or bool(plugin.models) != bool(model):
        known = [row.name for row in describe()]
        close = difflib.get_close_matches(name_or_file, known, n=2)
        within = Path(name_or_file) / "encoder.safetensors"
        if within.is_file():  # the RUN of `cytofm pretrain` for the file in it
            close = [str(within)]
        raise UsageError(
            f"no encoder is called {name_or_file!r}.",
            hint=f"did you mean {' or '.join(close)}?" if close else "cytofm encoders lists them",
        )
    return _with_sidecar(
        Resolved(
            name=name_or_file,
            plugin=word,
            model=model,
            weights=weights,
            builder={},
            expects=plugin.expects,
        )
    )


def _with_sidecar(resolved: Resolved) -> Resolved:
    """Add what the file beside the weights states; with other layers, its length is unknown."""
    beside = {} if resolved.weights is None else sidecar(resolved.weights)
    if not beside:
        return resolved
    expects = {key: value for key, value in beside.items() if key not in NETWORK}
    return replace(
        resolved,
        builder={**resolved.builder, **beside.get("builder", {})},
        expects={**resolved.expects, **expects},
    )


def _is_file_name(name: str) -> bool:
    return Path(name).suffix in SUFFIXES or (name not in entries() and Path(name).is_file())


def _resolve_file(path: Path) -> Resolved:
    arch = sidecar(path).get("arch")
    if arch is not None:
        if _is_file_name(arch):
            raise WeightsError(f"{path}{SUFFIX}: arch names another file ({arch}).")
        return replace(resolve(arch, weights=path), name=path.stem)
    described = read_description(path)
    if described.updates is not None:
        raise WeightsError(
            f"{path}: holds updates of low rank, which need the weights that they were trained on.",
            hint=f"--encoder {path} --weights {described.updates.base}, or "
            f"{path}={described.updates.base} where several encoders are named",
        )
    return _described(path, described)


def _resolve_updates(path: Path, weights: Path) -> Resolved:
    whole = _described(weights, read_description(path))
    return replace(whole, updates=path)


def _described(path: Path, described: SelfDescription) -> Resolved:
    """Trace a description to its plug-in; `path` has the weights."""
    if _is_file_name(described.arch):
        raise UsageError(f"{path}: its architecture is another file ({described.arch}).")
    base = resolve(described.arch, weights=path)
    return _with_sidecar(
        Resolved(
            name=described.name,
            plugin=base.plugin,
            model=base.model,
            weights=path,
            builder={**base.builder, **described.config},
            expects={key: v for key, v in base.expects.items() if key == "dim"} | described.expects,
        )
    )
