"""Hints of errors advise only options that the command has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

from cytofm_cli.cli.app import COMMANDS, build

PACKAGE = Path(__file__).parents[2] / "cytofm_cli"
# Which commands raise the errors of a file or package; the longest start of a path counts.
# Their options in common may be named; others only after their command: `cytofm tile --mpp`.
# What is not listed may name the options of any command.
_TILES = {"tile", "embed"}
_PIXELS = {"detect", "embed", "export", "views", "pretrain", "evaluate probe"}
RAISED_BY = {
    "batch.py": {"tile", "detect", "embed", "views"},
    "api/detect.py": {"detect"},
    "api/embed.py": {"embed"},
    "api/inputs.py": _TILES,
    "api/run.py": {"run"},
    "api/tile.py": {"tile"},
    "cli/evaluate.py": {"evaluate probe"},
    "cli/mil_score.py": {"mil score"},
    "cli/pretrain.py": {"pretrain"},
    "cli/views.py": {"views"},
    "encoders/": {"embed", "evaluate probe"},
    "encoders/base.py": {"pretrain"},
    "encoders/dtype.py": {"embed"},
    "encoders/run.py": {"embed"},
    "evaluate/": {"evaluate probe"},
    "evaluate/perturbation_names.py": {"evaluate robustness", "evaluate retention"},
    "evaluate/places.py": {"evaluate robustness"},
    "evaluate/robustness.py": {"evaluate robustness"},
    "exporters/": {"export"},
    "generate/": {"generate train", "generate sample"},
    "generate/asked.py": {"generate sample"},
    "generate/config.py": {"generate train"},
    "generate/file.py": {"generate sample"},
    "generate/plan.py": {"generate train"},
    "generate/restain.py": {"generate restain"},
    "generate/sample.py": {"generate sample"},
    "nuclei/": {"detect"},
    "pretrain/": {"pretrain"},
    "store/": {"tile", "detect", "embed"},
    "tiles/": _TILES,
    "tiles/source.py": _PIXELS,
    "tiles/origin.py": _PIXELS,
    "views/": {"views"},
}
# Other tools that a hint may name, with options of their own.
FOREIGN = ("sbatch", "srun", "torchrun", "dask scheduler")


def options() -> dict[str, set[str]]:
    """Return the options of each command."""
    found = {}
    for name in COMMANDS:
        command = typer.main.get_command(build([name])).commands[name]  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None) or {"": command}
        for sub, one in inner.items():
            opts = [*one.params, *[p for p in command.params if inner]]
            names = {word for p in opts for word in (*p.opts, *p.secondary_opts)}
            found[f"{name} {sub}".strip()] = names | {"--help"}
    return found


def hints() -> Iterator[tuple[str, str]]:
    """Yield (`file:line`, text) of every hint; what is filled in is left out."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "hint":
                        parts = [
                            part.value
                            for part in ast.walk(keyword.value)
                            if isinstance(part, ast.Constant) and isinstance(part.value, str)
                        ]
                        where = f"{file.relative_to(PACKAGE)}:{node.lineno}"
                        yield where, " ".join(parts)


ALL_HINTS = list(hints())


def test_hints__are_found() -> None:
    assert len(ALL_HINTS) > 150


def test_hints__name_only_options_that_a_command_which_raises_them_has() -> None:
    known = options()
    wrong = []
    for where, text in ALL_HINTS:
        if any(tool in text for tool in FOREIGN):
            continue
        start = max((one for one in RAISED_BY if where.startswith(one)), key=len, default="")
        if start:
            allowed = set.intersection(*(known[name] for name in RAISED_BY[start]))
        else:
            allowed = set.union(*known.values())
        # `cytofm tile --mpp` speaks of tile, whoever says it.
        for named in re.finditer(r"cytofm ((?:mil |evaluate |generate )?\w+)([^`]*)", text):
            if named[1] in known:
                allowed |= known[named[1]]
        named_options = re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text)
        wrong += [f"{where}: {one} in {text!r}" for one in named_options if one not in allowed]
    assert not wrong, "\n".join(wrong)
