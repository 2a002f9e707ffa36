"""Mutations of XML, JSON, tables and TOML."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

from .of_any import BYTES, DEEP, NUMBERS, VALUES


def xml(data: bytes, rng: random.Random) -> bytes:
    """Change an attribute or number, drop or repeat an element, or put an entity before it."""
    spots = list(re.finditer(rb'="[^"]*"|(?<=[= >|])[0-9][0-9.]*', data))
    what = rng.choice(("value", "value", "value", "drop", "repeat", "entity", "deep", "bytes"))
    if what == "value" and spots:
        spot = rng.choice(spots)
        values = (
            *map(str, NUMBERS),
            "-1",
            "nan",
            "inf",
            "1e308",
            "x" * 70_000,
            "",
            "\u202e",
            "&x;",
        )
        value = rng.choice(values).encode()
        return _put(data, spot, b'="' + value + b'"' if spot[0].startswith(b"=") else value)
    elements = list(re.finditer(rb"<[A-Za-z][^>]*>", data))
    if what in ("drop", "repeat") and elements:
        spot = rng.choice(elements)
        return _put(data, spot, b"" if what == "drop" else spot[0] * rng.choice((2, 5000)))
    if what == "entity":
        bomb = b'<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd"><!ENTITY y "&x;&x;">]>'
        return bomb + re.sub(rb"^\s*<\?xml[^>]*>", b"", data)
    if what == "deep":
        return b"<a>" * 50_000 + data
    return rng.choice(BYTES)(data, rng)


def _put(data: bytes, spot: re.Match[bytes], value: bytes) -> bytes:
    return data[: spot.start()] + value + data[spot.end() :]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(min(len(value), 8))) if isinstance(value, list) else []
    for key in keys:
        yield from _paths(value[key], (*path, key))


def json_document(data: bytes, rng: random.Random) -> bytes:
    """Put another value somewhere, or drop, rename or repeat a key; now and then spoil the text."""
    try:
        document = json.loads(data)
    except ValueError:
        return rng.choice(BYTES)(data, rng)
    if rng.random() < 0.1:
        return rng.choice(BYTES)(data, rng)
    path = rng.choice(list(_paths(document)))
    if not path:
        return _dumped(rng.choice(VALUES))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    what = rng.choice(("value", "value", "value", "drop", "rename", "wrap"))
    if what == "value":
        parent[path[-1]] = rng.choice(VALUES)
    elif what == "wrap":
        parent[path[-1]] = rng.choice(([parent[path[-1]]], {"x": parent[path[-1]]}))
    else:
        old = parent.pop(path[-1])
        if what == "rename" and isinstance(parent, dict):
            parent[rng.choice(("", "x", "\0", "__class__"))] = old
    return _dumped(document)


def _dumped(document: Any) -> bytes:
    return json.dumps(document).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000).encode()


def table(data: bytes, rng: random.Random) -> bytes:
    """Change a cell, a header, a row, the delimiter or the encoding of a table with commas."""
    text = data.decode("utf-8", "replace")
    rows = [line.split(",") for line in text.splitlines()]
    what = rng.choice(
        ("cell", "cell", "cell", "header", "drop", "twice", "ragged", "encoding", "bytes")
    )
    if what == "bytes" or len(rows) < 2:
        return rng.choice(BYTES)(data, rng)
    if what == "encoding":
        bom = "\ufeff" * rng.randint(0, 1)
        return (bom + text).encode(rng.choice(("utf-16", "utf-8", "utf-32", "utf-7")))
    row = rows[rng.randrange(1, len(rows))]
    at = rng.randrange(max(1, len(row)))
    if what == "cell":
        row[at : at + 1] = [_cell(rng)]
    elif what == "header":
        rows[0][rng.randrange(len(rows[0]))] = rng.choice((_cell(rng), rows[0][0], ""))
    elif what == "drop":
        rows.remove(row)
    elif what == "twice":
        rows.append(list(row))
    else:
        row += [""] * rng.choice((1, 5, 5000))
    joined = rng.choice(("\n", "\n", "\r\n", "\r")).join(map(",".join, rows))
    return joined.encode("utf-8", "surrogatepass")


def _cell(rng: random.Random) -> str:
    value = rng.choice(
        (*VALUES, '"', '"a\nb"', "nan", "1_000", "٣", "1e999", "9" * 5000, "x" * 200_000)
    )
    return value if isinstance(value, str) and value != DEEP else str(value)


def toml(data: bytes, rng: random.Random) -> bytes:
    """Change a value, drop or repeat a line."""
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines or rng.random() < 0.15:
        return rng.choice(BYTES)(data, rng)
    at = rng.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    what = rng.choice(("value", "value", "drop", "twice"))
    if what == "value" and equals:
        values = ("[]", "{}", '""', '"\\u0000"', "nan", "-1", "9" * 400, "'../x'", "1979-05-27", "")
        lines[at] = f"{key}= {rng.choice(values)}"
    elif what == "drop":
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return "\n".join(lines).encode()
