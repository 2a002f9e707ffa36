"""Labels that the stores hold themselves: classes of images of cells, regions of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cytofm_cli.errors import LabelError, UsageError
from cytofm_cli.evaluate.features import Source
from cytofm_cli.evaluate.points import Points, read_groups
from cytofm_cli.stats.classes import merge_spellings
from cytofm_cli.store import schema
from cytofm_cli.store.tables import NUCLEUS
from cytofm_cli.words import is_missing, named

_TABLE = "a table of points (--points, of `cells train` --labels)"


def stored_points(sources: Sequence[Source], groups: Path | None = None) -> Points:
    """Return the cells of stores of `cytofm tile --cells` that have a label.

    Args:
        sources: stores.
        groups: table `slide_id,group`; else each store is a group.

    Raises:
        UsageError: slides, or stores of slides, which hold no labels.
        LabelError: no cell has a label, or a store has no group.
    """
    slides: list[str] = []
    labels: list[str] = []
    xy_px0 = [np.zeros((0, 2))]
    for source in sorted(sources, key=lambda source: source.slide_id):
        store = source.store
        if store is None or store.tile.apart is None:
            raise UsageError(
                f"{source.path}: needs labelled points.",
                hint=f"{_TABLE}; stores of `cytofm tile --cells` hold labels of cells, those of "
                "`tile --regions` of tiles (--unit tile of evaluate)",
            )
        nuclei = store.nuclei(schema.GIVEN)
        names = [nuclei.classes[index] for index in nuclei.class_id]
        rows = [row for row, name in enumerate(names) if name != NUCLEUS]
        slides += [source.slide_id] * len(rows)
        labels += [names[row] for row in rows]
        xy_px0.append(nuclei.xy_px0[rows].astype(np.float64))
    if not slides:
        raise LabelError(
            "no cell of these stores has a label.",
            hint=f"a column label in the table of `cytofm tile --cells`, or {_TABLE}",
        )
    of_group, notes = _groups_of(slides, groups)
    merged, remarks = merge_spellings(labels, "label")
    return Points(tuple(slides), np.concatenate(xy_px0), merged, of_group, notes=(*notes, *remarks))


def stored_tiles(sources: Sequence[Source], groups: Path | None = None) -> Points:
    """Return the tiles of stores of `cytofm tile --regions` that a region labels.

    Arguments and errors as of `stored_points`.
    """
    slides: list[str] = []
    labels: list[str] = []
    xy_px0 = [np.zeros((0, 2))]
    rows = [np.zeros(0, np.int64)]
    for source in sorted(sources, key=lambda source: source.slide_id):
        tiles = None if source.store is None else source.store.tiles()
        if tiles is None or tiles.label is None:
            raise UsageError(
                f"{source.path}: holds no labels of tiles.",
                hint="`cytofm tile --regions FILE` stores them; or --points points.csv",
            )
        there = np.flatnonzero(tiles.label >= 0)
        slides += [source.slide_id] * len(there)
        labels += [tiles.labels[index] for index in tiles.label[there]]
        xy_px0.append(tiles.xy_px0[there].astype(np.float64))
        rows.append(there)
    if not slides:
        raise LabelError(
            "no tile of these stores has a label of a region.",
            hint="`cytofm tile --region-label CLASS,CLASS`, or --points points.csv",
        )
    of_group, notes = _groups_of(slides, groups)
    merged, remarks = merge_spellings(labels, "label")
    return Points(
        tuple(slides),
        np.concatenate(xy_px0),
        merged,
        of_group,
        np.concatenate(rows),
        notes=(*notes, *remarks),
    )


def _groups_of(slides: Sequence[str], groups: Path | None) -> tuple[tuple[str, ...], list[str]]:
    if groups is None:
        return tuple(slides), ["no --groups: stores are taken as groups"]
    group_of, notes = read_groups(groups, set(slides))
    if without := {slide for slide in slides if is_missing(group_of.get(slide, ""))}:
        raise LabelError(f"{groups}: {len(without)} slide(s) have no group: {named(without)}.")
    merged, remarks = merge_spellings([group_of[slide] for slide in slides], "group")
    return merged, [*notes, *remarks]
