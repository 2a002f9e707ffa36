"""The names of the face for Python: lazy, told by a stub, hidden by nothing."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cytofm_cli as cytofm

STUB = Path(cytofm.__file__).with_suffix(".pyi")


def run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_import__loads_nothing() -> None:
    done = run(
        "import sys; before = set(sys.modules); import cytofm_cli\n"
        "cytofm_cli.__version__, dir(cytofm_cli)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(done.stdout.split()) <= {"cytofm_cli", "__future__", "importlib", "warnings"}
    assert "cytofm_cli" in done.stdout, done.stderr


def test_names__a_step_brings_neither_torch_nor_typer() -> None:
    done = run(
        "import sys, cytofm_cli as cytofm\n"
        "cytofm.tile, cytofm.detect, cytofm.open_store, cytofm.TileConfig, cytofm.train\n"
        "print([n for n in ('torch', 'typer', 'zarr', 'pandas') if n in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_names__dir_all_and_the_stub_agree_and_every_one_is_there() -> None:
    told = {
        alias.asname
        for node in ast.parse(STUB.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told | {"__version__"} == set(cytofm.__all__) == set(dir(cytofm))
    modules = {name for name in cytofm.__all__ if isinstance(getattr(cytofm, name), ModuleType)}
    assert modules == {"errors"}


def test_names__the_stub_takes_each_from_where_it_is_found() -> None:
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module != "cytofm_cli":
            for alias in node.names:
                module = importlib.import_module(str(node.module))
                assert getattr(module, alias.name) is getattr(cytofm, alias.name), alias.name


def test_names__no_package_of_the_tree_can_hide_one() -> None:
    inside = {path.stem for path in Path(cytofm.__file__).parent.iterdir()}
    assert inside & set(cytofm.__all__) == {"errors"}
    with pytest.raises(AttributeError, match="no attribute 'titel'"):
        cytofm.titel  # noqa: B018


def test_lists__name_what_can_be_chosen() -> None:
    assert {"handcrafted", "cytofm-tiny"} <= {row.name for row in cytofm.list_encoders()}
    assert {"classical", "import"} <= {row.name for row in cytofm.list_detectors()}
    assert {"abmil", "mean"} <= {row.name for row in cytofm.list_methods()}
