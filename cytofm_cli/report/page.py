"""Pages that open from the disk: templates with everything escaped, and a policy that shuts them.

A page asks for nothing but its own pictures: its style and script are named in its content security
policy by their digests, so that no text of a table can become one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cytofm_cli import __version__
from cytofm_cli.pictures.files import data_uri

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER: Final = Path(__file__).parent / "templates"
# Of pictures in a page that is one file; what is more lies beside it. With its text, 100 slides
# stay below 10 MB.
MOST_BYTES: Final = 9_000_000
_BASE64: Final = 4 / 3


class Pictures:
    """The pictures of a page: within it, or in a folder beside it if they are many.

    Args:
        folder: name of the folder beside the page.
        n_bytes: of all pictures.
    """

    def __init__(self, folder: str, n_bytes: int) -> None:
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self._inside = n_bytes * _BASE64 <= MOST_BYTES

    def address(self, jpeg: bytes) -> str:
        """Return what stands in the `src` of a picture."""
        if self._inside:
            return data_uri(jpeg)
        name = f"{len(self.files):06}.jpg"
        self.files[name] = jpeg
        return f"{self.folder}/{name}"


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        template: its file.
        content: what it says; text is escaped, but for `markupsafe.Markup`.
    """
    from markupsafe import Markup

    css, js = (_FOLDER.joinpath(name).read_text(encoding="utf-8") for name in _PARTS)
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src '{_digest(css)}'; "
        f"script-src '{_digest(js)}'; base-uri 'none'; form-action 'none'"
    )
    page: str = (
        _environment()
        .get_template(template)
        .render(
            policy=policy,
            css=Markup(css),  # noqa: S704 - our own files
            js=Markup(js),  # noqa: S704
            version=__version__,
            **content,
        )
    )
    return page


_PARTS: Final = ("page.css", "page.js")


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
