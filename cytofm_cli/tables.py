"""Every table that a user hands in, read by one tolerant reader.

Labels, manifests, points, splits, groups and pairs come from Excel, R, pandas, QuPath and text
editors. Comma, semicolon or tab; UTF-8, UTF-16 with its mark, or Windows-1252; any line ends;
blanks around cells; any case, blanks, `_` and `-` in column names; decimal commas where the
comma does not separate; lines that are blank or start with `#`; Excel's `sep=;`. What cannot be
read for sure is refused with file, line and column.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

from cytofm_cli.errors import InputError
from cytofm_cli.table_text import (
    SAMPLE_CHARS,
    Comments,
    find_delimiter,
    known,
    open_text,
    records,
    unmarked,
)
from cytofm_cli.words import is_missing, plain_name

PIECE_ROWS: Final = 1 << 16
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
        decimal: columns in which a comma is known to be a decimal one; pieces share it.
    """

    path: Path
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    delimiter: str
    notes: tuple[str, ...] = ()
    error: type[InputError] = InputError
    decimal: set[str] = field(default_factory=set)

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
        columns = self.find(*names)
        if not columns:
            close = self._closest(names)
            mend = f"{flag} {close}" if flag else f"Rename it {names[0]}"
            raise self.error(
                f"{self.path}: no column {names[0]} (found: {_some(self.columns)}).",
                hint=f"did you mean {close!r}? {mend}" if close else hint,
            )
        return columns[0]

    def label_column(
        self, wanted: str = "label", *, hint: str | None = None, flag: str = ""
    ) -> str:
        """Return the column of labels: the one that is wanted, or for "label" another name of it.

        Args:
            wanted: its name.
            hint: what to do where no column has a name like it.
            flag: the option that names the column, where there is one.

        Raises:
            error: it is not there, or several could be meant.
        """
        others = [] if self.find(wanted) or wanted != "label" else self.find(*LABEL_NAMES)
        if len(others) > 1:
            raise self.error(
                f"{self.path}: no column label; {' and '.join(others)} could be meant.",
                hint=f"{flag} {others[0]}, or rename one label" if flag else "rename one label",
            )
        flag = "" if wanted == "label" else flag
        return others[0] if others else self.need(wanted, hint=hint, flag=flag)

    def group_column(
        self, wanted: str | None = None, *, besides: str = "", flag: str = ""
    ) -> str | None:
        """Return the column of patients; None: there is none.

        Args:
            wanted: the column that the user names.
            besides: a column that is taken for something else.
            flag: the option that names the column, where there is one.

        Raises:
            error: it is not there, or two columns group the rows differently.
        """
        if wanted is not None:
            return self.need(
                wanted, hint=f"{flag} COLUMN names the column of the patients", flag=flag
            )
        columns = [column for column in self.find(*GROUP_NAMES) if column != besides]
        for other in columns[1:]:
            if not _same_groups(self.columns[columns[0]], self.columns[other]):
                raise self.error(
                    f"{self.path}: columns {columns[0]} and {other} group the rows differently.",
                    hint=f"say which is the patient: {flag} {columns[0]} or {flag} {other}, or "
                    "leave the other out"
                    if flag
                    else "leave the column out that is not of patients",
                )
        return columns[0] if columns else None

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
        if not all(_THOUSANDS.fullmatch(cells[row]) for row in commas):
            self.decimal.add(column)
        if commas and column not in self.decimal and self.delimiter == "\t":
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
    (table,) = read_pieces(path, expected, error=error, allow_empty=allow_empty, n_rows=None)
    return table


def read_pieces(
    path: Path,
    expected: Collection[str] = (),
    *,
    error: type[InputError] = InputError,
    allow_empty: bool = False,
    n_rows: int | None = PIECE_ROWS,
) -> Iterator[Table]:
    """Read a table with a header some rows at a time, so that millions of rows fit in memory.

    Args:
        path, expected, error, allow_empty: as in `read_table`.
        n_rows: rows of a piece; the last has fewer, or none, and the notes of all; None: all rows.

    Raises:
        error: as `read_table`, where the piece begins that is at fault.
    """
    names = frozenset(plain_name(name) for name in expected)
    decimal: set[str] = set()
    try:
        with open_text(path, error) as (text, notes):
            delimiter, first_line = _begin(text, names)
            comments = Comments(names)
            rows = comments.without(records(text, delimiter, first_line))
            first = next(rows, None)
            if first is None:
                raise error(f"{path}: is empty.", hint="the first line must name the columns")
            header, body = unmarked(first[1], names), list(islice(rows, n_rows))
            widths = {len(cells) for _, cells in (first, *body)}
            if names and not known(header, names) and len(widths) > 1:
                raise error(
                    f"{path}: no column {next(iter(expected))} (found: {_some(header)}).",
                    hint="is it a table, and the right one?",
                )
            if not body and not allow_empty:
                raise error(f"{path}: has a header but no rows.")
            is_last = False
            while not is_last:
                is_last = n_rows is None or len(body) < n_rows
                remarks = (*notes, *comments.notes) if is_last else ()
                yield Table(
                    path=path,
                    columns=_columns(path, header, body, error),
                    lines=tuple(line for line, _ in body),
                    delimiter=delimiter,
                    notes=tuple(f"{path}: {note}" for note in remarks),
                    error=error,
                    decimal=decimal,
                )
                body = list(islice(rows, n_rows))
    except csv.Error as reason:
        raise error(f"{path}, {reason}.", hint="save the table as CSV UTF-8") from reason


def _begin(text: TextIO, names: Collection[str]) -> tuple[str, int]:
    """Go to the first line of a table; return what separates its cells, and that line's number."""
    sample = text.read(SAMPLE_CHARS + 1)
    text.seek(0)
    said = re.match(r'"?sep=(.)"?[ \t]*(\r\n|\n|\r)', sample, re.IGNORECASE)
    if said is None:
        return find_delimiter(sample, names), 1
    text.readline()  # Excel's own first line
    return said[1], 2


def match_slide(name: str, slide_ids: Collection[str]) -> str | None:
    """Find the slide that a cell names: by its id, or by a file with folders or a suffix."""
    file = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    suffix = _SUFFIX.search(file)
    stem = file[: suffix.start()] if suffix else file
    return next((word for word in (name, file, stem) if word in slide_ids), None)


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
