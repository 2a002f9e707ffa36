"""`cytofm encoders`, `cytofm detectors` and `cytofm methods`: what can be chosen."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any

import typer

from cytofm_cli import registry
from cytofm_cli.cli.options import register as register_command
from cytofm_cli.cli.out import out
from cytofm_cli.config import kinds_of
from cytofm_cli.errors import UsageError
from cytofm_cli.registry import Available, Registry

_COMMAND = {"MIL method": "mil train", "pretraining method": "pretrain"}


def encoders(
    name: Annotated[str | None, typer.Argument(help="Show all that is known of this one.")] = None,
) -> None:
    """List the encoders that can be loaded, or show one.

    Examples:

      cytofm encoders

      cytofm encoders uni

      cytofm encoders --json
    """
    from cytofm_cli.encoders import catalogue

    rows = {row.name: row for row in catalogue.describe()}
    if name is not None:
        _refuse_unknown("encoder", name, list(rows))
        record = dataclasses.asdict(rows[name])
        record |= record.pop("preparation")
        for key, value in record.items():
            _pair(key, value)
        if out.json:
            out.data("", record)
        return
    for row in rows.values():
        record = dataclasses.asdict(row)
        record |= record.pop("preparation")
        facts = [f"{row.dim or '?'}-d", f"{row.input_px} px" if row.input_px else "any size"]
        facts += [f"{row.mpp:g} µm/px"] if row.mpp else []
        facts += ["needs --weights"] if row.needs_weights else []
        out.data(f"{row.name:<20} {', '.join(facts)}; {row.licence}", record)


def detectors(
    name: Annotated[
        str | None, typer.Argument(help="Show the settings of this detector instead.")
    ] = None,
) -> None:
    """List the nuclei detectors, or the settings of one, for `detect --set`.

    Examples:

      cytofm detectors

      cytofm detectors classical
    """
    _list_or_show((registry.detectors,), name)


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Show the settings of this method instead.")
    ] = None,
) -> None:
    """List the methods of `mil train` and `pretrain`, or the settings of one, for --set.

    Examples:

      cytofm methods

      cytofm methods dino
    """
    kinds = (registry.mil_methods, registry.pretrain_methods)
    _list_or_show(kinds, name)


def _list_or_show(kinds: tuple[Registry[Any], ...], name: str | None) -> None:
    if name is not None:
        _show(kinds, name)
        return
    for kind in kinds:
        serves = f"{_COMMAND[kind.kind]:<10} " if len(kinds) > 1 else ""
        for row in kind.available():
            record = {"kind": kind.kind, **dataclasses.asdict(row), "available": _usable(row)}
            out.data(f"{row.name:<14} {serves}{row.summary}{_mark(row)}", record)


def _usable(row: Available) -> bool:
    return not (row.missing or row.broken)


def _mark(row: Available) -> str:
    if row.missing:
        return f"  (not installed: {row.missing})"
    return f"  (broken: {row.broken})" if row.broken else ""


def _show(kinds: tuple[Registry[Any], ...], name: str) -> None:
    """Show the settings of one plug-in, also of one whose packages are missing."""
    known = [kind for kind in kinds if kind.key(name) in kind.names()]
    if not known:
        every = [row.name for kind in kinds for row in kind.available()]
        _refuse_unknown(kinds[-1].kind.split()[-1], name, every)
    plugin = known[0].find(name)
    for row in known[0].available():
        if known[0].key(row.name) == known[0].key(name) and not _usable(row):
            out.warn(row.missing or row.broken)
    if plugin.config is None:
        out.note(f"{name} has no settings.")
        return
    holds = kinds_of(plugin.config)
    for field in dataclasses.fields(plugin.config):
        text = str(field.metadata.get("help", ""))
        choices = holds[field.name].choices or None
        shown = f"{text} [{'|'.join(choices)}]" if choices else text
        record = {"name": field.name, "default": field.default, "help": text, "choices": choices}
        default = "-" if field.default is None else str(field.default)
        out.data(f"{field.name:<20} {default:<10} {shown}", record)


def _pair(key: str, value: Any) -> None:
    if not out.json:
        value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        shown = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        out.data(f"{key:<16} {'-' if shown in (None, '') else shown}")


def _refuse_unknown(kind: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        raise UsageError(f"no {kind} is called {name!r}.", hint=hint)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for name, function in (("encoders", encoders), ("detectors", detectors), ("methods", methods)):
        if name not in {command.name for command in app.registered_commands}:
            register_command(app, name, function)
