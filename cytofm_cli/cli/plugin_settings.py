"""`--set`, `--tune`, `--stain`: settings of the plug-in that a command runs, whatever they are."""

from __future__ import annotations

from typing import Annotated

import typer

from cytofm_cli.config import Layer
from cytofm_cli.errors import UsageError

SetWords = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the plug-in; repeat for more."),
]
StainWord = Annotated[
    str | None,
    typer.Option(
        "--stain",
        metavar="auto|pap|mgg|he|fluorescence",
        help="What nuclei are stained with; the same as --set stain=….",
    ),
]
TuneWords = Annotated[
    list[str] | None,
    typer.Option(
        "--tune",
        metavar="KEY=VALUE,VALUE",
        help="Choose a setting of recipe or head within each training part; repeat for more.",
    ),
]


def parse_settings(words: list[str] | None) -> Layer:
    """Parse the KEY=VALUE words of `--set`."""
    settings = Layer(form="--set {key}={value}", place="--set: ")
    for word in words or []:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word}: must be KEY=VALUE.")
        settings[key.strip()] = value.strip()
    return settings


def with_stain(settings: Layer, stain: str | None) -> Layer:
    """Add what `--stain` says to the settings of a detector.

    Raises:
        UsageError: `--set stain=` says something else.
    """
    if stain is not None and settings.setdefault("stain", stain) != stain:
        raise UsageError(f"--stain {stain}: --set stain={settings['stain']} says otherwise.")
    return settings


def parse_tune(words: list[str] | None) -> dict[str, list[str]]:
    """Parse the KEY=VALUE,VALUE words of `--tune`."""
    values: dict[str, list[str]] = {}
    for word in words or []:
        key, _, listed = word.partition("=")
        values[key.strip()] = [part.strip() for part in listed.split(",") if part.strip()]
        if not key.strip() or not values[key.strip()]:
            raise UsageError(f"--tune {word}: must be KEY=VALUE,VALUE.")
    return values
