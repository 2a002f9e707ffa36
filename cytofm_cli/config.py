"""Step configurations: one frozen dataclass a step, declared once, used everywhere.

A field declared with `option` carries its help, range and choices. From it come the flag
(`cytofm_cli.cli.options`), the key of the TOML file, the `CYTOFM_<STEP>_<FIELD>` variable
and the record in the store. Order: defaults < file < environment < flags.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from cytofm_cli.errors import UsageError

C = TypeVar("C")


def option(
    default: Any,
    help: str,  # noqa: A002 - the word the field uses
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    affects_result: bool = True,
    short: str | None = None,
    former: str | None = None,
) -> Any:
    """Declare a field of a step's configuration.

    Args:
        default: the default; give its reason in `help` or a comment.
        help: one line for `--help`, with the unit.
        choices: the closed list of values, if there is one.
        low: smallest value allowed.
        high: largest value allowed.
        affects_result: False for speed and resource settings; these are left out of the
            hash that decides whether a finished step may be reused.
        short: one-letter flag, with its dash.
        former: name that the setting had before; still taken, with a warning.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "low": low,
            "high": high,
            "affects_result": affects_result,
            "short": short,
            "former": former,
        },
    )


class Layer(dict[str, Any]):
    """Settings from one place, which knows how a setting is written there.

    Args:
        values: the settings.
        form: how one is written; may name {section}, {key}, {variable}, {flag} and {value}.
        place: what to say before the section of a setting that is not there, e.g. the file.
    """

    def __init__(
        self,
        values: Mapping[str, Any] | None = None,
        form: str = "[{section}] {key} = {value!r}",
        place: str = "",
    ) -> None:
        super().__init__(values or {})
        self.form, self.place = form, place

    def written(self, section: str, key: str) -> str:
        """Return a setting as the user wrote it."""
        return self.form.format(
            section=section,
            key=key,
            variable=variable(section, key),
            flag=f"--{key}".replace("_", "-"),
            value=self[key],
        )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file: one table a step."""
    try:
        with path.open("rb") as handle:
            return tomllib.load(handle)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error}).") from error


# The tables of a configuration file: the sections of all commands.
SECTIONS = ("run", "tile", "detect", "views", "pretrain", "embed", "evaluate", "mil", "export")


def check_sections(tables: Mapping[str, Any], path: Path) -> None:
    """Refuse a table that belongs to no command: a misspelt one would go unseen."""
    for name in tables:
        if name not in SECTIONS:
            close = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f"did you mean [{close[0]}]?" if close else f"known: {', '.join(SECTIONS)}"
            raise UsageError(f"{path}: no command has a table [{name}].", hint=hint)


def variable(section: str, name: str) -> str:
    """Return the environment variable of a setting or of a flag."""
    return f"CYTOFM_{section}_{name}".upper().replace("-", "_")


def former_names(cls: type) -> dict[str, str]:
    """Return the names that settings had before: what they are called now."""
    fields = dataclasses.fields(typing.cast("Any", cls))
    return {f.metadata["former"]: f.name for f in fields if f.metadata.get("former")}


def from_environment(cls: type, section: str) -> Layer:
    """Collect the variables that are set, of the fields of `cls`."""
    found = {
        name: os.environ[variable(section, name)]
        for name in (*field_types(cls), *former_names(cls))
        if variable(section, name) in os.environ
    }
    return Layer(found, form="{variable}={value}")


def resolve(cls: type[C], section: str, *layers: Mapping[str, Any]) -> C:
    """Merge `layers` (later wins) over the defaults of `cls` and validate.

    Args:
        cls: a configuration dataclass.
        section: its name.
        layers: settings by name; a `Layer` is blamed for what is wrong in it.

    Raises:
        UsageError: unknown key, wrong type, value outside its range or choices.
    """
    kinds = field_types(cls)
    merged: dict[str, Any] = {}
    written: dict[str, str] = {}
    for layer in layers:
        named = layer if isinstance(layer, Layer) else Layer(layer)
        for raw_key, value in layer.items():
            key = raw_key.replace("-", "_")
            if key not in kinds:
                close = difflib.get_close_matches(key, kinds, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(kinds)}"
                raise UsageError(f"{named.place}[{section}] has no setting {raw_key!r}.", hint=hint)
            written[key] = named.written(section, raw_key)
            merged[key] = _coerce(written[key], value, kinds[key])
    config = cls(**merged)
    for field in dataclasses.fields(typing.cast("Any", cls)):
        value = getattr(config, field.name)
        _check(written.get(field.name, f"[{section}] {field.name} = {value!r}"), field, value)
    return config


def field_types(cls: type) -> dict[str, Any]:
    """Return the resolved type of every field of a configuration dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast("Any", cls))}


