"""Nuclei as points in a table: x and y by hand, or the measurements that QuPath exports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.base import MAX_CLASSES, NUCLEUS, NucleusTable, concatenate, make_table
from cytofm_cli.nuclei.files import EXPECTED, slide_column
from cytofm_cli.regions.geojson_objects import REGIONS, plain_kind
from cytofm_cli.slide_files import slide_of
from cytofm_cli.tables import Table, read_pieces
from cytofm_cli.words import is_missing

Note = Callable[[str], None]
PIXELS: Final = (("x", "y"), ("x_px", "y_px"), ("x_px0", "y_px0"), ("centroid_x", "centroid_y"))
MICROMETRES: Final = (("x_um", "y_um"), ("x µm", "y µm"))
QUPATH_PIXELS: Final = (("centroid x px", "centroid y px"),)
QUPATH_UM: Final = (("centroid x µm", "centroid y µm"), ("centroid x um", "centroid y um"))
CLASSES: Final = ("label", "class", "classification", "class_name", "cell_type")
PROBABILITIES: Final = ("probability", "detection probability")
AREAS: Final = ("area_um2", "nucleus: area µm^2", "nucleus: area µm²", "area µm^2", "area µm²")
KINDS: Final = ("object type", "objectType")
_SLACK: Final = 1e-6


@dataclass(frozen=True)
class Points:
    """The nuclei of one slide in a table.

    Attributes:
        table: in pixels of the file, not sorted.
        by_qupath: the columns are QuPath's: coordinates begin where QuPath's do.
        in_um: the file has micrometres, converted by the slide's resolution.
    """

    table: NucleusTable
    by_qupath: bool
    in_um: bool


def read_points(path: Path, mpp: float, slide_id: str | None, note: Note) -> Points:
    """Read the points of one slide.

    Args:
        path: a table with columns x and y, or QuPath's; optional: class, probability, area, and
            a column that names the slide.
        mpp: µm/px of level 0, for coordinates in micrometres.
        slide_id: rows of other slides are passed over; None takes all rows.
        note: told what was assumed or left out.

    Raises:
        InputError: no such columns, a cell that is no number (the message names its line), a
            probability outside 0..1, or no row of this slide.
    """
    ours = _Ours(path, slide_id)
    parts: list[NucleusTable] = []
    for piece in read_pieces(path, EXPECTED, allow_empty=True):
        for remark in piece.notes:
            note(f"warning: {remark}")
        names, by_qupath, in_um = _columns(piece)
        rows = ours.nuclei(piece)
        if rows:
            parts.append(_part(piece, rows, names, mpp if in_um else 1.0))
        if (n := len({name for part in parts for name in part.classes})) > MAX_CLASSES:
            raise InputError(f"{path}: {n} classes; a table holds {MAX_CLASSES}.")
    ours.check(note)
    return Points(_by_class(concatenate(parts)).validate(str(path)), by_qupath, in_um)


class _Ours:
    """Tells the rows that are nuclei of a slide, and what the others were."""

    def __init__(self, path: Path, slide_id: str | None) -> None:
        self._path = path
        self._slide_id = slide_id
        self._column: str | None = None
        self._names: dict[str, bool] = {}  # whether each name is of the slide
        self._regions: Counter[str] = Counter()
        self._n = 0

    def nuclei(self, piece: Table) -> list[int]:
        """Return the rows of a piece that are nuclei of the slide."""
        rows = list(range(len(piece)))
        self._column = slide_column(piece)
        if self._column and self._slide_id is not None:
            names = piece.columns[self._column]
            for name in set(names).difference(self._names):
                self._names[name] = slide_of(name, (self._slide_id,)) is not None
            rows = [row for row in rows if self._names[names[row]]]
        self._n += len(rows)
        kinds = piece.find(*KINDS)
        if not kinds:
            return rows
        of_row = [plain_kind(kind) for kind in piece.columns[kinds[0]]]
        self._regions.update(of_row[row] for row in rows if of_row[row] in REGIONS)
        return [row for row in rows if of_row[row] not in REGIONS]

    def check(self, note: Note) -> None:
        """Say what was left out.

        Raises:
            InputError: no row is of the slide, or all of them are regions.
        """
        if self._names and not any(self._names.values()):
            some = ", ".join(repr(name) for name in sorted(self._names)[:3])
            raise InputError(
                f"{self._path}: no row is of slide {self._slide_id} (column {self._column}: "
                f"{some}).",
                hint="names must agree",
            )
        if not self._regions:
            return
        counts = sorted(self._regions.items())
        told = ", ".join(f"{count} {REGIONS[kind]}" for kind, count in counts)
        if sum(self._regions.values()) == self._n:
            raise InputError(f"{self._path}: holds {told} and neither detections nor cells.")
        note(f"{self._path}: {told} left out: regions, no nuclei")


def _part(piece: Table, rows: list[int], names: list[str], unit_px: float) -> NucleusTable:
    """Return rows of a piece as numbers; `unit_px`: its units to a pixel of the file."""
    labels = _labels(piece, rows)
    classes = tuple(dict.fromkeys(labels))
    index = {name: i for i, name in enumerate(classes)}
    return make_table(
        np.stack([_numbers(piece, name, rows, None) for name in names], axis=1) / unit_px,
        _optional(piece, AREAS, rows, math.nan),
        probability=_probabilities(piece, rows),
        class_id=np.array([index[label] for label in labels]),
        classes=classes,
    )


def _by_class(table: NucleusTable) -> NucleusTable:
    """Return a table whose classes are in order, whatever row has each first."""
    classes = tuple(sorted(table.classes))
    place = np.array([classes.index(name) for name in table.classes], np.uint8)
    return replace(table, class_id=place[table.class_id], classes=classes)


def _columns(table: Table) -> tuple[list[str], bool, bool]:
    """Return the columns of x and y, and whether they are QuPath's, and micrometres."""
    for pairs, by_qupath, in_um in (
        (PIXELS, False, False),
        (MICROMETRES, False, True),
        (QUPATH_PIXELS, True, False),
        (QUPATH_UM, True, True),
    ):
        for pair in pairs:
            found = [column for name in pair for column in table.find(name)]
            if len(found) == len(pair):
                return found, by_qupath, in_um
    hint = "the first line must be: x,y or x,y,label"
    return [table.need("x", hint=hint), table.need("y", hint=hint)], False, False


def _labels(table: Table, rows: list[int]) -> list[str]:
    found = table.find(*CLASSES)
    if not found:
        return [NUCLEUS] * len(rows)
    cells = table.columns[found[0]]
    return [NUCLEUS if is_missing(cells[row]) else cells[row] for row in rows]


def _numbers(
    table: Table, column: str, rows: list[int], default: float | None
) -> NDArray[np.float64]:
    return np.array(table.numbers(column, default=default), np.float64)[rows]


def _optional(
    table: Table, names: tuple[str, ...], rows: list[int], default: float
) -> NDArray[np.float64]:
    found = table.find(*names)
    if not found:
        return np.full(len(rows), default)
    return _numbers(table, found[0], rows, default)


def _probabilities(table: Table, rows: list[int]) -> NDArray[np.float64]:
    values = _optional(table, PROBABILITIES, rows, 1.0)
    wrong = np.flatnonzero((values < -_SLACK) | (values > 1 + _SLACK))
    if len(wrong):
        column = table.find(*PROBABILITIES)[0]
        raise InputError(
            f"{table.place(rows[wrong[0]], column)}: probability {values[wrong[0]]:g} is outside "
            "0..1."
        )
    return values.clip(0, 1)
