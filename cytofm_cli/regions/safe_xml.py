"""XML from strangers: no document type, so no entities and nothing fetched; a budget of size.

A document type is what every attack through XML needs (entities that multiply, files and hosts
that are read), and no program that marks regions writes one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cytofm_cli.errors import InputError

MOST_BYTES: Final = 512 * 2**20
MOST_ELEMENTS: Final = 8_000_000  # about a gigabyte
MOST_DEPTH: Final = 64
_PIECE: Final = 2**20


def read_xml(path: Path, *, most_bytes: int = MOST_BYTES) -> Element:
    """Return the root of an XML file.

    Args:
        path: the file.
        most_bytes: a larger file is refused.

    Raises:
        InputError: it cannot be read, is no XML, has a document type, or is too large or deep.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes; at most {most_bytes} are read.",
                hint="export fewer regions, or with fewer points",
            )
        return _parse(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except expat.ExpatError as error:
        raise InputError(f"{path}: no XML ({error}).", hint="export it again") from error


def _parse(path: Path) -> Element:
    builder = _Limited(path)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.refuse_type
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            parser.Parse(piece, False)
        parser.Parse(b"", True)
    return builder.root()


class _Limited:
    """Builds the tree of a file, up to a number of elements and a depth."""

    def __init__(self, path: Path) -> None:
        self._path, self._tree = path, TreeBuilder()
        self._depth = self._count = 0

    def refuse_type(self, *_: object) -> None:
        raise InputError(
            f"{self._path}: has a document type (DOCTYPE), which may hide entities: not read.",
            hint="take the line out if you trust the file",
        )

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > MOST_DEPTH or self._count > MOST_ELEMENTS:
            what = f"{MOST_DEPTH} deep" if self._depth > MOST_DEPTH else f"{MOST_ELEMENTS} elements"
            raise InputError(f"{self._path}: more than {what}: no file of regions.")
        self._tree.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self._tree.end(tag)

    def data(self, text: str) -> None:
        self._tree.data(text)

    def root(self) -> Element:
        return self._tree.close()
