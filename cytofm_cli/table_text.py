"""The text of a table as rows of cells: its encoding, what separates cells, what is a comment."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from cytofm_cli.errors import InputError
from cytofm_cli.named_files import open_bounded
from cytofm_cli.words import is_missing, plain_name

TABLE_BYTES: Final = 2 << 30  # over five million points, some 400 bytes each
DELIMITERS: Final = (",", ";", "\t")
SAMPLE_CHARS: Final = 1 << 16
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (b"PK\x03\x04", "an Excel workbook or another zip file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x8b", "gzip-compressed"),
)

# What a spreadsheet takes for the start of a formula, behind any quotes: names may begin so.
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r]")


def inert(cell: Any) -> Any:
    """Return a cell as it is written: a text that would be a formula gets a `'`, a number none.

    A spreadsheet runs `=HYPERLINK(…)` wherever it stands, also in the name of a slide.
    """
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def meant(cell: str) -> str:
    """Return what a cell stood for before `inert`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


class TableWriter:
    """Writes rows of CSV in which no text is a formula.

    Args:
        to: a file, opened as text.
        end: what ends a line.
    """

    def __init__(self, to: TextIO, end: str = "\n") -> None:
        self._writer = csv.writer(to, lineterminator=end)

    def writerow(self, cells: Iterable[Any]) -> None:
        """Write a row."""
        self._writer.writerow([inert(cell) for cell in cells])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)


@contextlib.contextmanager
def open_text(path: Path, error: type[InputError]) -> Iterator[tuple[TextIO, list[str]]]:
    """Open the text of a file, with line ends as they are; also says what was assumed of it.

    Raises:
        error: it cannot be read, or is no text.
    """
    try:
        with open_bounded(path, TABLE_BYTES) as file:
            encoding, notes = _encoding(path, file, error)
            file.seek(0)
            yield io.TextIOWrapper(file, encoding, newline=""), notes
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}).") from reason
    except UnicodeDecodeError as reason:
        raise error(f"{path}: changed while it was read.") from reason


def _encoding(path: Path, file: BinaryIO, error: type[InputError]) -> tuple[str, list[str]]:
    start = file.read(8)
    what = next((what for start_of, what in _NO_TEXT if start.startswith(start_of)), None)
    marked = next((name for mark, name in _BOMS if start.startswith(mark)), None)
    if what is None and marked is None and any(b"\0" in block for block in _blocks(file)):
        what = "no text, or UTF-16 without its mark"
    if what:
        raise error(f"{path}: is {what}.", hint="save the table as CSV UTF-8")
    for name in (marked,) if marked else ("utf-8", "cp1252"):
        if _reads_as(name, file):
            notes = ["is no UTF-8, read as Windows-1252: look at letters like ä, é, ß"]
            return name, notes if name == "cp1252" else []
    raise error(
        f"{path}: no text in UTF-8, UTF-16 or Windows-1252.", hint="save the table as CSV UTF-8"
    )


def _reads_as(encoding: str, file: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in _blocks(file):
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file from its start, a piece at a time."""
    file.seek(0)
    while block := file.read(1 << 20):
        yield block


def records(
    lines: Iterable[str], delimiter: str, first_line: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of every row that is not blank.

    Args:
        lines: of text, with their ends.
        delimiter: what separates the cells.
        first_line: number of the first of them.

    Raises:
        csv.Error: a quote is never closed, or a cell is too long; names the line.
    """
    n_quotes = 0

    def counted() -> Iterator[str]:
        nonlocal n_quotes
        for line in lines:
            n_quotes += line.count('"')
            yield line

    reader = csv.reader(counted(), delimiter=delimiter, skipinitialspace=delimiter != "\t")
    start = end = 0
    try:
        for cells in reader:
            start, end = end, reader.line_num
            stripped = [meant(cell.strip()) for cell in cells]
            if any(stripped):
                yield first_line + start, stripped
    except csv.Error as reason:
        raise csv.Error(f"line {first_line + end}: {reason}") from reason
    if end - start > 1 and n_quotes % 2:
        raise csv.Error(f"line {first_line + start}: a quote that is opened here is never closed")


def find_delimiter(text: str, names: Collection[str]) -> str:
    """Find what separates the cells: what yields the names looked for, else equal rows.

    Args:
        text: the first `SAMPLE_CHARS` and one more; less is the whole.
        names: plain names of the columns looked for.
    """
    whole = len(text) <= SAMPLE_CHARS

    def fits(delimiter: str) -> tuple[int, float, int]:
        rows: list[list[str]] = []
        try:
            lines = io.StringIO(text[:SAMPLE_CHARS], newline="")
            rows.extend(cells for _, cells in records(lines, delimiter))
        except csv.Error:
            if whole or len(rows) < 2:
                return (0, 0.0, 0)
        rows = [cells for cells in rows if not _is_comment(cells, names)]
        rows = rows if whole else rows[:-1]  # the last one is cut
        if not rows or len(rows[0]) == 1:
            return (known(rows[0], names) if rows else 0, 0.0, 0)
        width = len(rows[0])
        equal = sum(len(cells) == width for cells in rows) / len(rows)
        return (known(rows[0], names), equal, width)

    return max(DELIMITERS, key=fits)


def known(cells: Sequence[str], names: Collection[str]) -> int:
    """Count the plain names that a row spells."""
    return len({plain_name(cell) for cell in unmarked(cells, names)} & set(names))


def unmarked(cells: Sequence[str], names: Collection[str]) -> list[str]:
    """Take the `#` off a header that is written as a comment: `#slide_id,label`."""
    bare = cells[0].removeprefix("#").strip()
    return [bare if plain_name(bare) in names else cells[0], *cells[1:]]


def _is_comment(cells: Sequence[str], names: Collection[str]) -> bool:
    if not cells[0].startswith("#") or is_missing(cells[0]):
        return False
    return not ({plain_name(cell) for cell in unmarked(cells, names)} & set(names))


class Comments:
    """Leaves out the rows that are comments, and counts those below the header."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._lines: list[int] = []

    def without(self, rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
        """Yield the other rows; the first is the header."""
        below = False
        for line, cells in rows:
            if not _is_comment(cells, self._names):
                below = True
                yield line, cells
            elif below:
                self._lines.append(line)

    @property
    def notes(self) -> list[str]:
        """What was left out so far."""
        if not self._lines:
            return []
        n, first = len(self._lines), self._lines[0]
        return [f"{n} line(s) that start with # are left out, first line {first}"]
