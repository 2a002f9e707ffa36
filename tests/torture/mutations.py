"""Mutations that know what a file is made of: pure functions of its bytes and a random state.

Each keeps most of a file whole and lies in one place, so that what reads it gets past the door.
`CANARY` is what hostile pickles would make, were they run.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

Mutation = Callable[[bytes, random.Random], bytes]

CANARY: Final = "ran-code"
NUMBERS: Final = (
    0, 1, 2, 3, 7, 8, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
_DEEP: Final = "<<deep>>"
VALUES: Final = (
    *NUMBERS, -1, -(2**31), -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    float("-inf"), None, True, False, "", "x", "\0", "../../../x", "/etc/passwd", "x" * 70_000,
    "\x1b[2J\x07", "a\nerror: b", "\ud800", "=1+1", "ftp://u:secret@127.0.0.1:9/x",
    "http://127.0.0.1:9/x::zip://a", "file:///etc/passwd", "é😐", [], {}, [[]], [None], [-1, -1],
    {"x": 1}, [0] * 20_000, _DEEP,
)  # fmt: skip


# Bytes of any kind.


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change one to four bits."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_head(data: bytes, rng: random.Random) -> bytes:
    """Overwrite one to eight bytes of the first 512 with telling ones."""
    out = bytearray(data)
    at = rng.randrange(max(1, min(512, len(out))))
    value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * rng.choice((1, 2, 4, 8))
    out[at : at + len(value)] = value
    return bytes(out)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Keep the beginning alone; now and then nothing."""
    return data[: rng.choice((0, 1, rng.randrange(len(data) + 1), max(0, len(data) - 1)))]


def splice(data: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, blank or overwrite a span."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 4, 16, 64, 1024)))
    span = data[start:end]
    new = rng.choice((b"", span * 2, bytes(len(span)), b"\xff" * len(span), rng.randbytes(16)))
    return data[:start] + new + data[end:]


BYTES: Final = (flip, flip_head, truncate, splice)


# TIFF.

_TIFF_BYTES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 9: 4, 11: 4, 12: 8, 13: 4, 16: 8}
_TELLING_TAGS: Final = (
    256, 257, 258, 259, 262, 270, 273, 274, 277, 278, 279, 282, 283, 284, 317, 322, 323, 324, 325,
    330, 338, 339, 347, 530, 700, 34665, 34675, 65420, 65421, 65442,
)  # fmt: skip


class _Tiff:
    """Where the directories of a TIFF and their entries stand."""

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = self.number(data, 2, 2) == 43
        self.word = 8 if self.big else 4
        self.entry_bytes = 20 if self.big else 12
        self.entries: list[int] = []
        self.next_fields: list[int] = []
        field = 8 if self.big else 4
        while len(self.next_fields) < 32:
            at = self.number(data, field, self.word)
            if not 0 < at < len(data) - 2:
                break
            n = self.number(data, at, 8 if self.big else 2)
            first = at + (8 if self.big else 2)
            if n > 4096 or first + n * self.entry_bytes + self.word > len(data):
                break
            self.entries += range(first, first + n * self.entry_bytes, self.entry_bytes)
            field = first + n * self.entry_bytes
            self.next_fields.append(field)

    def number(self, data: bytes, at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little" if self.order == "<" else "big")

    def put(self, data: bytearray, at: int, size: int, value: int) -> None:
        order = "little" if self.order == "<" else "big"
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]

    def values_at(self, data: bytes, entry: int) -> tuple[int, int, int]:
        """Return where the values of an entry stand, their number and their size."""
        size = _TIFF_BYTES.get(self.number(data, entry + 2, 2), 1)
        n = self.number(data, entry + 4, self.word)
        at = entry + 4 + self.word
        return (at if n * size <= self.word else self.number(data, at, self.word)), n, size


