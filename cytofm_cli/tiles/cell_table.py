"""The table of images of cells: `file[,slide_id,label,mpp,x,y]`, and what is odd about it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cytofm_cli.errors import InputError
from cytofm_cli.slides.cell_images import (
    ARCHIVES,
    PACKED,
    ImagePlace,
    find_images,
    is_archive,
    place_of,
)
from cytofm_cli.stats.classes import class_order, merge_spellings, spelling_key
from cytofm_cli.store.tables import MAX_CLASSES, NUCLEUS
from cytofm_cli.tables import LABEL_NAMES, X_NAMES, Y_NAMES, Table, read_table
from cytofm_cli.tiles.cells import CellImage
from cytofm_cli.units import is_plausible_mpp
from cytofm_cli.words import is_missing, named

FILE_NAMES: Final = tuple("file filename file_name path file_path image image_path".split())
# Not all of `tables.SLIDE_NAMES`: `image` and `file` name the cell here.
ID_NAMES: Final = ("slide_id", "slide", "slide_name", "wsi")
_HINT: Final = "first line: file,slide_id,label; slide_id and label may be left out"


@dataclass(frozen=True)
class CellTable:
    """Images of cells by the store that they belong to.

    Attributes:
        of_store: name of the store: its images, in the order of the table.
        classes: names of the classes, in order; () without labels.
        stated: how many images have a resolution of their own.
        notes: what the user should know; after "warning: ", what was assumed of unclear text.
        source: the table, or the folder or archive of images.
    """

    of_store: Mapping[str, tuple[CellImage, ...]]
    classes: tuple[str, ...]
    stated: int
    notes: tuple[str, ...]
    source: Path

    @property
    def n(self) -> int:
        """Return how many images there are."""
        return sum(map(len, self.of_store.values()))


def read_cells(given: Path, images: Path | None, *, mpp: float) -> CellTable:
    """Read what `--cells` names: a table, or a folder or archive of images.

    Args:
        given: the table, or the images themselves.
        images: folder or archive whose members the table names; None: paths from the table's
            folder, else members of an archive called as the table that lies beside it.
        mpp: µm/px of images that state none.

    Raises:
        InputError: unreadable, a column missing, an image twice, an impossible number.
    """
    if given.is_dir() or given.suffix.lower() in ARCHIVES | PACKED:
        return _of_images(given, mpp)
    table = read_table(given, (*FILE_NAMES, *ID_NAMES, *LABEL_NAMES, "mpp", *X_NAMES, *Y_NAMES))
    return _of_table(table, images, mpp)


def _of_images(given: Path, mpp: float) -> CellTable:
    found = find_images(given)
    cells = tuple(CellImage(file=f, place=at, mpp=mpp) for f, at in found.items() if not at.why)
    left = [f"{file} {at.why}" for file, at in found.items() if at.why]
    if not cells:
        raise InputError(f"{given}: none of its {len(left)} images can be read: {named(left)}.")
    name = Path(os.path.abspath(given)).name  # noqa: PTH100 - it also follows `..`
    name = name.removesuffix(given.suffix if given.is_file() else "")
    notes = [f"{given}: no table: its {len(cells)} images become one store, {name}"]
    if left:
        notes.append(f"warning: {given}: {len(left)} images are left out: {named(left)}")
    return CellTable({name: cells}, (), 0, tuple(notes), given)


def _of_table(table: Table, images: Path | None, mpp: float) -> CellTable:
    path, notes = table.path, [f"warning: {note}" for note in table.notes]
    files = table.columns[table.need(*FILE_NAMES, hint=_HINT)]
    ids = _ids(table, notes)
    _refuse_unnamed(table, files)
    labels, classes = _labels(table, notes)
    own_mpp = _mpps(table)
    points = _points(table)
    places = _places(table, files, images, notes)
    _refuse_doubles(table, files, ids, places)
    of_store: dict[str, list[CellImage]] = {}
    for row, (file, store) in enumerate(zip(files, ids, strict=True)):
        cell = CellImage(
            file=file,
            place=places[row],
            mpp=mpp if math.isnan(own_mpp[row]) else own_mpp[row],
            label=labels[row],
            xy=points[row],
        )
        of_store.setdefault(store, []).append(cell)
    stated = sum(not math.isnan(value) for value in own_mpp)
    stores = {name: tuple(of_store[name]) for name in sorted(of_store)}
    return CellTable(stores, classes, stated, tuple(notes), path)


def _ids(table: Table, notes: list[str]) -> tuple[str, ...]:
    column = table.find(*ID_NAMES)
    if not column:
        name = table.path.stem
        notes.append(
            f"{table.path}: no column slide_id: all {len(table)} cells become one store, {name}"
        )
        return (name,) * len(table)
    ids = table.columns[column[0]]
    for row, name in enumerate(ids):
        if not name:
            raise InputError(f"{table.place(row, column[0])}: empty; which slide is the cell of?")
    alike: dict[str, set[str]] = {}
    for name in set(ids):
        alike.setdefault(spelling_key(name), set()).add(name)
    for names in alike.values():
        if len(names) > 1:
            listed = ", ".join(map(repr, sorted(names)))
            notes.append(
                f"warning: {table.path}: {listed} become stores of their own: is it one slide?"
            )
    return ids


def _refuse_unnamed(table: Table, files: Sequence[str]) -> None:
    for row, file in enumerate(files):
        if not file:
            raise InputError(f"{table.place(row)}: no file.", hint=_HINT)


def _refuse_doubles(
    table: Table, files: Sequence[str], ids: Sequence[str], places: Sequence[ImagePlace | None]
) -> None:
    """Refuse an image that comes twice, by whatever name."""
    first: dict[object, int] = {}
    apart, twice = {}, []
    for row, (file, place) in enumerate(zip(files, places, strict=True)):
        before = first.setdefault(file if place is None or place.why else place.key, row)
        if before == row:
            continue
        name = file if file == files[before] else f"{files[before]}, also called {file}"
        if ids[before] != ids[row]:
            apart[name] = f"{name} ({ids[before]} and {ids[row]})"
        else:
            twice.append(name)
    if apart:
        raise InputError(
            f"{table.path}: {len(apart)} cells are of two slides: {named(apart.values())}.",
            hint="bags that share cells are for `cytofm mil train --bag-table`.",
        )
    if twice:
        raise InputError(f"{table.path}: {len(set(twice))} cells come twice: {named(set(twice))}.")


def _labels(table: Table, notes: list[str]) -> tuple[list[int | None], tuple[str, ...]]:
    if not table.find(*LABEL_NAMES):
        return [None] * len(table), ()
    cells = table.columns[table.label_column()]
    merged, remarks = merge_spellings([c for c in cells if not is_missing(c)], "class")
    notes += [f"warning: {table.path}: {remark}" for remark in remarks]
    classes = class_order(list(merged))
    if len(classes) >= MAX_CLASSES:
        raise InputError(
            f"{table.path}: {len(classes)} labels; a store holds {MAX_CLASSES - 1} classes.",
            hint="is the column of labels the right one?",
        )
    if NUCLEUS in classes:
        raise InputError(
            f"{table.path}: the label {NUCLEUS!r} stands for cells without one.",
            hint="call that class otherwise",
        )
    names = iter(merged)
    index = [None if is_missing(cell) else classes.index(next(names)) for cell in cells]
    if lacking := index.count(None):
        notes.append(f"{table.path}: {lacking} of {len(table)} cells have no label")
    return index, tuple(classes)


def _mpps(table: Table) -> list[float]:
    column = table.find("mpp")
    if not column:
        return [math.nan] * len(table)
    values = table.numbers(column[0], default=math.nan)
    for row, value in enumerate(values):
        if not math.isnan(value) and not is_plausible_mpp(value):
            place = table.place(row, column[0])
            raise InputError(f"{place}: {value:g} is not between 0.05 and 5 µm/px.")
    return values


def _points(table: Table) -> list[tuple[float, float] | None]:
    x, y = (table.find(*names) for names in (X_NAMES, Y_NAMES))
    if bool(x) != bool(y):
        raise InputError(f"{table.path}: has only one of the columns x and y.")
    if not x:
        return [None] * len(table)
    x_N, y_N = (table.numbers(of[0], default=math.nan) for of in (x, y))
    for row, (a, b) in enumerate(zip(x_N, y_N, strict=True)):
        if math.isnan(a) != math.isnan(b):
            raise InputError(
                f"{table.place(row)}: only one of x and y is given.",
                hint="give both, or none: then the cell is the middle of its image",
            )
    return [None if math.isnan(a) else (a, b) for a, b in zip(x_N, y_N, strict=True)]


def _places(
    table: Table, files: Sequence[str], images: Path | None, notes: list[str]
) -> list[ImagePlace | None]:
    """Return where the images lie; what lies nowhere, its store will tell.

    Raises:
        InputError: none of them is there.
    """
    folder, where = table.path.parent, images
    if where is None and not (folder / files[0]).is_file():
        beside = [table.path.with_suffix(suffix) for suffix in (".tar", ".zip")]
        where = next((archive for archive in beside if is_archive(archive)), None)
        if where is not None:
            notes.append(f"{table.path}: its images are members of {where}")
    known = None if where is None else find_images(where)
    places = [place_of(file, folder, known) for file in files]
    if not any(places):
        raise InputError(
            f"{table.path}: none of its {len(files)} images is in {where or folder} "
            f"(first: {files[0]}).",
            hint="name the folder, .tar or .zip of the images: cytofm tile IMAGES --cells TABLE",
        )
    return places
