"""Every table that a user hands in, read by one tolerant reader.

Labels, manifests, points, splits, groups and pairs come from Excel, R, pandas, QuPath and text
editors. Comma, semicolon or tab; UTF-8, UTF-16 with its mark, or Windows-1252; any line ends;
blanks around cells; any case, blanks, `_` and `-` in column names; decimal commas where the
comma does not separate; lines that are blank or start with `#`; Excel's `sep=;`. What cannot be
read for sure is refused with file, line and column.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cytofm_cli.errors import InputError

DELIMITERS: Final = (",", ";", "\t")
# What R, pandas, SQL and Excel write where nothing is known. "none" is a word of its own: a class.
MISSING: Final = frozenset(
    ("", "na", "n/a", "nan", "null", "<na>", "#n/a", "#na", "#nv", "#value!", "#ref!", "#name?")
)
# What the columns are called in tables of other tools: CLAM, STAMP, TRIDENT, QuPath, GDC, by hand.
SLIDE_NAMES: Final = tuple(
    "slide_id slide slide_name filename file_name file image image_id image_name wsi".split()
)
GROUP_NAMES: Final = tuple(
    "group group_id patient patient_id patients patient_number patient_no pat_id pid mrn "
    "case case_id case_submitter_id subject subject_id "
    "participant participant_id donor donor_id individual individual_id".split()
)
X_NAMES: Final = ("x", "x_px", "x_px0", "centroid_x", "centroid x px")
Y_NAMES: Final = ("y", "y_px", "y_px0", "centroid_y", "centroid y px")
LABEL_NAMES: Final = ("label", "class", "target", "diagnosis", "category", "ground_truth")
_SUFFIX = re.compile(r"(\.ome)?\.[a-z][a-z0-9]{1,7}$", re.IGNORECASE)
_SAMPLE_CHARS = 1 << 16
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
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


@dataclass(frozen=True, eq=False)
class Table:
    """A table as text; columns of equal length.

    Attributes:
        path: its file.
        columns: cells without blanks around them, by column name as the file spells it.
        lines: line of the file where each row starts, from 1.
        delimiter: what separates its cells.
        notes: what was assumed in reading it, to be shown as warnings.
        error: what is raised when it does not fit.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    delimiter: str
    notes: tuple[str, ...] = ()
    error: type[InputError] = InputError

    def __len__(self) -> int:
        return len(self.lines)

    def find(self, *names: str) -> list[str]:
        """Return the columns that go by one of these names, in the order of `names`."""
        spelt = {plain_name(column): column for column in self.columns}
        wanted = dict.fromkeys(plain_name(name) for name in names)
        return [spelt[name] for name in wanted if name in spelt]

    def need(self, *names: str, hint: str | None = None, flag: str = "") -> str:
        """Return the column that goes by the first of these names that is there.

        Args:
            names: what it may be called.
            hint: what to do where no column has a name like it.
            flag: the option by which the user named it: another word mends that, not the file.

        Raises:
            error: none is; names the columns found and the closest.
        """
        found = self.find(*names)
        if not found:
            close = self._closest(names)
            mend = f"{flag} {close}" if flag else f"Rename it {names[0]}"
            raise self.error(
                f"{self.path}: no column {names[0]} (found: {_some(self.columns)}).",
                hint=f"did you mean {close!r}? {mend}" if close else hint,
            )
        return found[0]

    def label_column(self, wanted: str = "label", *, hint: str | None = None) -> str:
        """Return the column of labels: the one that is wanted, or for "label" another name of it.

        Raises:
            error: it is not there, or several could be meant.
        """
        others = [] if self.find(wanted) or wanted != "label" else self.find(*LABEL_NAMES)
        if len(others) > 1:
            raise self.error(
                f"{self.path}: no column label; {' and '.join(others)} could be meant.",
                hint=f"--label {others[0]}, or rename one label",
            )
        flag = "" if wanted == "label" else "--label"
        return others[0] if others else self.need(wanted, hint=hint, flag=flag)

    def group_column(self, wanted: str | None = None, *, besides: str = "") -> str | None:
        """Return the column of patients; None: there is none.

        Args:
            wanted: the column that the user names.
            besides: a column that is taken for something else.

        Raises:
            error: it is not there, or two columns group the rows differently.
        """
        if wanted is not None:
            return self.need(
                wanted, hint="--group COLUMN names the column of the patients", flag="--group"
            )
        found = [column for column in self.find(*GROUP_NAMES) if column != besides]
        for other in found[1:]:
            if not _same_groups(self.columns[found[0]], self.columns[other]):
                raise self.error(
                    f"{self.path}: columns {found[0]} and {other} group the rows differently.",
                    hint=f"say which is the patient: --group {found[0]} or --group {other}, or "
                    "leave the other out",
                )
        return found[0] if found else None

    def place(self, row: int, column: str | None = None) -> str:
        """Name a cell or row in a message: file, line and column."""
        where = f"{self.path}, line {self.lines[row]}"
        return where if column is None else f"{where}, column {column}"

    def numbers(self, column: str, *, default: float | None = None) -> list[float]:
        """Parse a column as finite numbers.

        Args:
            column: as the file spells it.
            default: of cells that are empty or `NA`; None: they are refused.

        Raises:
            error: a cell is no number, or could be one with decimals or with thousands.
        """
        cells = self.columns[column]
        if self.delimiter != ",":
            cells = self._decimal_points(column)
        return [self._number(row, column, cell, default) for row, cell in enumerate(cells)]

    def _number(self, row: int, column: str, cell: str, default: float | None) -> float:
        if is_missing(cell):
            if default is not None:
                return default
            raise self.error(f"{self.place(row, column)}: no number (the cell is {cell!r}).")
        text = cell.replace("\N{MINUS SIGN}", "-")
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(value):
            shown = cell if len(cell) < 40 else cell[:37] + "…"
            raise self.error(f"{self.place(row, column)}: {shown!r} is no number.")
        return value

    def _decimal_points(self, column: str) -> tuple[str, ...]:
        """Turn decimal commas into points; `1,234` alone could also be a thousand."""
        cells = self.columns[column]
        commas = [row for row, cell in enumerate(cells) if "," in cell and not is_missing(cell)]
        unsure = all(_THOUSANDS.fullmatch(cells[row]) for row in commas)
        if commas and unsure and self.delimiter == "\t":
            raise self.error(
                f"{self.place(commas[0], column)}: {cells[commas[0]]!r} has a decimal comma or "
                "thousands.",
                hint="write numbers with a decimal point and no thousands separator",
            )
        return tuple(cell if "." in cell else cell.replace(",", ".", 1) for cell in cells)

    def _closest(self, names: Sequence[str]) -> str | None:
        spelt = {plain_name(column): column for column in self.columns}
        for name in names:
            close = difflib.get_close_matches(plain_name(name), spelt, n=1, cutoff=0.75)
            if close:
                return spelt[close[0]]
        return None


