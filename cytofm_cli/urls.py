"""Addresses of slides elsewhere: which are opened, and what of them is written down.

A URL is handed to fsspec, which knows many protocols, chains of them (`a::b`) and templates; some
run code, write files or send passwords to whoever is named. So only plain addresses of storage are
opened, by a list. What lets in (name and password, the query, in which signed URLs have their
token) is in no store, no list of failures and no message.
"""

from __future__ import annotations

import re
from typing import Final

from cytofm_cli.errors import SlideError, without_secrets

SCHEMES: Final = frozenset(
    ("file", "http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "memory")
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
# A folder that was a URL until it became a path, which has no two slashes in a row.
_ONE_SLASH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/(?!/)")
_HINT: Final = "copy the file here, or mount its storage, and name the copy."


def is_url(word: str) -> bool:
    """Tell whether a word is an address and not a path."""
    return "://" in word


def check_url(url: str) -> None:
    """Refuse an address that is not a plain one of storage.

    Raises:
        SlideError: another scheme, a chain, or a template.
    """
    shown = without_secrets(url)
    scheme = _SCHEME.match(url)
    if "::" in url or url.count("://") > 1 or scheme is None:
        raise SlideError(f"{shown}: a chain of addresses is not opened.", hint=_HINT)
    if scheme[1].lower() not in SCHEMES:
        raise SlideError(
            f"{shown}: addresses of {scheme[1]!r} are not opened, only of "
            f"{', '.join(sorted(SCHEMES))}.",
            hint=_HINT,
        )
    if re.search(r"[{}\x00-\x1f\x7f]", url):
        raise SlideError(f"{shown}: an address with braces or control characters.", hint=_HINT)


def of_given(given: str, stored: str) -> str | None:
    """Return the address of a slide that a store names, if the user vouches for it.

    Args:
        given: what the user names now: the whole address, or a folder above it; may have what
            lets in, and may have come through a path, which made one slash of two.
        stored: the address in the store, without what lets in.

    Returns:
        The address to open; None: it is another one.
    """
    given = _ONE_SLASH.sub(r"\1://", given)
    if not is_url(given):
        return None
    bare, wanted = without_secrets(given), without_secrets(stored)
    if bare == wanted:
        return given
    folder = bare.rstrip("/") + "/"
    if not wanted.startswith(folder) or "?" in given or "/../" in wanted:
        return None
    return f"{given.rstrip('/')}/{wanted.removeprefix(folder)}"
