"""The config.toml of a RUN folder, which `pretrain`, `evaluate` and `mil` write and compare."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import make_dataclass
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


def changes(former: Record, wanted: Record) -> list[str]:
    """Name the settings in which a record that was read differs from one that is asked for.

    What a later section states, it states resolved: the learning rate of a recipe counts, not
    whether it was typed or came from the preset.
    """
    read_back = tomllib.loads(to_text(wanted))
    names = list(read_back)
    flat: list[dict[str, Any]] = []
    for record in (former, read_back):
        flat.append({})
        for name, section in record.items():
            later = names[names.index(name) + 1 :] if name in names else []
            resolved = {k for of in later for k in {*read_back[of]} & {*former.get(of, {})}}
            flat[-1] |= {f"{name}.{k}": v for k, v in section.items() if k not in resolved}
    return differences(*flat)
