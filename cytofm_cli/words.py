"""How messages name things, and what people mean by what they write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

# What R, pandas, SQL and Excel write where nothing is known. "none" is a word of its own: a class.
MISSING: Final = frozenset(
    ("", "na", "n/a", "nan", "null", "<na>", "#n/a", "#na", "#nv", "#value!", "#ref!", "#name?")
)


def named(ids: Iterable[str], shown: int = 3) -> str:
    """Name the first few of many: `a, b, c and 4 more`."""
    names = sorted(ids)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def plain_name(name: str) -> str:
    """Return the name of a column without what people spell differently: case, blanks, `_-.`."""
    return re.sub(r"[\s_.\-]+", "", unicodedata.normalize("NFKC", name).casefold())


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that nothing is known: empty, `NA`, `nan`, `null`, `#N/A`."""
    return cell.strip().casefold() in MISSING
