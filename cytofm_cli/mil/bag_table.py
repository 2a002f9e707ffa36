"""Bags by a table: which cells belong together, where each lies once in some store.

Stores of `cytofm tile --cells` name the image of every tile. A table `slide_id,file` puts such
instances together to bags, in any number: one cell may serve in several, and is stored and
embedded once.

Legend: N instances, D features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from cytofm_cli.errors import InputError
from cytofm_cli.mil import origin as origins
from cytofm_cli.mil.bag import Bag
from cytofm_cli.store import io, schema
from cytofm_cli.store.records import NEW, OUT_OF_FOLD, TRAINING
from cytofm_cli.tables import read_table
from cytofm_cli.words import named

ID_NAMES: Final = ("slide_id", "bag", "bag_id", "slide", "slide_name")
FILE_NAMES: Final = ("file", "filename", "file_name", "image", "path")
_HINT: Final = "the header must be slide_id,file"
_NO_CELLS: Final = "--bag-table needs stores of `cytofm tile --cells`"
_BASES: Final = ("", NEW, OUT_OF_FOLD, TRAINING)  # the last of those of its cells is a bag's
_STORES_KEPT: Final = 16  # features of so many stores are in memory at a time


def read_bag_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Read which files each bag has, in the order of the table; bags sorted by name.

    Raises:
        InputError: unreadable, a column missing, a bag without a name or a file, or one that
            names a file twice.
    """
    table = read_table(path, (*ID_NAMES, *FILE_NAMES))
    ids, files = (table.columns[table.need(*names, hint=_HINT)] for names in (ID_NAMES, FILE_NAMES))
    bags: dict[str, dict[str, int]] = {}
    for row, (bag, file) in enumerate(zip(ids, files, strict=True)):
        if not bag:
            raise InputError(f"{table.place(row)}: a cell of no bag.", hint=_HINT)
        of_bag = bags.setdefault(bag, {})
        if not file:
            continue
        if file in of_bag:
            raise InputError(f"{table.place(row)}: {file} comes twice in bag {bag}.")
        of_bag[file] = row
    if empty := [bag for bag, of in bags.items() if not of]:
        raise InputError(
            f"{path}: {len(empty)} bags name no file: {named(empty)}.",
            hint="an empty bag cannot be learnt from: leave its rows out",
        )
    return {bag: tuple(bags[bag]) for bag in sorted(bags)}


def sharing_notes(table: Path, group_of: Mapping[str, str]) -> list[str]:
    """Say which cells are in bags of several groups: they stand on both sides of a split.

    Args:
        table: which cells each bag has.
        group_of: group of each bag.
    """
    groups_of: dict[str, set[str]] = {}
    for bag, files in read_bag_table(table).items():
        for file in files if bag in group_of else ():
            groups_of.setdefault(file, set()).add(group_of[bag])
    shared = [f"{file} ({named(of)})" for file, of in groups_of.items() if len(of) > 1]
    if not shared:
        return []
    return [
        f"{len(shared)} cell(s) are in bags of several groups: what is learnt of them is judged "
        f"with them: {named(shared)}"
    ]


def table_bags(stores: Sequence[Path], table: Path, read: Callable[[Path], Bag]) -> Iterator[Bag]:
    """Yield the bags of a table, sorted by name; they have no coordinates.

    Args:
        stores: that hold the cells.
        table: which cells each bag has.
        read: reads all cells of a store.

    Raises:
        InputError: a table that cannot be used, a file that no store or more than one has, a
            store without cells or embeddings, or a bag of cells that do not fit together.
    """
    members = read_bag_table(table)
    place = _places(stores, members, table)
    cells_of = functools.lru_cache(_STORES_KEPT)(lambda store: _rows_of_tiles(store, read(store)))
    for bag, files in members.items():
        by_store: dict[Path, list[int]] = {}
        for at, file in enumerate(files):
            by_store.setdefault(place[file][0], []).append(at)
        cells = {store: cells_of(store) for store in by_store}
        origin, _ = origins.common({store.stem: of.origin for store, of in cells.items()})
        first = next(iter(cells.values())).features_ND
        if any(of.features_ND.shape[1] != first.shape[1] for of in cells.values()):
            raise InputError(
                f"{table}: the cells of bag {bag} have features of different widths.",
                hint="choose one encoder with `--encoder`",
            )
        features_ND = np.empty((len(files), first.shape[1]), first.dtype)
        for store, at_rows in by_store.items():
            rows = [place[files[at]][1] for at in at_rows]
            features_ND[at_rows] = cells[store].features_ND[rows]
        basis = max((of.basis for of in cells.values()), key=_BASES.index)
        yield Bag(bag, features_ND, None, origin, basis)


def _places(
    stores: Sequence[Path], members: Mapping[str, Sequence[str]], table: Path
) -> dict[str, tuple[Path, int]]:
    """Find the store and the tile of every file of a table."""
    wanted = {file for files in members.values() for file in files}
    place: dict[str, tuple[Path, int]] = {}
    for path in stores:
        for tile, file in enumerate(_files(path)):
            if file not in wanted:
                continue
            if file in place:
                raise InputError(
                    f"{table}: {file} is in two stores, {place[file][0].name} and {path.name}.",
                    hint="tile these cells from one table, or give one of the stores",
                )
            place[file] = (path, tile)
    if unknown := wanted - place.keys():
        lacking = [bag for bag, files in members.items() if not unknown.isdisjoint(files)]
        raise InputError(
            f"{table}: {len(unknown)} files of {len(lacking)} bags are in no store: "
            f"{named(unknown)} (bags {named(lacking)}).",
            hint="names must be those of the table of `cytofm tile --cells`",
        )
    return place


def _files(path: Path) -> tuple[str, ...]:
    if path.suffix != schema.STORE_SUFFIX:
        raise InputError(f"{path}: does not say which file an instance is.", hint=_NO_CELLS)
    with io.open_store(path) as store:
        files = store.files()
    if files is None:
        raise InputError(f"{path}: holds tiles of a slide, not images of cells.", hint=_NO_CELLS)
    return files


def _rows_of_tiles(path: Path, bag: Bag) -> Bag:
    """Return a store's bag with one row a tile, whatever the order of its cells was."""
    with io.open_store(path) as store:
        corner_px0, side = store.tile_xy_px0, round(store.tile.tile_px0)
    tile_of = {(x // side, y // side): tile for tile, (x, y) in enumerate(corner_px0.tolist())}
    rows = np.full(len(corner_px0), -1, np.int64)
    xy_px0 = [] if bag.xy_px0 is None else bag.xy_px0.tolist()
    for row, (x, y) in enumerate(xy_px0):
        tile = tile_of.get((x // side, y // side), -1)
        if tile < 0 or rows[tile] >= 0:
            raise InputError(
                f"{path}: what it says of cells is not one row a cell.",
                hint=f"cytofm embed {path} --unit cell --detector {schema.GIVEN}",
            )
        rows[tile] = row
    if (rows < 0).any():
        raise InputError(f"{path}: {int((rows < 0).sum())} of its cells are not embedded.")
    return replace(bag, features_ND=bag.features_ND[rows])
