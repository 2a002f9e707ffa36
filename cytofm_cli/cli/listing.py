"""`cytofm encoders`, `cytofm detectors` and `cytofm methods`: what can be chosen."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from cytofm_cli import registry
from cytofm_cli.cli.out import out

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


def methods(*, as_json: Json = False) -> None:
    """List the MIL methods.

    Examples:

      cytofm methods

      cytofm methods --json
    """
    _list(registry.mil_methods, as_json=as_json)


def _list(kind: registry.Registry, *, as_json: bool) -> None:
    out.json = as_json
    for name in kind.names():
        summary = kind.load(name).summary
        out.data(f"{name:<14} {summary}", {"name": name, "summary": summary})


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (("encoders", encoders), ("detectors", detectors), ("methods", methods)):
        if name not in {command.name for command in app.registered_commands}:
            app.command(name)(function)
