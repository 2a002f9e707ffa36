"""How messages name things."""

from __future__ import annotations

from collections.abc import Iterable


def named(ids: Iterable[str], shown: int = 3) -> str:
    """Name the first few of many: `a, b, c and 4 more`."""
    names = sorted(ids)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
