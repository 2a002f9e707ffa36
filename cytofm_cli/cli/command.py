"""What every command has, however it was declared: headings, environment, completion.

`improve` gives this class to all commands of the tree, so that an option of any of them may
also stand in the environment, as CYTOFM_<COMMAND>_<OPTION>.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from cytofm_cli.cli.completion import offer
from cytofm_cli.cli.options import RunOptions
from cytofm_cli.cli.out import out
from cytofm_cli.cli.panels import FILES, FIRST, LAST, OUTPUT
from cytofm_cli.config import SECTIONS, field_types, variable
from cytofm_cli.errors import UsageError

# Variables that are no options.
OTHER_VARIABLES = frozenset({"CYTOFM_CACHE_DIR"})


class Command(TyperCommand):
    """A command whose options stand under headings and may come from the environment."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, told their variable and what completes them."""
        params: list[Any] = super().get_params(ctx)
        words = ctx.command_path.split()
        for param in params:
            if param.param_type_name != "option" or param.name == "help":
                continue
            flag = long_flag(param)
            if param.show_envvar and param.envvar is None and len(words) > 1:
                param.envvar = _variable(words, flag)
            param._custom_shell_complete = param._custom_shell_complete or offer(
                words[-1], flag, param.metavar
            )
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check the environment; `--print-config` needs nothing else to be given."""
        if not ctx.resilient_parsing:
            _check_environment(ctx, self)
        if "--print-config" in args or variable("run", "print_config") in os.environ:
            for param in self.params:
                param.required = False
        return super().parse_args(ctx, args)

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first line of the help, which a list wraps where it must, uncut."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under their headings."""
        arguments: list[tuple[str, str]] = []
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append(record)
            else:
                panels.setdefault(_panel(param), []).append(record)
        known = [title for title in FIRST if title not in LAST]
        others = [title for title in panels if title not in (*known, *LAST)]
        for title in ("Arguments", *known, *others, *LAST):
            if records := arguments if title == "Arguments" else panels.get(title):
                with formatter.section(title):
                    formatter.write_dl(records)


def improve(app: typer.Typer, pages: Mapping[str, str], path: str = "") -> None:
    """Give all commands of `app` this class, and the page of the docs at their end.

    Args:
        app: the tree.
        pages: page by command; a group's serves its commands.
        path: words that lead to `app`.
    """
    for info in app.registered_commands:
        name = f"{path} {info.name}".strip()
        page = pages.get(name) or pages.get(path)
        info.cls = Command
        if page and not info.epilog:
            info.epilog = f"More: {page}"
    for group in app.registered_groups:
        if group.typer_instance is not None:
            improve(group.typer_instance, pages, f"{path} {group.name}".strip())


def long_flag(param: Any) -> str:
    """Return the longest name of an option, without dashes."""
    return str(max(param.opts, key=len)).lstrip("-")


def _variable(words: Sequence[str], flag: str) -> str:
    """Return the variable of an option that is no setting of a step: `mil score -o` has its own."""
    return variable("_".join(words[1:]), flag)


def _panel(param: Any) -> str:
    named = getattr(param, "rich_help_panel", None)
    if named:
        return str(named)
    return OUTPUT if param.name == "help" else FILES


def _check_environment(ctx: Any, command: Any) -> None:
    """Refuse a variable that no option reads: a misspelt one would go unseen.

    Raises:
        UsageError: it starts like one of this command's.
    """
    words = ctx.command_path.split()
    known = _known_variables(ctx, command)
    ours = {name.split("_")[1] for name in known} | {words[1].upper()}
    sections = {name.upper() for name in (*SECTIONS, *_siblings(ctx.find_root()))}
    for name in sorted(os.environ):
        if not name.startswith("CYTOFM_") or name in known or name in OTHER_VARIABLES:
            continue
        section = name.split("_")[1]
        if section in ours:
            raise UsageError(
                f"{name} is no setting of `cytofm {' '.join(words[1:])}`.",
                hint=_did_you_mean(name, section, known),
            )
        if section not in sections:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            out.warn(f"{name} is set, and nothing reads it{hint}")


def _known_variables(ctx: Any, command: Any) -> set[str]:
    """Collect the variables of the command, and of its siblings in a group."""
    heard = [command]
    if ctx.parent is not None and ctx.parent.parent is not None:
        heard += _siblings(ctx.parent).values()
    above = ctx.command_path.split()[:-1]
    known = {variable("run", name) for name in field_types(RunOptions)}
    for each in heard:
        known |= set(getattr(each.callback, "variables", ()))
        for param in each.params:
            if param.param_type_name == "option" and param.show_envvar:
                known.add(_variable([*above, each.name], long_flag(param)))
    return known


def _siblings(ctx: Any) -> Mapping[str, Any]:
    siblings: Mapping[str, Any] = getattr(ctx.command, "commands", {})
    return siblings


def _did_you_mean(name: str, section: str, known: Collection[str]) -> str | None:
    setting = name.removeprefix(f"CYTOFM_{section}_")
    elsewhere = [variable for variable in known if variable.split("_", 2)[2] == setting]
    close = elsewhere or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else None
