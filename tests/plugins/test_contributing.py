"""The plug-ins that CONTRIBUTING shows are those that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

from cytofm_cli import registry

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_contributing__shows_toys_that_are_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shown = {block for block in blocks if "PLUGIN = " in block}
    toys = {
        path.read_text(encoding="utf-8") for path in (ROOT / "tests/plugins/toys").rglob("toy.py")
    }
    assert len(shown) == 2
    assert shown <= toys


def test_contributing__names_every_kind_with_its_folder_and_class() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w/]+)` \| `(\w+)`", TEXT, re.MULTILINE)
    kinds = {kind: (folder, of) for kind, folder, of in rows}
    found = {
        each.group.removeprefix("cytofm."): (
            each.package.removeprefix("cytofm_cli.").replace(".", "/"),
            each.plugin.__name__,
        )
        for each in vars(registry).values()
        if isinstance(each, registry.Registry)
    }
    assert kinds == found