def base_type(kind: Any) -> tuple[type, bool]:
    """Split `X | None` into (X, True); return (X, False) for a plain type."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return typing.cast("type", inner[0]), True
    return typing.cast("type", kind), False


def as_record(config: Any, *, results_only: bool = False) -> dict[str, Any]:
    """Return a configuration as plain JSON values, in field order.

    Args:
        config: a configuration dataclass.
        results_only: leave out the settings that cannot change a stored number.
    """
    record = {}
    for field in dataclasses.fields(config):
        if results_only and not field.metadata.get("affects_result", True):
            continue
        value = getattr(config, field.name)
        record[field.name] = str(value) if isinstance(value, Path) else value
    return record


def digest(record: Mapping[str, Any]) -> str:
    """Return a short hash of a configuration record; key order does not matter."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ: `key: old → new`; what is not set is the default."""

    def shown(of: Mapping[str, Any], key: str) -> str:
        # Versions were not recorded before there was a second one.
        unset = "1" if key == "version" else "default"
        return unset if of.get(key) is None else repr(of[key])

    return [
        f"{key}: {shown(old, key)} → {shown(new, key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def to_toml(sections: Mapping[str, Any]) -> str:
    """Write configurations as TOML tables; settings that are None become comments."""
    blocks = []
    for name, config in sections.items():
        lines = [f"[{name}]"]
        for key, value in as_record(config).items():
            lines.append(f"# {key} = (not set)" if value is None else f"{key} = {_toml(value)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _coerce(written: str, value: Any, kind: Any) -> Any:
    target, optional = base_type(kind)
    if value is None or (optional and value in ("none", "auto") and target is not str):
        if optional:
            return None
        raise UsageError(f"{written} must not be empty.")
    try:
        if target is bool:
            return _boolean(value)
        if target is float and not isinstance(value, bool):
            return float(value)
        if target is int and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if target is Path:
            return Path(value)
        if target is str and isinstance(value, str):
            return value
        if typing.get_origin(target) is tuple:
            return _tuple(value, typing.get_args(target)[0])
    except (TypeError, ValueError):
        pass
    name = getattr(target, "__name__", str(target))
    raise UsageError(f"{written} is not of type {name}.")


def _tuple(value: Any, item: type) -> tuple[Any, ...]:
    items = value.split(",") if isinstance(value, str) else value
    return tuple(item(part.strip() if isinstance(part, str) else part) for part in items)


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if str(value).lower() not in words:
        raise ValueError(value)
    return words[str(value).lower()]


def _check(written: str, field: dataclasses.Field[Any], value: Any) -> None:
    if value is None:
        return
    choices, low, high = (field.metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {close[0]}?" if close else None
        raise UsageError(f"{written}: choose {', '.join(choices)}.", hint=hint)
    for limit, wrong, word in (
        (low, low is not None and not value >= low, "at least"),
        (high, high is not None and not value <= high, "at most"),
    ):
        if wrong:
            raise UsageError(f"{written} must be {word} {limit}.")
