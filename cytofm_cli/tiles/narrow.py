"""Which of the tiles with foreground regions and limits of quality leave.

Legend: N tiles that are looked at; M of them that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import NoForegroundError
from cytofm_cli.regions.base import Place
from cytofm_cli.regions.files import check_there
from cytofm_cli.regions.select import NO_LABEL, Wanted, judge_tiles, label_tiles, open_regions
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.quality import keep_good

Note = Callable[[str], None]


@dataclass(frozen=True, eq=False, kw_only=True)
class InRegions:
    """The tiles that regions leave.

    Attributes:
        rows_M: which tiles these are.
        label_M: int16, index into `facts["label"]`, or -1; None without regions.
        facts: for the record; None without regions.
    """

    rows_M: NDArray[np.int64]
    label_M: NDArray[np.int16] | None = None
    facts: Mapping[str, Any] | None = None


def place_of_slide(info: SlideInfo, slide_id: str, mpp: float) -> Place:
    """Return where regions of an open slide lie."""
    return Place(
        slide_id=slide_id,
        size_px0=info.size_px0,
        mpp=mpp,
        bounds_px0=info.bounds_px0,
        centre_nm=info.centre_nm,
    )


def wanted_regions(
    info: SlideInfo, job: TileJob, mpp: float, foreground_HW: NDArray[np.bool_], note: Note
) -> Wanted | None:
    """Read the regions of a job's slide; None if it has none to look at.

    Raises:
        InputError: they cannot be used, see `open_regions`; or the slide has none.
    """
    check_there(job.regions, job.slide_id, job.config)
    if job.regions is None:
        return None
    place = place_of_slide(info, job.slide_id, mpp)

    def told(line: str) -> None:
        note(f"{job.slide_id}: {line}")

    return open_regions(job.regions, job.config, place, told, foreground_HW=foreground_HW)


def in_regions(
    wanted: Wanted | None, xy_px0: NDArray[np.int32], tile_px0: float, path: str
) -> InRegions:
    """Return the tiles that lie in the wanted regions, and their labels.

    Args:
        wanted: the regions; None: all tiles are.
        xy_px0: (n, 2) top-left corners.
        tile_px0: side of a tile.
        path: the slide, for messages.

    Raises:
        NoForegroundError: none is left.
    """
    if wanted is None:
        return InRegions(rows_M=np.arange(len(xy_px0)))
    judged = judge_tiles(wanted, xy_px0, tile_px0)
    rows_M = np.flatnonzero(judged.kept_N)
    if not len(rows_M):
        raise NoForegroundError(
            f"{path}: {wanted.path.name} leaves none of {len(xy_px0)} tiles with foreground: "
            f"{judged.n_outside} lie outside of its regions, {judged.n_excluded} in excluded ones "
            f"({wanted.rule}).",
            hint="look at it with `cytofm tile --preview DIR` and no --regions; or a lower "
            "'fraction>=F'",
        )
    label_M = label_tiles(wanted, xy_px0[rows_M], tile_px0)
    return InRegions(rows_M=rows_M, label_M=label_M, facts={**wanted.facts(), **judged.facts()})


def labelled(facts: Mapping[str, Any] | None, label_M: NDArray[np.int16] | None) -> Any:
    """Add to the facts of regions how many of the tiles that are taken have which label."""
    if facts is None or label_M is None:
        return None
    counts = {name: int((label_M == i).sum()) for i, name in enumerate(facts["label"])}
    return {**facts, "labelled": counts, "n_unlabelled": int((label_M == NO_LABEL).sum())}


def within_limits(
    columns: Mapping[str, NDArray[np.float32]], limits: Mapping[str, float], path: str
) -> tuple[NDArray[np.int64], dict[str, Any] | None]:
    """Return the tiles within all limits of quality, and what the record says of them.

    Raises:
        NoForegroundError: none is left; names how many each limit took.
    """
    n = len(next(iter(columns.values())))
    if not limits:
        return np.arange(n), None
    good_N, removed = keep_good(columns, limits)
    told = ", ".join(f"{name} {count}" for name, count in removed.items())
    if not good_N.any():
        raise NoForegroundError(
            f"{path}: the limits of quality leave none of {n} tiles: {told}.",
            hint="loosen them: `cytofm tile` without limits stores what each tile measures",
        )
    return np.flatnonzero(good_N), {
        "limits": dict(limits),
        "removed": removed,
        "n_removed": int((~good_N).sum()),
    }
