"""`cytofm encoders`, `cytofm detectors` and `cytofm methods`: what can be chosen."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated

import typer

from cytofm_cli import registry
from cytofm_cli.cli.out import out
from cytofm_cli.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def encoders(*, as_json: Json = False) -> None:
    """List the encoders that can be loaded.

    Examples:

      cytofm encoders

      cytofm encoders --json
    """
    from cytofm_cli.encoders import catalogue

    out.json = as_json
    for row in catalogue.describe():
        record = dataclasses.asdict(row)
        facts = [f"{row.dim or '?'}-d", f"{row.input_px} px" if row.input_px else "any size"]
        facts += [f"{row.mpp:g} µm/px"] if row.mpp else []
        facts += ["needs --weights"] if row.needs_weights else []
        out.data(f"{row.name:<20} {', '.join(facts)}; {row.licence}", record)


def detectors(*, as_json: Json = False) -> None:
    """List the nuclei detectors.

    Examples:

      cytofm detectors

      cytofm detectors --json
    """
    _list(registry.detectors, as_json=as_json)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show the settings of this method instead.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the methods of `mil train` and `pretrain`, or the settings of one, for --set.

    Examples:

      cytofm methods

      cytofm methods dino
    """
    kinds = (registry.mil_methods, registry.pretrain_methods)
    if name is None:
        for kind in kinds:
            _list(kind, as_json=as_json)
        return
    out.json = as_json
    known = [kind for kind in kinds if name.replace("-", "_") in kind.names()]
    if not known:
        close = difflib.get_close_matches(name, [one for kind in kinds for one in kind.names()], 1)
        hint = f"did you mean {close[0]}?" if close else "`cytofm methods` lists them"
        raise UsageError(f"no method is called {name!r}.", hint=hint)
    config = known[0].load(name).config
    for field in dataclasses.fields(config) if config is not None else ():
        text = str(field.metadata.get("help", ""))
        record = {"name": field.name, "default": field.default, "help": text}
        out.data(f"{field.name:<20} {field.default!s:<10} {text}", record)


def _list(kind: registry.Registry, *, as_json: bool) -> None:
    out.json = as_json
    for name in kind.names():
        summary = kind.load(name).summary
        record = {"kind": kind.kind, "name": name, "summary": summary}
        out.data(f"{name:<14} {summary}", record)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (("encoders", encoders), ("detectors", detectors), ("methods", methods)):
        if name not in {command.name for command in app.registered_commands}:
            app.command(name)(function)