def tiff(data: bytes, rng: random.Random) -> bytes:
    """Lie in one field of one directory: tag, type, count, a value, or where the next stands."""
    form = _Tiff(data)
    if not form.entries:
        return flip_head(data, rng)
    out = bytearray(data)
    entry = rng.choice(form.entries)
    what = rng.choice(("tag", "type", "count", "value", "value", "value", "field", "next", "swap"))
    if what == "tag":
        form.put(out, entry, 2, rng.choice(_TELLING_TAGS))
    elif what == "type":
        form.put(out, entry + 2, 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 99)))
    elif what == "count":
        form.put(out, entry + 4, form.word, rng.choice(NUMBERS))
    elif what == "field":
        form.put(out, entry + 4 + form.word, form.word, rng.choice((*NUMBERS, len(data), entry)))
    elif what == "next":
        targets = (8, len(data), len(data) - 1, 2**32 - 1, rng.choice(form.entries))
        form.put(out, rng.choice(form.next_fields), form.word, rng.choice(targets))
    elif what == "swap":
        other, n = rng.choice(form.entries), form.entry_bytes
        out[entry : entry + n], out[other : other + n] = data[other : other + n], data[entry:][:n]
    else:
        at, n, size = form.values_at(data, entry)
        if n and at + size <= len(data):
            form.put(out, at + size * rng.randrange(min(n, 4096)), size, rng.choice(NUMBERS))
    return bytes(out)


def tiff_description(data: bytes, rng: random.Random) -> bytes:
    """Change the text of an ImageDescription, which then stands at the end of the file."""
    form = _Tiff(data)
    tags = [at for at in form.entries if form.number(data, at, 2) in (270, 700, 65449)]
    if not tags:
        return tiff(data, rng)
    entry = rng.choice(tags)
    at, n, size = form.values_at(data, entry)
    text = xml(data[at : at + n * size].rstrip(b"\0"), rng) + b"\0" * 16
    out = bytearray(data)
    form.put(out, entry + 4, form.word, len(text))
    form.put(out, entry + 4 + form.word, form.word, len(data))
    return bytes(out) + text


# Text.


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
    return json.dumps(document).replace(f'"{_DEEP}"', "[" * 3000 + "]" * 3000).encode()


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
    return value if isinstance(value, str) and value != _DEEP else str(value)


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


# Pictures.


