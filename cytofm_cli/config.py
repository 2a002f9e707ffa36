"""Step configurations: one frozen dataclass a step, declared once, used everywhere.

A configuration is a frozen dataclass that derives from `Settings`; a field declared with
`option` carries its help and range, its annotation says the type and, as a `Literal`, the
choices. From it come the flag (`cytofm_cli.cli.options`), the key of the TOML file, the
`CYTOFM_<STEP>_<FIELD>` variable and the record in the store. Order: defaults < file <
environment < flags. However it is made, a configuration checks itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import os
import sys
import tomllib
import typing
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, TextIO, TypeVar

from cytofm_cli.errors import UsageError
from cytofm_cli.kinds import Kind, kind_of
from cytofm_cli.named_files import read_bounded

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


def option(
    default: T,
    help: str,  # noqa: A002 - the word the field uses
    *,
    low: float | None = None,
    high: float | None = None,
    affects_result: bool = True,
    short: str | None = None,
    former: str | None = None,
) -> T:
    """Declare a field of a step's configuration.

    Args:
        default: the default; give its reason in `help` or a comment.
        help: one line for `--help`, with the unit.
        low: smallest value allowed, also of each of several.
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
            "low": low,
            "high": high,
            "affects_result": affects_result,
            "short": short,
            "former": former,
        },
    )


# How the settings that `resolve` is making a configuration of were written, by name.
_written: ContextVar[tuple[type, Mapping[str, str]] | None] = ContextVar("_written", default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all configurations: type, range, choices and conflicts are checked when made.

    Attributes:
        SECTION: name of its table in files and of its variables; "" for plug-ins, which are
            called by their own names.

    Raises:
        UsageError: a value of the wrong type, not finite, outside its range or choices, or two
            that do not go together; names the setting as it was written.
    """

    SECTION: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind, value = kinds_of(type(self))[field.name], getattr(self, field.name)
            try:
                taken = kind.take(value)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{self.said(field.name)} is not of type {kind}.") from error
            for item in kind.items(taken):
                self._check(field, kind, item)
            object.__setattr__(self, field.name, taken)
        self.check()

    def check(self) -> None:
        """Refuse settings that do not go together; subclasses say which.

        Raises:
            UsageError: there are some.
        """

    def said(self, name: str) -> str:
        """Return a setting as it was written: as a flag, in a file, in Python."""
        value, written = getattr(self, name), _written.get()
        value = str(value) if isinstance(value, Path) else value
        if written is None or written[0] is not type(self):
            return f"{type(self).__name__}({name}={value!r})"
        return written[1].get(name, f"{name} = {value!r}")

    def _check(self, field: dataclasses.Field[Any], kind: Kind, value: Any) -> None:
        """Refuse a value outside of its choices or range, or none at all (nan)."""
        low, high = field.metadata.get("low"), field.metadata.get("high")
        if kind.choices and value not in kind.choices:
            close = difflib.get_close_matches(value, kind.choices, n=1)
            hint = f"did you mean {close[0]}?" if close else None
            raise UsageError(
                f"{self.said(field.name)}: choose {', '.join(kind.choices)}.", hint=hint
            )
        if low is not None and not value >= low:
            raise UsageError(f"{self.said(field.name)} must be at least {low}.")
        if high is not None and not value <= high:
            raise UsageError(f"{self.said(field.name)} must be at most {high}.")
        if kind.base is float and not math.isfinite(value):
            raise UsageError(f"{self.said(field.name)} must be a finite number.")


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


STDIN = Path("-")
_MOST_BYTES = 16 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file: one table a step; `-` is standard input."""
    try:
        if path == STDIN:
            return tomllib.loads(_read_whole(sys.stdin))
        return tomllib.loads(read_bounded(path, _MOST_BYTES).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error}).") from error


@functools.lru_cache(maxsize=1)
def _read_whole(stream: TextIO) -> str:
    """Read standard input once, whoever asks for its tables."""
    return stream.buffer.read().decode()


# The tables of a configuration file: the sections of all commands.
SECTIONS = (
    *("run", "simulate", "tile", "detect", "views", "pack", "pretrain", "embed", "evaluate"),
    *("evaluate_robustness", "evaluate_retention", "export", "mil", "mil_score", "mil_compare"),
    *("cells", "cells_apply", "cells_count", "attention", "heatmap", "report", "gallery", "view"),
    *("generate", "generate_sample", "generate_evaluate"),
)


def check_sections(tables: Mapping[str, Any], path: Path) -> None:
    """Refuse a table that belongs to no command: a misspelt one would go unseen.

    The settings of a method of pretraining stand in a table of its name.
    """
    from cytofm_cli.registry import pretrain_methods

    for name in tables:
        if name not in SECTIONS and pretrain_methods.key(name) not in pretrain_methods.names():
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
    values = {
        name: os.environ[variable(section, name)]
        for name in (*field_types(cls), *former_names(cls))
        if variable(section, name) in os.environ
    }
    return Layer(values, form="{variable}={value}")


def resolve(cls: type[S], section: str, *layers: Mapping[str, Any]) -> S:
    """Merge `layers` (later wins) over the defaults of `cls`; values may be text.

    Args:
        cls: a configuration dataclass.
        section: its name.
        layers: settings by name; a `Layer` is blamed for what is wrong in it.

    Raises:
        UsageError: unknown key, wrong type, value outside its range or choices, a conflict.
    """
    if not issubclass(cls, Settings):
        raise UsageError(
            f"the settings of {section} ({cls.__name__}) do not check themselves.",
            hint="derive the class from cytofm_cli.config.Settings",
        )
    kinds = kinds_of(cls)
    merged: dict[str, Any] = {}
    written = {f.name: f"[{section}] {f.name} = {f.default!r}" for f in dataclasses.fields(cls)}
    for layer in layers:
        named = layer if isinstance(layer, Layer) else Layer(layer)
        for raw_key, value in layer.items():
            key = raw_key.replace("-", "_")
            if key not in kinds:
                close = difflib.get_close_matches(key, kinds, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(kinds)}"
                raise UsageError(f"{named.place}[{section}] has no setting {raw_key!r}.", hint=hint)
            written[key] = named.written(section, raw_key)
            merged[key] = _read(written[key], value, kinds[key])
    token = _written.set((cls, written))
    try:
        return cls(**merged)
    finally:
        _written.reset(token)


def _read(written: str, value: Any, kind: Kind) -> Any:
    if value is None and not kind.optional:
        raise UsageError(f"{written} must not be empty.")
    try:
        return kind.read(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{written} is not of type {kind}.") from error


def field_types(cls: type) -> dict[str, Any]:
    """Return the annotation of every field of a configuration dataclass, in order."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast("Any", cls))}


def kinds_of(cls: type) -> Mapping[str, Kind]:
    """Return what every field of a configuration dataclass holds, in order."""
    return _kinds(cls)


@functools.cache
def _kinds(cls: Any) -> Mapping[str, Kind]:
    return {name: kind_of(annotation) for name, annotation in field_types(cls).items()}


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
    # TOML's strings are JSON's, but that it will not have DEL as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
