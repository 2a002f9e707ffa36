"""Read the Features of a GeoJSON file piece by piece, whatever its size and layout.

A piece is cut behind a Feature, at a `},{` that orjson confirms: what comes before it is a whole
list only if the cut lies at the top of the list. So a slide of a million nuclei is never in memory
as Python's objects, and QuPath's NaN, which is no JSON, is read as Python does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

from cytofm_cli.errors import InputError

# A file up to here is read whole; pieces of a larger one are this long.
PIECE_BYTES: Final = 2**20
_BOM: Final = b"\xef\xbb\xbf"
_HEAD: Final = re.compile(rb'"features"\s*:\s*\[')
_LIST: Final = re.compile(rb"\s*\[")
_FEATURE: Final = re.compile(rb'\}(\s*,\s*)\{\s*"type"\s*:\s*"Feature"')
_OBJECT: Final = re.compile(rb"\}(\s*,\s*)\{")
# What Python's reader takes and orjson does not: NaN and Infinity, halves of surrogate pairs.
_LENIENT: Final = (b"NaN", b"Infinity", b"\\ud", b"\\uD")
_TAIL: Final = 2**20  # where a cut is looked for, from the end of a piece
_TRIES: Final = 4
_FAULTS: Final = (ValueError, RecursionError)
_EXPORT: Final = "in QuPath: File, Export objects as GeoJSON, not compressed"
# By suffix and by first bytes: what holds objects of QuPath and is no GeoJSON yet.
_WRAPPED: Final = {
    ".gz": "unpack it with gunzip", ".zip": "unpack it", ".qpdata": _EXPORT, ".qpproj": _EXPORT,
}  # fmt: skip
_NO_JSON: Final = (
    (b"\x1f\x8b", "is compressed by gzip", "unpack it with gunzip"),
    (b"PK\x03\x04", "is a zip file", "unpack it"),
    (b"\xac\xed\0\x05", "is a data file of QuPath's own", _EXPORT),
    (b"\xff\xfe", "is text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "is text in UTF-16", "save it as UTF-8"),
)


def hint_for(suffix: str, readable: Sequence[str]) -> str:
    """Return what to do about a file of a suffix that nothing reads."""
    return _WRAPPED.get(suffix, f"one of {', '.join(readable)}")


class Pieces:
    """The pieces of a file.

    Attributes:
        content: the file without the Features of all pieces but the last; known at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: Any = None

    def __iter__(self) -> Iterator[Any]:
        """Yield what stands where the Features should, in lists; of a small file, all at once.

        Raises:
            InputError: the file cannot be read, or is no JSON.
        """
        try:
            with self.path.open("rb") as file:
                yield from self._read(file)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}).") from error
        except _FAULTS as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: not valid JSON ({error}).") from error

    def _read(self, file: BinaryIO) -> Iterator[Any]:
        data = file.read(PIECE_BYTES).removeprefix(_BOM)
        for magic, what, hint in _NO_JSON:
            if data.startswith(magic):
                raise InputError(f"{self.path}: {what}.", hint=hint)
        if not data.strip():
            raise InputError(f"{self.path}: is empty.", hint=_EXPORT)
        head = _head(data) if len(data) >= PIECE_BYTES - len(_BOM) else None
        if head is None:  # short, or nothing that could be cut
            self.content = _parse(data + file.read())
            yield features_of(self.content)
            return
        rest, length = data[len(head) :], PIECE_BYTES
        while more := file.read(max(PIECE_BYTES, length - len(rest))):
            rest += more
            piece, rest = _cut(rest)
            if piece is None:
                length += len(rest)  # one Feature may be longer than a piece
                continue
            length = PIECE_BYTES
            yield piece
        self.content = _parse(head + rest)
        yield features_of(self.content)


def features_of(content: Any) -> Any:
    """Return what stands where the Features of a file should."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        return content.get("features")
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    return content


def _head(data: bytes) -> bytes | None:
    """Return the start of a file up to its first Feature; None if there is no such place."""
    if start := _LIST.match(data):
        return start[0]
    for found in _HEAD.finditer(data):
        head = data[: found.end()]
        try:
            if _parse(head + b"]}").get("features") == []:
                return head
        except (*_FAULTS, AttributeError):
            continue  # within another object, or within a text
    return None


def _cut(data: bytes) -> tuple[list[Any] | None, bytes]:
    """Return the Features of a piece and the bytes behind them; (None, data) if none are whole."""
    for pattern in (_FEATURE, _OBJECT):
        places = [match.span(1) for match in pattern.finditer(data, max(0, len(data) - _TAIL))]
        for end, start in reversed(places[-_TRIES:]):
            try:
                return _parse(b"[" + data[:end] + b"]", patient=False), data[start:]
            except _FAULTS:
                continue  # within a Feature
    return None, data


def _parse(data: bytes, *, patient: bool = True) -> Any:
    """Parse JSON as Python's own reader does; not patient: only if there is hope.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    with _no_collections():
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            if not patient and not any(word in data for word in _LENIENT):
                raise
            return json.loads(data.decode("utf-8-sig"))


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for circles while a piece is parsed, which doubles the time.

    Forty lists a nucleus set it off every fifteen nuclei, and JSON has no circles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