def jpeg(data: bytes, rng: random.Random) -> bytes:
    """Lie in one segment: its marker, length, frame size; drop or repeat it."""
    segments: list[tuple[int, int]] = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((at, end))
        at = end
    if not segments:
        return rng.choice(BYTES)(data, rng)
    start, end = rng.choice(segments)
    out = bytearray(data)
    what = rng.choice(("marker", "length", "frame", "frame", "drop", "repeat", "body", "app"))
    if what == "marker":
        out[start + 1] = rng.choice((0xC0, 0xC2, 0xC3, 0xC9, 0xD8, 0xD9, 0xDB, 0xE1, 0xE2, 0xFE))
    elif what == "length":
        out[start + 2 : start + 4] = struct.pack(">H", rng.choice((0, 1, 2, 3, 0xFFFF)))
    elif what == "frame":
        frames = [at for at, _ in segments if data[at + 1] in (0xC0, 0xC1, 0xC2)]
        if frames:
            size = struct.pack(">H", rng.choice((0, 1, 65_500, 65_535)))
            spot = frames[0] + rng.choice((5, 7))
            out[spot : spot + 2] = size
            if rng.random() < 0.5:
                out[frames[0] + 5 : frames[0] + 9] = size * 2
    elif what == "drop":
        del out[start:end]
    elif what == "repeat":
        out[end:end] = data[start:end] * rng.choice((1, 500))
    elif what == "app":
        body = rng.choice((b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"JFIF\0\1\1\1\0\0\0\0\0\0", b""))
        out[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    elif end - start > 4:
        out[rng.randrange(start + 4, min(end, len(out)))] = rng.choice((0, 1, 255))
    return bytes(out)


def png(data: bytes, rng: random.Random) -> bytes:
    """Lie in one chunk, whose checksum is right again; add one that unpacks without end."""
    chunks: list[tuple[bytes, bytes]] = []
    at = 8
    while at + 12 <= len(data):
        n = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    if not chunks:
        return rng.choice(BYTES)(data, rng)
    what = rng.choice(("size", "size", "header", "body", "drop", "repeat", "bomb"))
    which = rng.randrange(len(chunks))
    name, body = chunks[which]
    header = bytearray(chunks[0][1])
    if what == "size":
        at = rng.choice((0, 4))
        header[at : at + 4] = struct.pack(
            ">I", rng.choice((0, 1, 20_000, 200_000, 2**31 - 1, 2**32 - 1))
        )
    elif what == "header":
        header[rng.randrange(8, 13)] = rng.choice((0, 1, 3, 4, 6, 16, 255))
    elif what == "body":
        chunks[which] = name, rng.choice(BYTES)(body, rng)
    elif what == "drop":
        del chunks[which]
    elif what == "repeat":
        chunks.insert(which, (name, body))
    else:
        bomb = zlib.compress(bytes(1 << 24))
        extra = rng.choice(
            ((b"zTXt", b"x\0\0" + bomb), (b"iCCP", b"x\0\0" + bomb), (b"pHYs", b"\xff" * 9))
        )
        chunks.insert(1, extra)
    if what in ("size", "header"):
        chunks[0] = chunks[0][0], bytes(header)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def dicom(data: bytes, rng: random.Random) -> bytes:
    """Lie in one element of explicit VR: tag, VR, length or value."""
    long = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"OD", b"OL", b"UC", b"UR")
    elements: list[tuple[int, int, int]] = []  # start, of the length, of the value
    at = 132
    while at + 12 <= len(data):
        is_long = data[at + 4 : at + 6] in long
        n = int.from_bytes(data[at + 8 : at + 12] if is_long else data[at + 6 : at + 8], "little")
        start = at + (12 if is_long else 8)
        elements.append((at, at + (8 if is_long else 6), start))
        if n == 0xFFFFFFFF or data[at + 4 : at + 6] == b"SQ":
            n = 8  # go on within the first item
        at = start + n
        if at < len(data) - 8 and not data[at + 4 : at + 6].isalpha():
            break
    if not elements:
        return rng.choice(BYTES)(data, rng)
    start, length, value = rng.choice(elements)
    out = bytearray(data)
    what = rng.choice(("tag", "vr", "length", "value", "value", "value"))
    if what == "tag":
        out[start : start + 4] = rng.choice(
            (b"\x28\0\x10\0", b"\x28\0\x08\0", b"\x48\0\6\0", b"\xe0\x7f\x10\0")
        )
    elif what == "vr":
        out[start + 4 : start + 6] = rng.choice((b"OB", b"SQ", b"US", b"IS", b"XX", b"UN", b"DS"))
    elif what == "length":
        out[length : length + 2] = rng.choice((b"\0\0", b"\1\0", b"\xff\xff", b"\xfe\xff"))
    else:
        text = rng.choice((b"\0\0", b"\xff\xff\xff\xff", b"-1", b"1e999", b"\\\\", b"99999999999"))
        out[value : value + len(text)] = text
    return bytes(out)


# Arrays and weights.


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """Lie in the header, or in its length."""
    n = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2:
        return struct.pack("<Q", rng.choice(NUMBERS)) + data[8:]
    header = json_document(data[8 : 8 + n], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + n :]


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (CANARY,)


