"""What a setting may hold: from the annotation of a field to its checks.

Two ways lead into a setting. `Kind.read` takes what people write in files, variables and flags,
where every value may be text. `Kind.take` takes what Python code gives, and refuses text for
numbers; only what means the same is turned: int for float, str for Path, list for tuple.
"""

from __future__ import annotations

import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Kind:
    """The type of a setting.

    Attributes:
        base: int, float, bool, str or Path: of the value, or of each of many.
        many: the setting is a tuple of such values.
        optional: None stands for "not set".
        choices: the closed list of values, () if there is none.
    """

    base: type
    many: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"tuple[{self.base.__name__}, ...]" if self.many else self.base.__name__

    def read(self, value: Any) -> Any:
        """Return a value that was written in a file, a variable or a flag.

        Raises:
            TypeError, ValueError: it is none of this kind.
        """
        if self._is_unset(value):
            return None
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        return self._each(_READ[self.base], items, value)

    def take(self, value: Any) -> Any:
        """Return a value that Python code gave.

        Raises:
            TypeError, ValueError: it is none of this kind.
        """
        if value is None and self.optional:
            return None
        if self.many and not isinstance(value, (tuple, list)):
            raise TypeError(value)
        return self._each(_TAKE[self.base], value, value)

    def items(self, value: Any) -> Iterable[Any]:
        """Yield what range and choices are about."""
        if value is None:
            return ()
        return typing.cast("Iterable[Any]", value) if self.many else (value,)

    def _each(self, turn: Callable[[Any], Any], items: Any, value: Any) -> Any:
        return tuple(turn(item) for item in items) if self.many else turn(value)

    def _is_unset(self, value: Any) -> bool:
        if value is None and not self.optional:
            raise TypeError(value)
        # Where a setting is text, "auto" and "none" may be words of its own.
        words = ("none", "auto") if self.base is not str or self.many else ()
        return value is None or (self.optional and isinstance(value, str) and value in words)


def kind_of(annotation: Any) -> Kind:
    """Read the annotation of a field: `int`, `Literal["a", "b"] | None`, `tuple[float, ...]`."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union) and type(None) in inside:
        (inner,) = (arg for arg in inside if arg is not type(None))
        kind = kind_of(inner)
        return Kind(kind.base, kind.many, optional=True, choices=kind.choices)
    if origin is tuple and len(inside) == 2 and inside[1] is ...:
        item = kind_of(inside[0])
        return Kind(item.base, many=True, choices=item.choices)
    if origin is Literal:
        return Kind(str, choices=inside)
    if annotation in _READ:
        return Kind(annotation)
    raise TypeError(f"a setting cannot be of type {annotation}")


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in _WORDS:
        raise ValueError(value)
    return _WORDS[str(value).lower()]


def _read_int(value: Any) -> int:
    number = float(value)
    if isinstance(value, bool) or not number.is_integer():
        raise ValueError(value)
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def _take_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _take_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(value)
    return int(value)


def _take_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(value)
    return float(value)


def _take_str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return str(value)


def _take_path(value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(value)
    return Path(value)


_READ: dict[Any, Callable[[Any], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _take_str,
    Path: _take_path,
}
_TAKE: dict[Any, Callable[[Any], Any]] = {
    bool: _take_bool,
    int: _take_int,
    float: _take_float,
    str: _take_str,
    Path: _take_path,
}
