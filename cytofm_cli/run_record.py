"""The config.toml of a RUN folder, which `pretrain`, `evaluate` and `mil` write and compare."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.config import differences, to_toml

Record = Mapping[str, Mapping[str, Any]]


def to_text(record: Record) -> str:
    """Write the sections of a record as TOML."""
    return to_toml(
        {
            name: make_dataclass(name, list(section), frozen=True)(*section.values())
            for name, section in record.items()
        }
    )


def changes(found: Record, wanted: Record) -> list[str]:
    """Name the settings in which a record that was read differs from one that is asked for."""
    read_back = tomllib.loads(to_text(wanted))
    flat = [
        {f"{name}.{key}": value for name, section in of.items() for key, value in section.items()}
        for of in (found, read_back)
    ]
    return differences(*flat)


def write_text(path: Path, text: str) -> None:
    """Write a file, visible only when complete."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
