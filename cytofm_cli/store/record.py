"""A frozen dataclass that comes from JSON and goes back to the same JSON.

Reading a record and writing it again gives the same keys in the same order: keys of newer versions
are kept in `other`, and what older versions did not write has the default of its field and is not
added.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from cytofm_cli.errors import StoreError

LAST = ("time_utc", "id")  # stored behind a step's own facts
_NOT_STORED = frozenset({"other", "keys"})


def if_said() -> Any:
    """Declare a field that is left out of the JSON while it is None, instead of being null."""
    return field(default=None, metadata={"if_said": True})


@dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen dataclass that comes from JSON and goes back to the same JSON.

    Attributes:
        other: what has no field: facts of a plug-in, keys of newer versions.
        keys: as they were stored, in order; () for a record that is new.
    """

    _other_before: ClassVar[str | None] = None  # where `other` goes in a new record; None: last

    other: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], where: str = "record") -> Self:
        """Read a record.

        Args:
            stored: the JSON.
            where: what a message starts with: the store and the step.

        Raises:
            StoreError: a key is missing that every version wrote, or holds what it cannot hold.
        """
        if not isinstance(stored, Mapping):
            raise StoreError(f"{where} is damaged.", hint="make it again with --overwrite.")
        layout = _layout_of(cls)  # type: ignore[arg-type]  # a class hashes
        missing = [name for name in layout.needed if name not in stored]
        if missing:
            raise StoreError(
                f"{where} is damaged: it does not say {', '.join(missing)}.",
                hint="make it again with --overwrite.",
            )
        said, other = {}, {}
        for name, value in stored.items():
            if name not in layout.kinds:
                other[name] = value
                continue
            kinds, tuples = layout.kinds[name]
            if not isinstance(value, kinds) or (type(value) is list and not _fits(value, tuples)):
                raise StoreError(
                    f"{where} is damaged: {name} is {str(value)[:40]!r}.",
                    hint="make it again with --overwrite.",
                )
            said[name] = _frozen(value)
        return cls(**said, other=other, keys=tuple(stored))

    def to_json(self) -> dict[str, Any]:
        """Return the record as it is stored."""
        layout = _layout_of(type(self))  # type: ignore[arg-type]  # a class hashes
        before, after = layout.order
        order = dict.fromkeys([*self.keys, *before, *self.other, *after])
        told = {
            field.name: getattr(self, field.name) for field in layout.fields if self._is_told(field)
        }
        values = {**self.other, **told}
        return {key: _thawed(values[key]) for key in order if key in values}

    def _is_told(self, field: dataclasses.Field[Any]) -> bool:
        value = getattr(self, field.name)
        if self.keys:  # what an old record did not say stays unsaid
            return field.name in self.keys or value != field.default
        return value is not None or not field.metadata.get("if_said")


@dataclass(frozen=True)
class _Layout:
    """What a class of records declares.

    Attributes:
        fields: those that are stored.
        needed: of those that every version wrote.
        kinds: by name, what JSON may hold under it, and the tuples that a list there may be. Null,
            and nothing, stand for what need not be said.
        order: names as a new record has them, before and behind `other`.
    """

    fields: tuple[dataclasses.Field[Any], ...]
    needed: tuple[str, ...]
    kinds: Mapping[str, tuple[tuple[type, ...], tuple[_Tuple, ...]]]
    order: tuple[list[str], list[str]]


# The kinds of a tuple's parts, and whether there may be any number of the first.
_Tuple = tuple[tuple[tuple[type, ...], ...], bool]


@functools.cache  # of each class once: there may be thousands of stores
def _layout_of(cls: Any) -> _Layout:
    hints = get_type_hints(cls)
    fields = tuple(field for field in dataclasses.fields(cls) if field.name not in _NOT_STORED)
    unsaid = {field.name: () if _is_needed(field) else (type(None),) for field in fields}
    names = sorted(unsaid, key=lambda name: name in LAST)
    at = names.index(cls._other_before) if cls._other_before else len(names)
    return _Layout(
        fields=fields,
        needed=tuple(field.name for field in fields if _is_needed(field)),
        kinds={
            name: ((*_kinds(hints[name]), *unsaid[name]), tuple(_tuples(hints[name])))
            for name in unsaid
        },
        order=(names[:at], names[at:]),
    )


def _kinds(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(kind for each in get_args(hint) for kind in _kinds(each))
    plain: type = get_origin(hint) or hint
    if issubclass(plain, Record):
        plain = Mapping
    # A dict before any Mapping, which takes longer to ask for.
    return {float: (int, float), tuple: (list, tuple), Mapping: (dict, Mapping)}.get(
        plain, (plain,)
    )


def _tuples(hint: Any) -> Iterator[_Tuple]:
    """Give the tuples that a field is declared with."""
    for declared in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        if get_origin(declared) is tuple:
            parts = get_args(declared)
            endless = parts[-1] is Ellipsis
            yield tuple(_kinds(part) for part in (parts[:1] if endless else parts)), endless


def _fits(values: Sequence[Any], tuples: Sequence[_Tuple]) -> bool:
    """Tell whether a list has as many parts, and such, as one of the tuples."""
    for parts, endless in tuples:
        wanted = parts * len(values) if endless else parts
        pairs = zip(values, wanted, strict=False)
        if len(wanted) == len(values) and all(isinstance(value, kinds) for value, kinds in pairs):
            return True
    return False


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    no_default = field.default is dataclasses.MISSING
    return no_default and field.default_factory is dataclasses.MISSING


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
