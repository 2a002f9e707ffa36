"""How far a file's own word for its size is believed, before memory or disk is taken for it."""

from __future__ import annotations

from typing import Final

# Up to here nothing is asked: blank masks and thumbnails compress without bounds.
FREE_BYTES: Final = 256 << 20


def refuse_size(stated: int, stored: int, *, ratio: int, free: int = FREE_BYTES) -> None:
    """Refuse what states to be far larger than what is stored of it can unpack to.

    Args:
        stated: bytes that would be taken.
        stored: bytes on the disk.
        ratio: bytes to one on the disk that are believed.
        free: bytes that are believed of any file.

    Raises:
        ValueError: it does.
    """
    if stated > free + ratio * stored:
        raise ValueError(f"it states to hold {stated} bytes, and {stored} are stored")
