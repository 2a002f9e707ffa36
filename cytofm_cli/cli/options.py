"""Flags made from configuration dataclasses, so that each setting is written once.

`register` turns a function whose parameters include configuration dataclasses into a command:
every field becomes a flag; values are merged defaults < --config file < environment < flags.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from cytofm_cli import config as configs
from cytofm_cli.cli.out import out
from cytofm_cli.cli.panels import panel_of
from cytofm_cli.config import Layer, Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.kinds import Kind

Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")]
SlidesNow = Annotated[
    Path | None,
    typer.Option(help="Folder where the slides lie now, for stores without pixels."),
]


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Settings):
    """Settings that every command has; like all of [run], none of them changes a result."""

    SECTION: ClassVar[str] = "run"

    config: Path | None = option(None, "TOML file of settings, one table a step; - is stdin.")
    json: bool = option(False, "One JSON object a line on stdout.")
    quiet: bool = option(False, "Only data and errors.", short="-q")
    verbose: bool = option(False, "Say more.", short="-v")
    no_progress: bool = option(False, "No progress display.")


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(OutputOptions):
    """Settings of commands that have some of their own."""

    print_config: bool = option(False, "Print the settings as merged, and stop.")


@dataclass(frozen=True, kw_only=True)
class DryRun(Settings):
    """Part of the settings of commands that make something."""

    dry_run: bool = option(False, "Say what would be done, and stop.")


@dataclass(frozen=True, kw_only=True)
class Sharded(Settings):
    """Part of the settings of commands whose slides may be shared out."""

    shard: str | None = option(
        None, "Do the i-th of n parts, i/n from 0/n; slurm: the part of this task of an array."
    )


@dataclass(frozen=True, kw_only=True)
class CommonOptions(DryRun, ConfigOptions):
    """Settings of commands that keep what is finished."""

    overwrite: bool = option(False, "Make finished steps anew, also with other settings.")


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(ConfigOptions):
    """Settings of commands that read many stores into one page."""

    overwrite: bool = option(False, "Replace what is there.")
    workers: int | None = option(None, "Slides at a time [default: as fits].", low=1)
    threads: int | None = option(None, "Processors to use [default: all allowed].", low=1)
    timeout_s: float = option(
        300.0, "Give a slide up after so many seconds without progress.", low=1.0
    )

    def flags(self) -> dict[str, Any]:
        """Return what `cytofm_cli.api.cohort.Manner` needs; this process has no threads yet."""
        names = ("overwrite", "workers", "threads", "timeout_s")
        return {**{name: getattr(self, name) for name in names}, "fork": True}


_ON = (
    "Work on a cluster of dask.distributed: tls://host:port, a scheduler file, or slurm (pbs, lsf, "
    "sge, htcondor, oar), which submits --workers jobs."
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(DrawingOptions):
    """Settings of a page whose slides may be read on the machines of a cluster."""

    on: str | None = option(None, _ON)

    def flags(self) -> dict[str, Any]:
        """Return what `cytofm_cli.api.cohort.Manner` needs."""
        return {**super().flags(), "on": self.on}


@dataclass(frozen=True, kw_only=True)
class SlideOptions(Sharded, CommonOptions):
    """Settings of commands that work on many slides."""

    workers: int | None = option(None, "Slides at a time [default: as fits].", low=1)
    threads: int | None = option(None, "Processors to use [default: all allowed].", low=1)
    timeout_s: float = option(
        300.0, "Give a slide up after so many seconds without progress.", low=1.0
    )
    fail_fast: bool = option(False, "Stop at the first slide that fails.")
    scratch: str | None = option(
        None, "Temporary files there; auto: SLURM_TMPDIR or TMPDIR, the disk of the node."
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions(SlideOptions):
    """Settings of commands that may also work on the machines of a cluster."""

    on: str | None = option(None, _ON)


@dataclass(frozen=True, kw_only=True)
class RunOptions(EngineOptions):
    """Settings of commands that may also compute on GPUs: all of the table [run]."""

    gpus: int | None = option(None, "Compute on so many GPUs, one worker on each.", low=1)


def register(
    app: typer.Typer,
    name: str,
    function: Callable[..., Any],
    flags_of: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Add `function` to `app` as the command `name`; its docstring is the help."""
    command = expand(function, flags_of or {})
    app.command(name, help=inspect.getdoc(function), rich_help_panel=None)(command)