def zipped(data: bytes, rng: random.Random) -> bytes:
    """Change one member of a zip file (a checkpoint of torch): its bytes, its name, a pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = [(name, old.read(name)) for name in old.namelist()]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return rng.choice(BYTES)(data, rng)
    what = rng.choice(("bytes", "pickle", "opcodes", "opcodes", "drop", "name", "outer"))
    if what == "outer" or not members:
        return rng.choice(BYTES)(data, rng)
    which = rng.randrange(len(members))
    if what in ("pickle", "opcodes"):
        which = next((i for i, (name, _) in enumerate(members) if name.endswith(".pkl")), which)
    name, body = members[which]
    if what == "drop":
        del members[which]
    elif what == "name":
        members[which] = rng.choice(("../../x", "/x", "x" * 5000, "constants.pkl")), body
    elif what == "pickle":
        members[which] = name, pickle.dumps(_Hostile(), 2)
    else:
        members[which] = name, rng.choice(BYTES)(body, rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((0, 0, 8))) as new:
        for name, body in members:
            new.writestr(name, body)
    return buffer.getvalue()


def pickled(_data: bytes, _rng: random.Random) -> bytes:
    """Return a pickle that makes a folder when it is loaded."""
    return pickle.dumps(_Hostile(), 2)


def h5(data: bytes, rng: random.Random) -> bytes:
    """Put another dataset, link or attribute in the place of one."""
    import h5py
    import numpy as np

    if rng.random() < 0.4:
        return h5_bytes(data, rng)
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(names)
        what = rng.choice(("shape", "type", "link", "outside", "drop", "attribute", "group", "nan"))
        if what == "attribute":
            holder = rng.choice((file, file[name]))
            key = rng.choice([*holder.attrs, "x"])
            value = rng.choice((0, -1, 2**63 - 1, "x", "é" * 9000, b"\xff", [1, 2], float("nan")))
            holder.attrs[key] = value
            return buffer.getvalue()
        old = file[name]
        values = old[()] if isinstance(old, h5py.Dataset) else None
        del file[name]
        if what == "shape":
            shape = rng.choice(((0, 0), (2**40, 4), (3,), (), (1, 3, 2**20), (2**31, 2**10)))
            chunks = tuple(min(64, side) or 1 for side in shape) if all(shape) and shape else None
            file.create_dataset(name, shape, "f4", chunks=chunks)
        elif what == "type":
            text = np.array([b"x", b"\xff"], dtype=object)
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
        elif what == "link":
            file[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", "/nowhere")))
        elif what == "outside":
            file[name] = h5py.ExternalLink("/etc/passwd", "x")
        elif what == "group":
            file.create_group(name)
        elif what == "nan" and values is not None and np.asarray(values).dtype.kind in "iuf":
            wrong = rng.choice((np.nan, np.inf, -1.0, 1e300))
            file[name] = np.full(np.shape(values), wrong)
    return buffer.getvalue()


def h5_bytes(data: bytes, rng: random.Random) -> bytes:
    """Lie right behind one of the signatures of the format."""
    spots = [spot.start() for spot in re.finditer(rb"\x89HDF|TREE|HEAP|SNOD|OHDR|GCOL|FRHP", data)]
    out = bytearray(data)
    at = rng.choice(spots or [0]) + rng.randrange(4, 64)
    size = rng.choice((1, 2, 4, 8))
    out[at : at + size] = (rng.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(out)


# By the ending of a file's name.
BY_ENDING: Final[dict[str, tuple[Mutation, ...]]] = {
    ".tif": (tiff, tiff, tiff, tiff_description, *BYTES),
    ".xml": (xml, xml, xml, *BYTES),
    ".json": (json_document,),
    ".csv": (table,),
    ".toml": (toml,),
    ".jpg": (jpeg, jpeg, jpeg, *BYTES),
    ".png": (png, png, png, *BYTES),
    ".dcm": (dicom, dicom, dicom, *BYTES),
    ".safetensors": (safetensors, safetensors, *BYTES, pickled),
    ".pt": (zipped, zipped, zipped, pickled, *BYTES),
    ".h5": (h5, h5, h5, *BYTES),
}
_SAME: Final = {
    ".tiff": ".tif", ".svs": ".tif", ".ndpi": ".tif", ".jpeg": ".jpg", ".dicom": ".dcm",
    ".geojson": ".json", ".pth": ".pt", ".ckpt": ".pt", ".npz": ".pt", ".h5ad": ".h5",
    ".ndpa": ".xml", ".md": ".csv", ".jsonl": ".json",
}  # fmt: skip


def mutate(name: str, data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Return a file mutated once or twice, as its name's ending says, and the mutations' names.

    Args:
        name: of the file.
        data: what it holds.
        rng: decides; the same state gives the same bytes.
    """
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    mutations = BY_ENDING.get(_SAME.get(ending, ending), BYTES)
    said: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        mutation = rng.choice(mutations)
        try:
            data = mutation(data, rng)
        except (ValueError, OSError, LookupError, TypeError, RuntimeError, OverflowError):
            mutation = flip  # the second finds what the first has spoilt
            data = flip(data, rng)
        said.append(mutation.__name__)
    return data, "+".join(said)
