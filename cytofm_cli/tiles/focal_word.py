"""The words of `--focus`: best, fuse and plane:K."""

from __future__ import annotations

from typing import Final

BEST: Final = "best"
FUSE: Final = "fuse"
PLANE: Final = "plane:"


def number_of(focus: str) -> int | None:
    """Return K of "plane:K"; None for "best" and "fuse".

    Raises:
        ValueError: it is none of these.
    """
    if focus in (BEST, FUSE):
        return None
    digits = focus.removeprefix(PLANE)
    if digits == focus or not (digits.isascii() and digits.isdecimal()):
        raise ValueError(f"{focus!r} is not best, fuse or plane:K")
    return int(digits)