def expand(
    function: Callable[..., Any], flags_of: Mapping[str, Collection[str]]
) -> Callable[..., Any]:
    """Return `function` with every configuration parameter spread into flags.

    A function that looks at none of [run] gets no such parameter, its command the flags all the
    same.

    Args:
        function: its docstring is the help.
        flags_of: by parameter, the settings that are flags; the others stand in files and in the
            environment alone. What is not named has a flag for each.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    asked = {name: kind for name, kind in hints.items() if _is_settings(kind)}
    sections: dict[str, type[Settings]] = dict(asked)
    if not any(issubclass(kind, OutputOptions) for kind in asked.values()):
        sections["run"] = OutputOptions
    plain = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in asked
    ]
    flags = {name: _flags(kind, flags_of.get(name)) for name, kind in sections.items()}
    spread = [*plain, *_once(flags.values())]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        given = {parameter.name: values[parameter.name] for parameter in plain}
        merged, notes = _merge(sections, _typed(flags, values))
        run = next(c for c in merged.values() if isinstance(c, OutputOptions))
        _configure_output(run)
        for note in notes:
            out.note(note)
        if isinstance(run, ConfigOptions) and run.print_config:
            tables = {c.SECTION: c for c in merged.values() if not isinstance(c, OutputOptions)}
            print(configs.to_toml(tables), end="")
            return None
        return function(**given, **{name: merged[name] for name in asked})

    command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in spread}
    command.variables = _variables(sections.values())  # type: ignore[attr-defined]
    del command.__wrapped__  # typer would look through it at the unspread signature
    return command


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def _typed(
    flags: Mapping[str, Sequence[inspect.Parameter]], values: Mapping[str, Any]
) -> dict[str, Layer]:
    """Return what was typed of the settings of each parameter."""
    return {
        name: Layer(
            {p.name: v for p in group if (v := _given(values[p.name])) is not None},
            form="{flag} {value}",
        )
        for name, group in flags.items()
    }


def _variables(kinds: Iterable[type[Settings]]) -> frozenset[str]:
    """Name the variables that a command reads."""
    return frozenset(
        configs.variable(kind.SECTION, name)
        for kind in kinds
        for name in (*configs.kinds_of(kind), *configs.former_names(kind))
    )


def _once(groups: Iterable[list[inspect.Parameter]]) -> list[inspect.Parameter]:
    """Join settings that two steps share by name (seed): one flag then speaks to both."""
    by_name: dict[str, inspect.Parameter] = {}
    for parameter in (one for group in groups for one in group):
        first = by_name.setdefault(parameter.name, parameter)
        if first is not parameter:
            one, other = (typing.get_args(p.annotation)[1] for p in (first, parameter))
            one.help = _joined(one.help, other.help)
    return list(by_name.values())


def _joined(first: str, second: str) -> str:
    """Join the help of one flag for two steps; where both say the same, it is said once."""
    (text, facts), (other, more) = (one.split("  [", 1) for one in (first, second))
    if text != other:
        return f"{first} {second}"
    return f"{text}  [{facts.removesuffix(']')}, {more.removeprefix('env var: ')}"


def _flags(
    settings: type[Settings], names: Collection[str] | None = None
) -> list[inspect.Parameter]:
    kinds = configs.kinds_of(settings)
    return [
        flag
        for field in dataclasses.fields(settings)
        if names is None or field.name in names
        for flag in _names_of(settings.SECTION, field, kinds[field.name])
    ]


def _names_of(section: str, field: dataclasses.Field[Any], kind: Kind) -> list[inspect.Parameter]:
    """Return the flag of a setting, and the hidden one of its former name."""
    former = field.metadata.get("former")
    flags = [_flag(section, field, kind, field.name)]
    return [*flags, _flag(section, field, kind, former)] if former else flags


def _flag(section: str, field: dataclasses.Field[Any], kind: Kind, name: str) -> inspect.Parameter:
    long = "--" + name.replace("_", "-")
    names = [long] if not field.metadata.get("short") else [field.metadata["short"], long]
    if kind.base is bool and field.default is not False:
        names[-1] = f"{long}/--no-{long[2:]}"
    metavar = "|".join(kind.choices) or (f"<{kind.base.__name__},…>" if kind.many else None)
    target: Any = list[str] if kind.many else kind.base  # repeated, comma-separated, or both
    declared = typer.Option(
        *names,
        help=_help(section, field),
        show_default=False,
        show_envvar=False,  # read by `_merge`, which knows a file from a variable
        hidden=name != field.name,
        metavar=metavar,
        rich_help_panel=panel_of(section, field.name),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[target | None, declared],
    )


def _given(value: Any) -> Any:
    """Return what was typed for a flag, None if nothing was."""
    return ",".join(value) or None if isinstance(value, list) else value


def _help(section: str, field: dataclasses.Field[Any]) -> str:
    text = _sentence(str(field.metadata.get("help", "")))
    facts = f"env var: {configs.variable(section, field.name)}"
    default = field.default
    shows = default not in (None, (), dataclasses.MISSING) and not isinstance(default, bool)
    if shows:
        shown = ",".join(str(item) for item in default) if isinstance(default, tuple) else default
        facts += f"; default: {shown}"
    return f"{text}  [{facts}]"


def _sentence(text: str) -> str:
    """Make help a sentence; words that are values to type keep their first letter."""
    first = text.partition(" ")[0]
    text = text if first.endswith((":", ",")) else first.capitalize()[:1] + text[1:]
    return text if text.endswith((".", "]")) else f"{text}."


def _merge(
    sections: dict[str, type[Settings]], explicit: dict[str, Layer]
) -> tuple[dict[str, Settings], list[str]]:
    """Merge defaults, file, environment and flags; also say what was given and is not used."""
    shared = configs.from_environment(RunOptions, RunOptions.SECTION)
    given = {key: value for values in explicit.values() for key, value in values.items()}
    file = given.get("config", shared.get("config"))
    tables = configs.read_toml(Path(file)) if file else {}
    configs.check_sections(tables, Path(file or ""))
    merged: dict[str, Settings] = {}
    notes: list[str] = []
    for name, kind in sections.items():
        section = kind.SECTION
        table = tables.get(section, {})
        if not isinstance(table, dict):
            raise UsageError(f"{file}: [{section}] must be a table.")
        layers = [
            _from_file(file, table),
            shared if section == RunOptions.SECTION else configs.from_environment(kind, section),
        ]
        if issubclass(kind, OutputOptions):
            configs.resolve(RunOptions, section, *layers)
            # [run] serves all commands; what this one does not have is not for it.
            layers, unused = _only(configs.kinds_of(kind), section, layers)
            if issubclass(kind, ConfigOptions):  # the others make nothing that it could be about
                notes += unused
        modern = [_modern(kind, section, layer) for layer in (*layers, explicit[name])]
        _refuse_misplaced(modern[0], section, [kind, *sections.values(), RunOptions])
        merged[name] = configs.resolve(kind, section, *modern)
    return merged, notes


def _from_file(file: object, table: dict[str, Any]) -> Layer:
    place = f"{file}: ".replace("{", "{{").replace("}", "}}")
    return Layer(table, form=place + "[{section}] {key} = {value!r}", place=f"{file}: ")


def _refuse_misplaced(table: Layer, section: str, kinds: Sequence[Any]) -> None:
    """Refuse a setting that stands in the table of another step, and say where it belongs."""
    for key in table:
        homes = [k.SECTION for k in kinds if key.replace("-", "_") in configs.field_types(k)]
        if homes and section not in homes:
            raise UsageError(
                f"{table.place}[{section}] has no setting {key!r}.",
                hint=f"it belongs to [{homes[0]}].",
            )


def _modern(kind: type, section: str, layer: Layer) -> Layer:
    """Call settings by the names that they have now, and say so."""
    formers = configs.former_names(kind)
    if not formers.keys() & layer.keys():
        return layer
    for name in formers.keys() & layer.keys():
        now = formers[name]
        out.warn(f"{layer.written(section, name)}: the setting is called {now} now")
    return Layer({formers.get(k, k): v for k, v in layer.items()}, layer.form, layer.place)


def _only(
    known: Collection[str], section: str, layers: list[Layer]
) -> tuple[list[Layer], list[str]]:
    """Split layers into the settings that a command has, and a note for each that it has not."""
    kept, notes = [], []
    for layer in layers:
        have = {key: value for key, value in layer.items() if key.replace("-", "_") in known}
        kept.append(Layer(have, layer.form, layer.place))
        notes += [
            f"{layer.written(section, key)} is not used: this command has no such option"
            for key in layer
            if key not in have
        ]
    return kept, notes


def _configure_output(run: OutputOptions) -> None:
    out.json = run.json
    out.quiet = run.quiet
    out.verbose = max(out.verbose, int(run.verbose))
    out.progress = not run.no_progress
