"""Flags made from configuration dataclasses, so that each setting is written once.

`register` turns a function whose parameters include configuration dataclasses into a command:
every field becomes a flag; values are merged defaults < --config file < environment < flags.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from cytofm_cli import config as configs
from cytofm_cli.cli.out import out
from cytofm_cli.config import option
from cytofm_cli.errors import UsageError

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the plug-in; repeat for more."),
]


def parse_settings(words: list[str] | None) -> dict[str, str]:
    """Parse the KEY=VALUE words of `--set`."""
    settings = {}
    for word in words or []:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word}: must be KEY=VALUE.")
        settings[key.strip()] = value.strip()
    return settings


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Settings that every long command has; none of them changes a result."""

    SECTION: ClassVar[str] = "run"

    config: Path | None = option(None, "TOML file of settings, one table a step.")
    print_config: bool = option(False, "Print the settings as merged, and stop.")
    dry_run: bool = option(False, "Say what would be done, and stop.")
    overwrite: bool = option(False, "Make finished steps anew, also with other settings.")
    json: bool = option(False, "One JSON object a line on stdout.")
    quiet: bool = option(False, "Only data and errors.", short="-q")
    verbose: bool = option(False, "Say more.", short="-v")
    no_progress: bool = option(False, "No progress display.")


@dataclass(frozen=True, kw_only=True)
class RunOptions(CommonOptions):
    """Settings of commands that work on many slides."""

    shard: str | None = option(None, "Do the i-th of n parts, i/n from 0/n: for job arrays.")
    workers: int | None = option(None, "Slides at a time [default: as fits].", low=1)
    threads: int | None = option(None, "Processors to use [default: all allowed].", low=1)
    timeout_s: float = option(
        300.0, "Give a slide up after so many seconds without progress.", low=1.0
    )
    fail_fast: bool = option(False, "Stop at the first slide that fails.")


def register(app: typer.Typer, name: str, function: Callable[..., Any]) -> None:
    """Add `function` to `app` as the command `name`; its docstring is the help."""
    app.command(name, help=inspect.getdoc(function), rich_help_panel=None)(expand(function))


def expand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with every configuration parameter spread into flags."""
    hints = typing.get_type_hints(function, include_extras=True)
    sections = {
        name: kind
        for name, kind in hints.items()
        if dataclasses.is_dataclass(kind) and hasattr(kind, "SECTION")
    }
    plain = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in sections
    ]
    flags = {name: _flags(typing.cast("type", kind)) for name, kind in sections.items()}
    # Two steps may share a setting by name (seed): one flag then speaks to both.
    once = {parameter.name: parameter for group in flags.values() for parameter in group}
    spread = [*plain, *once.values()]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        given = {parameter.name: values[parameter.name] for parameter in plain}
        explicit = {
            name: {p.name: v for p in group if (v := _given(values[p.name])) is not None}
            for name, group in flags.items()
        }
        merged = _merge(sections, explicit)
        run = next((c for c in merged.values() if isinstance(c, CommonOptions)), CommonOptions())
        _configure_output(run)
        if run.print_config:
            tables = {c.SECTION: c for c in merged.values() if not isinstance(c, CommonOptions)}
            print(configs.to_toml(tables), end="")
            return None
        return function(**given, **merged)

    command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in spread}
    del command.__wrapped__  # typer would look through it at the unspread signature
    return command


def _flags(kind: type) -> list[inspect.Parameter]:
    types = configs.field_types(kind)
    return [
        _flag(field, types[field.name]) for field in dataclasses.fields(typing.cast("Any", kind))
    ]


def _flag(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    target, _ = configs.base_type(kind)
    long = "--" + field.name.replace("_", "-")
    names = [long] if not field.metadata.get("short") else [field.metadata["short"], long]
    if target is bool and field.default is not False:
        names[-1] = f"{long}/--no-{long[2:]}"
    choices = field.metadata.get("choices")
    metavar = "|".join(choices) if choices else None
    if typing.get_origin(target) is tuple:
        target = list[str]  # repeated, comma-separated, or both
        metavar = metavar or "VALUE,…"
    declared = typer.Option(
        *names,
        help=_help(field),
        show_default=False,
        metavar=metavar,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[target | None, declared],
    )


def _given(value: Any) -> Any:
    """Return what was typed for a flag, None if nothing was."""
    return ",".join(value) or None if isinstance(value, list) else value


def _help(field: dataclasses.Field[Any]) -> str:
    text = str(field.metadata.get("help", ""))
    default = field.default
    if default is None or isinstance(default, bool) or default is dataclasses.MISSING:
        return text
    shown = ",".join(str(item) for item in default) if isinstance(default, tuple) else default
    return f"{text} [default: {shown}]"


def _merge(sections: dict[str, Any], explicit: dict[str, dict[str, Any]]) -> dict[str, Any]:
    shared = configs.from_environment(RunOptions, RunOptions.SECTION)
    given = {key: value for values in explicit.values() for key, value in values.items()}
    file = given.get("config", shared.get("config"))
    tables = configs.read_toml(Path(file)) if file else {}
    configs.check_sections(tables, Path(file or ""))
    merged = {}
    for name, kind in sections.items():
        table = tables.get(kind.SECTION, {})
        if not isinstance(table, dict):
            raise UsageError(f"{file}: [{kind.SECTION}] must be a table.")
        if issubclass(kind, CommonOptions):
            # [run] serves all commands; what this one does not have is not for it.
            configs.resolve(RunOptions, kind.SECTION, table)
            known = configs.field_types(kind)
            table = {key: value for key, value in table.items() if key.replace("-", "_") in known}
            environment = {key: value for key, value in shared.items() if key in known}
        else:
            environment = configs.from_environment(kind, kind.SECTION)
        merged[name] = configs.resolve(kind, kind.SECTION, table, environment, explicit[name])
    return merged


def _configure_output(run: CommonOptions) -> None:
    out.json = run.json
    out.quiet = run.quiet
    out.verbose = max(out.verbose, int(run.verbose))
    out.progress = not run.no_progress
