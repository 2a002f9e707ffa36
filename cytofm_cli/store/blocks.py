"""Nuclei of a store in blocks of rows: a slide of five million takes the memory of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import NucleusTable

ROWS: Final = 8192
_OF_TABLE: Final = ("xy_px0", "area_um2", "probability", "class", "contour_start", "contour_px0")


@dataclass(frozen=True, eq=False)
class NucleiBlock:
    """Rows of the nuclei of a slide.

    Attributes:
        first: row of the first one.
        table: the nuclei; probabilities and areas may be NaN.
        columns: what else is stored of each, by name, (m,).
    """

    first: int
    table: NucleusTable
    columns: Mapping[str, NDArray[Any]]


def nuclei_columns(store: Store, detector: str) -> tuple[str, ...]:
    """Return the names of what is stored of each nucleus besides the table, sorted.

    Every array with one number a nucleus is a column, whichever version of a detector wrote it.
    """
    group = store.path / schema.nuclei_step(detector)
    count = n_nuclei(store, detector)
    names = sorted(node.parent.relative_to(group).as_posix() for node in group.glob("**/zarr.json"))
    return tuple(
        name
        for name in names
        if name not in (".", *_OF_TABLE)
        and (group / name / "zarr.json").is_file()
        and store.shape(f"{schema.nuclei_step(detector)}/{name}") == (count,)
    )


def n_nuclei(store: Store, detector: str) -> int:
    """Return how many nuclei there are."""
    return store.shape(f"{schema.nuclei_step(detector)}/xy_px0")[0]


def nuclei_blocks(store: Store, detector: str, rows: int = ROWS) -> Iterator[NucleiBlock]:
    """Yield the nuclei of a detector in order; arguments and errors as of `Store.nuclei`.

    Raises:
        StoreError: also where a coordinate is no number, or the outlines do not fit the nuclei.
    """
    step = schema.nuclei_step(detector)
    store.require_fresh(step)
    count, classes = n_nuclei(store, detector), store.nuclei_record(detector).classes
    names = nuclei_columns(store, detector)
    with contextlib.ExitStack() as stack:
        arrays = {
            name: stack.enter_context(store.rows(f"{step}/{name}")) for name in (*_OF_TABLE, *names)
        }
        for first in range(0, count, rows):
            stop = min(first + rows, count)
            start = arrays["contour_start"].read(first, stop + 1)
            if len(start) != stop - first + 1 or np.any(np.diff(start) < 0):
                raise _misfit(store, step)
            table = NucleusTable(
                xy_px0=arrays["xy_px0"].read(first, stop),
                area_um2=arrays["area_um2"].read(first, stop),
                probability=arrays["probability"].read(first, stop),
                class_id=arrays["class"].read(first, stop),
                contour_px0=arrays["contour_px0"].read(int(start[0]), int(start[-1])),
                contour_start=start - start[0],
                classes=classes,
            )
            _check(table, store, step)
            yield NucleiBlock(first, table, {n: arrays[n].read(first, stop) for n in names})


def _check(table: NucleusTable, store: Store, step: str) -> None:
    fits = len(table.contour_px0) == table.contour_start[-1] and len(table.area_um2) == len(table)
    if not fits or int(table.class_id.max()) >= len(table.classes):
        raise _misfit(store, step)
    if not (np.isfinite(table.xy_px0).all() and np.isfinite(table.contour_px0).all()):
        raise StoreError(
            f"{store.path}: {step}: a coordinate is not a finite number.",
            hint="find the nuclei again: `cytofm detect --overwrite`",
        )


def _misfit(store: Store, step: str) -> StoreError:
    return StoreError(
        f"{store.path}: {step}: its arrays do not fit together.",
        hint="the store is damaged; find the nuclei again: `cytofm detect --overwrite`",
    )
