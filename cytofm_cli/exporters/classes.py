"""Classes that a RUN of `cytofm cells` gave to nuclei, as exporters write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.exporters.base import Note
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import ABSTAINED

DETECTOR = "detector"


@dataclass(frozen=True, eq=False)
class NucleiClasses:
    """Classes of all nuclei of a detector, in its order.

    Attributes:
        names: of the classes; `abstained` last, where there is such a nucleus.
        class_N: uint8, index into `names`.
        columns: probabilities and distances, by the name that QuPath shows.
    """

    names: tuple[str, ...]
    class_N: NDArray[np.uint8]
    columns: Mapping[str, NDArray[Any]]

    def given(self, table: NucleusTable, rows: slice) -> NucleusTable:
        """Return some nuclei with these classes."""
        return replace(table, class_id=self.class_N[rows], classes=self.names)


def classes_run(store: Store, detector: str, run: str | None, note: Note) -> str | None:
    """Return the RUN whose classes the nuclei of a detector get; None: the detector's own.

    Raises:
        StoreError: the one that is named has classified none of them.
    """
    there = [
        name
        for step in sorted(store.steps)
        if step.startswith("classes/")
        and store.classes_record(name := step.partition("/")[2]).detector == detector
    ]
    if run == DETECTOR:
        return None
    if run is None:
        if len(there) > 1:
            note(f"{store.slide_id}: classified by {', '.join(there)}; --classes NAME chooses")
        if len(there) != 1:
            return None
        if (why := store.why_stale(schema.classes_step(there[0]))) is not None:
            note(f"warning: {store.path}: classes by {there[0]} are left out: {why}")
            return None
        return there[0]
    if schema.node_name(run) not in there:
        hint = f"there are those of {', '.join(there)}" if there else "`cytofm cells apply` first"
        raise StoreError(
            f"{store.path}: RUN {run} has not classified nuclei of {detector} here.", hint=hint
        )
    store.require_fresh(schema.classes_step(run))
    return schema.node_name(run)


def read_classes(store: Store, run: str) -> NucleiClasses:
    """Read the classes that a RUN gave; it is one of `classes_run`."""
    step, record = schema.classes_step(run), store.classes_record(run)
    class_N, p_NC = store.read(f"{step}/class"), store.read(f"{step}/probability")
    silent_N = store.read(f"{step}/abstained") != 0
    names = record.classes
    if silent_N.any():
        names = (*names, ABSTAINED)
        class_N = np.where(silent_N, len(record.classes), class_N).astype(np.uint8)
    columns = {f"probability of {name}": p_NC[:, c] for c, name in enumerate(record.classes)}
    if store.has(f"{step}/score"):
        columns["distance from normal cells"] = store.read(f"{step}/score")
    return NucleiClasses(names, class_N, columns)
