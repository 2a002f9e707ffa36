"""What is odd anywhere: telling numbers and values, and mutations of bytes of any kind.

`CANARY` is what hostile pickles would make, were they run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

Mutation = Callable[[bytes, random.Random], bytes]

CANARY: Final = "ran-code"
NUMBERS: Final = (
    0, 1, 2, 3, 7, 8, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
DEEP: Final = "<<deep>>"
VALUES: Final = (
    *NUMBERS, -1, -(2**31), -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    float("-inf"), None, True, False, "", "x", "\0", "../../../x", "/etc/passwd", "x" * 70_000,
    "\x1b[2J\x07", "a\nerror: b", "\ud800", "=1+1", "ftp://u:secret@127.0.0.1:9/x",
    "http://127.0.0.1:9/x::zip://a", "file:///etc/passwd", "é😐", [], {}, [[]], [None], [-1, -1],
    {"x": 1}, [0] * 20_000, DEEP,
)  # fmt: skip


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