def read_table(
    path: Path,
    expected: Collection[str] = (),
    *,
    error: type[InputError] = InputError,
    allow_empty: bool = False,
) -> Table:
    """Read a table with a header.

    Args:
        path: a text file.
        expected: names that the caller looks for; they tell what separates the cells, and the
            header from a comment.
        error: what to raise.
        allow_empty: a header without rows is a table.

    Raises:
        error: unreadable, no text, no rows, a column twice, or a row of more or fewer cells than
            the header; names the line.
    """
    text, notes = _read_text(path, error)
    names = frozenset(plain_name(name) for name in expected)
    match = re.match(r'"?sep=(.)"?[ \t]*(\r\n|\n|\r)', text, re.IGNORECASE)
    start = match.end() if match else 0  # Excel's own first line
    delimiter = match[1] if match else _find_delimiter(text, names)
    try:
        rows = list(_records(text[start:], delimiter, first_line=2 if match else 1))
    except csv.Error as reason:
        raise error(f"{path}, {reason}.", hint="save the table as CSV UTF-8") from reason
    rows, remarks = _without_comments(rows, names)
    if not rows:
        raise error(f"{path}: is empty.", hint="the first line must name the columns")
    header, body = _unmarked(rows[0][1], names), rows[1:]
    if names and not _known(header, names) and len({len(cells) for _, cells in rows}) > 1:
        raise error(
            f"{path}: no column {next(iter(expected))} (found: {_some(header)}).",
            hint="is it a table, and the right one?",
        )
    if not body and not allow_empty:
        raise error(f"{path}: has a header but no rows.")
    return Table(
        path=path,
        columns=_columns(path, header, body, error),
        lines=tuple(line for line, _ in body),
        delimiter=delimiter,
        notes=tuple(f"{path}: {note}" for note in (*notes, *remarks)),
        error=error,
    )


def plain_name(name: str) -> str:
    """Return the name of a column without what people spell differently: case, blanks, `_-.`."""
    return re.sub(r"[\s_.\-]+", "", unicodedata.normalize("NFKC", name).casefold())


def is_missing(cell: str) -> bool:
    """Tell whether a cell says that nothing is known: empty, `NA`, `nan`, `null`, `#N/A`."""
    return cell.strip().casefold() in MISSING


def match_slide(name: str, slide_ids: Collection[str]) -> str | None:
    """Find the slide that a cell names: by its id, or by a file with folders or a suffix."""
    file = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    suffix = _SUFFIX.search(file)
    stem = file[: suffix.start()] if suffix else file
    return next((word for word in (name, file, stem) if word in slide_ids), None)


