"""What callers give: paths of any kind, a configuration or single settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cytofm_cli.config import Layer, Settings, resolve
from cytofm_cli.errors import UsageError

C = TypeVar("C", bound=Settings)
PathLike = str | os.PathLike[str]
Paths = PathLike | Iterable[PathLike]


def words_of(paths: Paths | None) -> list[str]:
    """Return one path or several as a list of words."""
    if paths is None:
        return []
    if isinstance(paths, str | os.PathLike):
        return [os.fspath(paths)]
    return [os.fspath(path) for path in paths]


def path_of(path: PathLike | None) -> Path | None:
    """Return a path that may be left out."""
    return None if path is None else Path(path)


def config_of(cls: type[C], config: C | None, settings: Mapping[str, Any], function: str) -> C:
    """Return the configuration of a call, checked.

    Args:
        cls: its class.
        config: as a whole; None: made of `settings`.
        settings: single settings, by name.
        function: called so in messages.

    Raises:
        UsageError: both are given; an unknown setting, or a value of a wrong type or range.
    """
    section = cls.SECTION
    if config is None:
        values = Layer(settings, form="{key}={value!r}", place=f"{function}(): ")
        return resolve(cls, section, values)
    if settings:
        raise UsageError(
            f"{function}(): a configuration and single settings ({', '.join(settings)}).",
            hint=f"put them into {cls.__name__}(…)",
        )
    if not isinstance(config, cls):
        raise UsageError(f"{function}(): {config!r} is no {cls.__name__}.")
    return config


def plugin_settings(settings: Mapping[str, Any] | None, name: str) -> Layer:
    """Return the settings of a plug-in, which are blamed under the name of their parameter."""
    if isinstance(settings, Layer):
        return settings
    return Layer(settings, form=name + "[{key!r}] = {value!r}", place=f"{name}: ")
