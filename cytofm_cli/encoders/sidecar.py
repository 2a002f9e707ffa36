"""What a user states about a weight file in a file beside it: `weights.pth.toml`.

A pickle says nothing of how images are prepared, at which resolution it was trained, or under
what licence it comes. The keys are those of the catalogue: input_px, resize_px, mpp, mean, std,
interpolation, pooling, licence; and, so that the file alone names an encoder, `arch` (a name that
`--encoder` knows, or `timm/<name>`) with the table [builder] of its network's settings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

from cytofm_cli.encoders.base import Interpolation
from cytofm_cli.errors import WeightsError
from cytofm_cli.work.files import read_plain

SUFFIX: Final = ".toml"
_POOLINGS: Final = ("cls", "cls+mean", "mean", "pool")


def _length(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value > 0 else None


def _triple(value: Any) -> tuple[float, ...] | None:
    fits = isinstance(value, list) and len(value) == 3
    fits = fits and all(type(x) in (int, float) and 0 <= x <= 1 for x in value)
    return tuple(map(float, value)) if fits else None


def _std(value: Any) -> tuple[float, ...] | None:
    std = _triple(value)
    return std if std and min(std) > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _one_of(choices: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: value if value in choices else None


def _settings(value: Any) -> dict[str, Any] | None:
    kinds = (int, float, str, bool)
    fits = isinstance(value, dict) and all(type(x) in kinds for x in value.values())
    return value if fits else None


_KINDS: Final[dict[str, tuple[Callable[[Any], Any], str]]] = {
    "input_px": (_length, "a number of pixels"),
    "resize_px": (_length, "a number of pixels"),
    "mpp": (_number, "µm/px"),
    "mean": (_triple, "three numbers from 0 to 1"),
    "std": (_std, "three numbers above 0, up to 1"),
    "interpolation": (_one_of(get_args(Interpolation)), " or ".join(get_args(Interpolation))),
    "pooling": (_one_of(_POOLINGS), ", ".join(_POOLINGS)),
    "licence": (_text, "a text"),
    "arch": (_text, "the name of an encoder"),
    "builder": (_settings, "a table of numbers and words"),
}
NETWORK: Final = ("arch", "builder")  # what the file is, not how images are prepared for it


def sidecar(weights: Path) -> dict[str, Any]:
    """Read what the file beside a weight file states; {} without one.

    Fields of `EncoderSpec`, and of the network itself those in `NETWORK`.

    Raises:
        WeightsError: unreadable, an unknown key, or a value of the wrong kind.
    """
    path = weights.with_name(weights.name + SUFFIX)
    try:
        content = tomllib.loads(read_plain(path).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as TOML ({error}).") from error
    if "license" in content:
        content["licence"] = content.pop("license")
    stated = {}
    for key, value in content.items():
        if key not in _KINDS:
            raise WeightsError(f"{path}: unknown key {key!r}.", hint=f"known: {', '.join(_KINDS)}")
        parse, wanted = _KINDS[key]
        stated[key] = parse(value)
        if stated[key] is None:
            raise WeightsError(f"{path}: {key} = {value!r}: must be {wanted}.")
    return stated
