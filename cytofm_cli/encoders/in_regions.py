"""Which rows of a bag lie in the regions that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.config import EmbedConfig
from cytofm_cli.errors import StoreError
from cytofm_cli.nuclei.in_regions import regions_of_store, tell_judged
from cytofm_cli.regions.config import CENTRE
from cytofm_cli.regions.files import RegionFile
from cytofm_cli.regions.select import judge_points, judge_tiles
from cytofm_cli.store.io import Store

Note = Callable[[str], None]


def rows_in_regions(
    store: Store, file: RegionFile | None, config: EmbedConfig, note: Note
) -> tuple[NDArray[np.int64] | None, Mapping[str, Any] | None]:
    """Return which tiles or cells are embedded, and what the record says of the regions.

    Args:
        store: with tiles, and nuclei for cells.
        file: the file of its regions.
        config: the settings; cells lie where their centre does, whatever the rule.
        note: told what was left out or assumed.

    Returns:
        rows of the tiles or nuclei, increasing; None, None without regions.

    Raises:
        InputError: the regions cannot be used.
        StoreError: no row is left.
    """
    wanted = regions_of_store(store, file, config, note, slides=config.slides)
    if wanted is None:
        return None, None
    if config.unit == "tile":
        judged = judge_tiles(wanted, store.tile_xy_px0, store.tile.tile_px0)
    else:
        judged = judge_points(wanted, store.nuclei_xy_px0(config.detector))
    rows = np.flatnonzero(judged.kept_N)
    if not len(rows):
        raise StoreError(
            f"{store.path}: {wanted.path.name} leaves none of {len(judged.kept_N)} {config.unit}s: "
            f"{judged.n_outside} lie outside of its regions, {judged.n_excluded} in excluded ones.",
            hint="leave the slide out, or name other classes",
        )
    tell_judged(wanted, judged, f"{config.unit}s", store.slide_id, note)
    rule = wanted.rule if config.unit == "tile" else CENTRE
    return rows, {**wanted.facts(), "rule": rule, **judged.facts()}
