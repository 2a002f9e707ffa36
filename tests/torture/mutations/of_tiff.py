"""Mutations of TIFF, by its tags."""

from __future__ import annotations

import random
from typing import Final

from .of_any import NUMBERS, flip_head
from .of_text import xml

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
