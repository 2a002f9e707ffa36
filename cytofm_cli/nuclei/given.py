"""The nuclei of images of cells: one point each, as the user gave it, and its class.

Nothing is detected. The step is named as a detector, `given`, so that what works on nuclei works
on these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli.config import digest
from cytofm_cli.nuclei.base import NUCLEUS, make_table
from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import commit, io, lineage, schema
from cytofm_cli.store.records import NucleiRecord

_STEP = schema.nuclei_step(schema.GIVEN)


def keep_given(
    path: Path, labels: Sequence[int | None], classes: Sequence[str], *, overwrite: bool = False
) -> bool:
    """Write the nuclei of a store of images of cells, unless they are there.

    Args:
        path: the store, with its tiles.
        labels: of each tile, index into `classes`; None: it has none.
        classes: names of the classes of the whole cohort.
        overwrite: replace others.

    Returns:
        Whether they were written.

    Raises:
        ConfigMismatchError: other classes are there.
    """
    store = io.open_store(path)
    names = (*classes, NUCLEUS) if None in labels or not classes else tuple(classes)
    names = tuple(dict.fromkeys(names))
    class_id = [len(classes) if label is None else label for label in labels]
    settings: dict[str, Any] = {
        "detector": schema.GIVEN,
        "labels": digest({"classes": names, "of": class_id}),
    }
    mark = store.tile.mark

    def is_done() -> bool:
        return not overwrite and commit.is_finished(
            path, _STEP, config=settings, input_fingerprint=mark
        )

    if is_done():
        commit.settle(path, _STEP)
        return False
    with io.claim_step(path.parent, store.slide_id, _STEP):
        if is_done():
            return False
        xy_px0 = store.tile_xy_px0 + store.read(schema.TILE_POINT.path)
        table = make_table(
            xy_px0, np.full(len(xy_px0), np.nan), class_id=np.array(class_id), classes=names
        ).validate(str(path))
        record = NucleiRecord(
            **provenance.stamp(settings, input_fingerprint=mark),
            n=len(table),
            detector=schema.GIVEN,
            classes=names,
            other={"n_labelled": sum(label is not None for label in labels)},
            made_from=lineage.made_from(store.steps, schema.TILE_STEP),
        )
        with io.staging(path.parent, store.slide_id, _STEP) as staged:
            write_nuclei(staged, table)
            commit.commit_group(staged, path, _STEP, record)
    return True
