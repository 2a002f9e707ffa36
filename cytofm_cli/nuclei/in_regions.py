"""The regions of a slide that has a store, and the nuclei within."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli.nuclei.place import place_of
from cytofm_cli.regions.base import Place
from cytofm_cli.regions.config import RegionChoice
from cytofm_cli.regions.files import RegionFile, check_there
from cytofm_cli.regions.select import Judged, Wanted, judge_points, open_regions
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import NucleusTable

Note = Callable[[str], None]


def regions_of_store(
    store: Store,
    file: RegionFile | None,
    config: RegionChoice,
    note: Note,
    *,
    slides: Path | None = None,
) -> Wanted | None:
    """Read the regions of a store's slide; None where none are asked for.

    Args:
        store: with tiles.
        file: the file of its regions.
        config: the settings.
        note: told what was left out or assumed.
        slides: folder where the slides lie now.

    Raises:
        InputError: they cannot be used, or the slide has none.
    """
    check_there(file, store.slide_id, config)
    if file is None:
        return None

    def told(line: str) -> None:
        note(f"{store.slide_id}: {line}")

    within = place_of(store, note, slides=slides)
    place = Place(
        slide_id=store.slide_id,
        size_px0=within.size_px0,
        mpp=store.slide.mpp,
        bounds_px0=within.bounds_px0,
        centre_nm=store.slide.centre_nm,
    )
    foreground_HW = None
    if store.has(schema.FOREGROUND.path):
        foreground_HW = store.read(schema.FOREGROUND.path).astype(bool)
    return open_regions(file, config, place, told, foreground_HW=foreground_HW)


def tell_judged(wanted: Wanted, judged: Judged, what: str, slide_id: str, note: Note) -> None:
    """Say how many nuclei or tiles lie outside of regions; a warning if none is left."""
    n = len(judged.kept_N)
    line = (
        f"regions of {wanted.path.name}: {judged.n_outside} of {n} {what} lie outside, "
        f"{judged.n_excluded} in excluded ones"
    )
    if judged.kept_N.any() or not n:
        note(f"{slide_id}: {line}")
    else:
        note(f"warning: {slide_id}: {line}: none is left")


def within_regions(
    wanted: Wanted | None, table: NucleusTable, slide_id: str, note: Note
) -> tuple[NucleusTable, Mapping[str, Any] | None]:
    """Return the nuclei whose centre lies in the wanted regions, and what the record says."""
    if wanted is None:
        return table, None
    judged = judge_points(wanted, table.xy_px0)
    tell_judged(wanted, judged, "nuclei", slide_id, note)
    facts = {**wanted.facts(), "rule": "centre", **judged.facts()}
    return table.take(np.flatnonzero(judged.kept_N)), facts
