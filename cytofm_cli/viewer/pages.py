"""The files of the page: ours, and Leaflet as its package ships it. By name, from a fixed list."""

from __future__ import annotations

from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Final

from cytofm_cli.errors import MissingPackageError

_SCRIPT: Final = "text/javascript"
_STYLE: Final = "text/css"
KINDS: Final = {
    "leaflet.js": _SCRIPT,
    "leaflet.css": _STYLE,
    "viewer.css": _STYLE,
    "ask.js": _SCRIPT,
    "gallery.js": _SCRIPT,
    "layers.js": _SCRIPT,
    "marks.js": _SCRIPT,
    "pane.js": _SCRIPT,
    "planes.js": _SCRIPT,
    "slides.js": _SCRIPT,
    "viewer.js": _SCRIPT,
}
_LEAFLET: Final = "xstatic-leaflet"
HINT: Final = "pip install 'cytofm[view]'"


@cache
def read(name: str) -> bytes:
    """Return a file of the page: `index.html`, or one of `KINDS`."""
    if name.startswith("leaflet."):
        return _leaflet(name).read_bytes()
    return (resources.files(__package__) / "page" / name).read_bytes()


def _leaflet(name: str) -> Path:
    """Return where a file of Leaflet lies. Importing its package would need setuptools.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        files = metadata.files(_LEAFLET) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise MissingPackageError(f"the viewer needs the package {_LEAFLET}.", hint=HINT)
