"""Who may import whom, read off the source: also imports in functions and for type checkers.

The way of the data is slide → tiles → nuclei → views → encoder → embeddings → MIL → exports; a
room imports what is before it and the shared rooms, and only the command line prints or exits.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from cytofm_cli.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = "cytofm_cli"

GROUND = {"errors", "units", "words", "table_text", "tables", "kinds", "config", "places"}
GROUND |= {"registry", "slide_files", "urls", "named_files"}
SHARED = GROUND | {"work", "runs", "stats", "store", "pictures"}
# A room that is not named here does not exist yet: say whom it may import.
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    "work": GROUND,
    "runs": GROUND | {"work"},
    "stats": GROUND,
    "pictures": GROUND | {"work"},
    "store": GROUND | {"work", "runs"},
    "simulate": GROUND | {"work", "runs", "stats", "pictures"},
    "slides": GROUND | {"work"},
    "regions": SHARED,
    "tiles": SHARED | {"slides", "regions"},
    "nuclei": SHARED | {"slides", "tiles", "regions"},
    "views": SHARED | {"slides", "tiles", "nuclei"},
    "encoders": SHARED | {"slides", "tiles", "nuclei", "regions"},
    "mil": SHARED,
    "evaluate": SHARED | {"slides", "tiles", "nuclei", "views", "encoders"},
    "pretrain": SHARED | {"slides", "tiles", "nuclei", "views", "encoders", "evaluate"},
    "generate": SHARED | {"slides", "tiles", "nuclei", "views", "encoders", "evaluate", "pretrain"},
    "cells": SHARED | {"slides", "tiles", "nuclei", "views", "encoders", "evaluate"},
    "maps": SHARED
    | {"slides", "tiles", "nuclei", "views", "encoders", "evaluate", "mil", "exporters"},
    "exporters": SHARED | {"slides", "tiles", "nuclei", "encoders", "mil"},
    "viewer": SHARED | {"slides", "tiles", "nuclei", "exporters"},
    "report": SHARED | {"slides", "tiles", "cells", "mil"},
}
STEPS = ALLOWED.keys()
ALLOWED |= {
    "testing": {*STEPS},
    "api": {*STEPS},
    "cli": {*STEPS, "api"},
    "__main__": {*STEPS, "api", "cli"},
}
# What takes long to import, or may be missing: never on the way of `cytofm --help`.
HEAVY = {"torch", "torchvision", "timm", "transformers", "scipy", "sklearn", "skimage", "zarr"}
HEAVY |= {
    "distributed",
    "dask",
    "h5py",
    "pyvips",
    "openslide",
    "tiffslide",
    "tifffile",
    "imagecodecs",
    "PIL",
}


EXITS = {"sys.exit", "os._exit", "exit", "quit", "typer.Exit", "typer.Abort", "SystemExit"}
PRINTS = {"print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"}


class Import(NamedTuple):
    """One import: of what, by which line, and whether it happens when the module is loaded."""

    target: str
    line: int
    at_load: bool


@cache
def sources(package: str) -> dict[str, Path]:
    folder = ROOT / package
    return {
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in sorted(folder.rglob("*.py"))
    }


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def walk(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node, and whether it runs when the module is loaded."""
    todo: list[tuple[ast.AST, bool]] = [(tree, True)]
    while todo:
        node, at_load = todo.pop()
        yield node, at_load
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = at_load and not later and not typing
        todo += [(child, inside) for child in ast.iter_child_nodes(node)]


