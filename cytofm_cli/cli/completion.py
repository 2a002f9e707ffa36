"""The values that a shell offers for an option; nothing here imports torch but `--set KEY`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cytofm_cli import registry
from cytofm_cli.errors import CytofmError

Values = Callable[[Mapping[str, Any]], Iterable[str]]


def offer(command: str, option: str, metavar: str | None) -> Callable[..., list[str]] | None:
    """Return what completes an option of a command, None if nothing is known of its values.

    Args:
        command: last word of the command.
        option: its longest flag, without dashes.
        metavar: its metavar; `a|b|c` are the values themselves.
    """
    values = _VALUES.get(f"{command} {option}") or _VALUES.get(option)
    if metavar and "|" in metavar and metavar.islower():
        choices = metavar.split("|")
        values = lambda _: choices  # noqa: E731
    if values is None:
        return None

    def complete(context: Any, _parameter: Any, incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")  # lists are comma-separated
        words: Iterable[str] = ()
        with contextlib.suppress(CytofmError):  # a plug-in that is not there has no settings
            words = values(context.params)
        return [f"{before}{comma}{word}" for word in words if word.startswith(last)]

    return complete


def _encoders(_: Mapping[str, Any]) -> list[str]:
    from cytofm_cli.encoders import catalogue

    return [row.name.removesuffix("<name>") for row in catalogue.describe()]


def _names(kind: registry.Registry[Any], *more: str) -> Values:
    return lambda _: [*more, *kind.words()]


def _keys(option: str, kind: registry.Registry[Any], default: str) -> Values:
    """Offer the settings of the plug-in that `option` has named before `--set`."""

    def keys(given: Mapping[str, Any]) -> list[str]:
        config = kind.load(given.get(option) or default).config
        fields = dataclasses.fields(config) if config is not None else ()
        return [f"{field.name}=" for field in fields]

    return keys


_VALUES: dict[str, Values] = {
    "encoder": _encoders,
    "pretrain encoder": lambda _: [
        "sr-vit-nano",
        "sr-vit-tiny",
        "sr-vit-small",
        "sr-vit-base",
        "timm/",
    ],
    "detector": _names(registry.detectors),
    "method": _names(registry.mil_methods),
    "benchmark method": _names(registry.mil_methods, "all"),
    "pretrain method": _names(registry.pretrain_methods),
    "export to": _names(registry.exporters),
    "reader": _names(registry.readers, "auto"),
    "device": lambda _: ["auto", "cpu", "cuda", "cuda:0"],
    "train device": lambda _: ["cpu", "cuda", "cuda:0"],
    "benchmark device": lambda _: ["cpu", "cuda", "cuda:0"],
    "unit": lambda _: ["tile", "cell"],
    "detect set": _keys("detector", registry.detectors, "classical"),
    "train set": _keys("method", registry.mil_methods, "abmil"),
    "pretrain set": _keys("method", registry.pretrain_methods, "dino"),
}
