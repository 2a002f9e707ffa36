"""What regions, limits and measures of quality did to the tiles of a slide, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cytofm_cli.store.records import TileRecord
from cytofm_cli.store.tables import Tiles


def regions_line(regions: Mapping[str, Any], n_foreground: int) -> str:
    """Say how many tiles regions left out and labelled.

    Args:
        regions: what a record says of them.
        n_foreground: tiles that were looked at.
    """
    labels = ", ".join(f"{name} {n}" for name, n in regions["labelled"].items())
    labels = f"; labelled {labels}, none {regions['n_unlabelled']}" if labels else ""
    return (
        f"regions of {regions['file']} ({regions['rule']}): {regions['n_outside']} of "
        f"{n_foreground} tiles with foreground lie outside, {regions['n_excluded']} in "
        f"excluded ones{labels}"
    )


def limits_line(quality: Mapping[str, Any], n_left: int) -> str:
    """Say how many tiles each limit of quality took away; `n_left` are left."""
    limits, removed = quality["limits"], quality["removed"]
    of_each = ", ".join(
        f"{name} {'<' if name == 'focus' else '>'} {limits[name]:g} {removed[name]}"
        for name in limits
    )
    return (
        f"limits of quality take away {quality['n_removed']} of "
        f"{n_left + quality['n_removed']} tiles: {of_each}"
    )


def narrowed_lines(record: TileRecord) -> list[str]:
    """Say what regions and limits did, if there are some."""
    lines = []
    if record.regions is not None:
        lines.append(regions_line(record.regions, record.n_foreground or 0))
    if record.quality is not None:
        left = record.n_foreground if record.n_candidates is None else record.n_candidates
        lines.append(limits_line(record.quality, left or 0))
    return lines


def quality_means(tiles: Tiles) -> dict[str, float]:
    """Return the mean of each column of quality over the tiles; none without tiles."""
    if not len(tiles):
        return {}
    return {name: float(np.mean(column)) for name, column in tiles.quality.items()}