def imports(module: str, path: Path, known: Mapping[str, Path]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, at_load in walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(name.name, node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for name in node.names:
                whole = f"{base}.{name.name}"
                yield Import(whole if whole in known else base, node.lineno, at_load)


@cache
def all_imports() -> dict[str, tuple[Import, ...]]:
    known = sources(PACKAGE)
    return {module: tuple(imports(module, path, known)) for module, path in known.items()}


@cache
def graph() -> dict[str, tuple[Import, ...]]:
    """Return the imports of each module from within the package."""
    known = sources(PACKAGE)
    return {
        module: tuple(found for found in of if found.target in known)
        for module, of in all_imports().items()
    }


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """List the groups of nodes that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[len(stack) - len(group) :]
            if len(group) > 1 or node in edges.get(node, ()):
                groups.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return sorted(groups)


def test_circles__are_found_in_a_graph_that_has_some() -> None:
    edges = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"f", "a"}}
    assert circles(edges) == [["a", "b", "c"], ["d", "e"], ["f"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_modules__import_in_no_circle() -> None:
    edges = {module: {found.target for found in of} - {PACKAGE} for module, of in graph().items()}
    assert len(edges) > 200
    assert circles(edges) == []


def test_rooms__import_in_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module, of in graph().items():
        if room := room_of(module):
            others = {room_of(found.target) for found in of} - {room, ""}
            edges[room] = edges.get(room, set()) | others
    assert edges["mil"] >= {"stats", "runs"}
    assert circles(edges) == []


def test_rooms__import_only_what_is_before_them() -> None:
    wrong = [
        f"{module}:{found.line} imports {found.target}"
        for module, of in graph().items()
        for found in of
        if (room := room_of(module))
        and (other := room_of(found.target)) not in {room, ""}
        and other not in ALLOWED.get(room, set())
    ]
    assert wrong == []
    assert {room_of(module) for module in graph()} - {""} <= ALLOWED.keys()


def test_package__gives_its_modules_nothing_but_the_version() -> None:
    # What users import from it would pull in everything, and closes circles.
    wrong = []
    for module, path in sources(PACKAGE).items():
        for node, _ in walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and node.module == PACKAGE and module != PACKAGE:
                names = [name.name for name in node.names]
                known = {f"{PACKAGE}.{name}" for name in names} & sources(PACKAGE).keys()
                extra = {f"{PACKAGE}.{name}" for name in names} - known - {f"{PACKAGE}.__version__"}
                wrong += [f"{module}:{node.lineno} {name}" for name in sorted(extra)]
    assert wrong == []


def dotted(node: ast.AST | None) -> str:
    """Return `a.b` for a name or an attribute of one."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def screen_calls(tree: ast.Module) -> list[tuple[int, str]]:
    """List what prints or ends the process: line and word."""
    found = []
    for node, _ in walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in EXITS | PRINTS:
            found.append((node.lineno, dotted(node.func)))
        elif isinstance(node, ast.Raise) and dotted(node.exc) in EXITS:
            found.append((node.lineno, dotted(node.exc)))
    return sorted(found)


def test_screen_calls__are_found_however_they_are_written() -> None:
    source = "def f():\n    print(1)\n    sys.exit(2)\n    raise SystemExit\nblueprint(1)\n"
    found = screen_calls(ast.parse(source))
    assert found == [(2, "print"), (3, "sys.exit"), (4, "SystemExit")]


def test_only_the_command_line_prints_or_exits() -> None:
    # Child processes end themselves and answer on a pipe: they have no caller that could.
    children = {
        "cytofm_cli.work.children": EXITS,
        "cytofm_kernels.aot": {"sys.stdout.write"},
    }
    wrong = [
        f"{module}:{line} {word}"
        for package in (PACKAGE, "kernels/cytofm_kernels")
        for module, path in sources(package).items()
        if room_of(module) not in {"cli", "__main__"}
        for line, word in screen_calls(tree_of(path))
        if word not in children.get(module, ())
    ]
    assert wrong == []


def test_kernels__import_nothing_of_cytofm() -> None:
    known = sources("kernels/cytofm_kernels")
    assert len(known) > 5
    wrong = [
        f"{module}:{found.line}"
        for module, path in known.items()
        for found in imports(module, path, known)
        if found.target.split(".")[0] == PACKAGE
    ]
    assert wrong == []


def loaded_by(start: str) -> dict[str, list[str]]:
    """Return the modules that are loaded with one, and what else each of them loads."""
    known = sources(PACKAGE)
    todo, seen = [start], {}
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        at_load = [found.target for found in all_imports()[module] if found.at_load]
        seen[module] = [target for target in at_load if target not in known]
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        todo += [target for target in (*at_load, *parents) if target in known]
    return seen


def loads(start: str, packages: set[str]) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in loaded_by(start).items()
        for target in targets
        if target.split(".")[0] in packages
    ]


@pytest.mark.parametrize("start", ["cytofm_cli", "cytofm_cli.__main__", "cytofm_cli.cli.app"])
def test_start__loads_nothing_heavy(start: str) -> None:
    assert loads(start, HEAVY | {"numpy"}) == []


@pytest.mark.parametrize("command", sorted({module for module, _ in COMMANDS.values()}))
def test_command__is_loaded_without_torch(command: str) -> None:
    # What a command computes with is imported when it computes: `--help` and errors are quick.
    assert loads(f"cytofm_cli.cli.{command}", HEAVY) == []