def _read_text(path: Path, error: type[InputError]) -> tuple[str, list[str]]:
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror}).") from reason
    what = next((what for start, what in _NO_TEXT if data.startswith(start)), None)
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), None)
    if what is None and encoding is None and b"\0" in data:
        what = "no text, or UTF-16 without its mark"
    if what:
        raise error(f"{path}: is {what}.", hint="save the table as CSV UTF-8")
    for name in (encoding,) if encoding else ("utf-8", "cp1252"):
        try:
            notes = ["is no UTF-8, read as Windows-1252: look at letters like ä, é, ß"]
            return data.decode(name), notes if name == "cp1252" else []
        except UnicodeDecodeError:
            continue
    raise error(
        f"{path}: no text in UTF-8, UTF-16 or Windows-1252.", hint="save the table as CSV UTF-8"
    )


def _records(text: str, delimiter: str, first_line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of every row that is not blank."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter != "\t"
    )
    start = end = 0
    try:
        for cells in reader:
            start, end = end, reader.line_num
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield first_line + start, stripped
    except csv.Error as reason:
        raise csv.Error(f"line {first_line + end}: {reason}") from reason
    if end - start > 1 and text.count('"') % 2:
        raise csv.Error(f"line {first_line + start}: a quote that is opened here is never closed")


def _find_delimiter(text: str, names: Collection[str]) -> str:
    """Find what separates the cells: what yields the names looked for, else equal rows."""
    whole = len(text) <= _SAMPLE_CHARS

    def fits(delimiter: str) -> tuple[int, float, int]:
        rows: list[list[str]] = []
        try:
            rows.extend(cells for _, cells in _records(text[:_SAMPLE_CHARS], delimiter))
        except csv.Error:
            if whole or len(rows) < 2:
                return (0, 0.0, 0)
        rows = [cells for cells in rows if not _is_comment(cells, names)]
        rows = rows if whole else rows[:-1]  # the last one is cut
        if not rows or len(rows[0]) == 1:
            return (_known(rows[0], names) if rows else 0, 0.0, 0)
        width = len(rows[0])
        equal = sum(len(cells) == width for cells in rows) / len(rows)
        return (_known(rows[0], names), equal, width)

    return max(DELIMITERS, key=fits)


def _known(cells: Sequence[str], names: Collection[str]) -> int:
    return len({plain_name(cell) for cell in _unmarked(cells, names)} & set(names))


def _unmarked(cells: Sequence[str], names: Collection[str]) -> list[str]:
    """Take the `#` off a header that is written as a comment: `#slide_id,label`."""
    bare = cells[0].removeprefix("#").strip()
    return [bare if plain_name(bare) in names else cells[0], *cells[1:]]


def _is_comment(cells: Sequence[str], names: Collection[str]) -> bool:
    if not cells[0].startswith("#") or is_missing(cells[0]):
        return False
    return not ({plain_name(cell) for cell in _unmarked(cells, names)} & set(names))


def _without_comments(
    rows: Sequence[tuple[int, list[str]]], names: Collection[str]
) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Drop comments; the second value says how many stood among the rows."""
    kept = [row for row in rows if not _is_comment(row[1], names)]
    above = {line for line, _ in rows if not kept or line < kept[0][0]}
    among = sorted({line for line, _ in rows} - {line for line, _ in kept} - above)
    if not among:
        return kept, []
    return kept, [f"{len(among)} line(s) that start with # are left out, first line {among[0]}"]


def _columns(
    path: Path,
    header: Sequence[str],
    body: Sequence[tuple[int, list[str]]],
    error: type[InputError],
) -> dict[str, tuple[str, ...]]:
    named = [place for place, name in enumerate(header) if name]
    spelt: dict[str, str] = {}
    for place in named:
        key = plain_name(header[place])
        if key in spelt:
            raise error(
                f"{path}: two columns are called {spelt[key]!r} and {header[place]!r}.",
                hint="rename one of them",
            )
        spelt[key] = header[place]
    width = named[-1] + 1
    for line, cells in body:
        if len(cells) < width or any(cells[len(header) :]):
            raise error(
                f"{path}, line {line}: {len(cells)} cells, but the header has {width} "
                f"({_some(header)}).",
                hint=_ragged_hint(width, [len(cells) for _, cells in body]),
            )
    return {header[place]: tuple(cells[place] for _, cells in body) for place in named}


def _ragged_hint(width: int, widths: Sequence[int]) -> str:
    if set(widths) == {width + 1}:
        return "every row has one more: R's row names? Write the table with row.names = FALSE"
    return "put cells that hold the separator into double quotes"


def _same_groups(first: Sequence[str], second: Sequence[str]) -> bool:
    pairs = set(zip(first, second, strict=True))
    return len(pairs) == len(set(first)) == len(set(second))


def _some(names: Collection[str], shown: int = 12) -> str:
    listed = [name if len(name) < 40 else f"{name[:37]}…" for name in names if name]
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more or "nothing"
