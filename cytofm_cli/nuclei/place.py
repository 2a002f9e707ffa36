"""Where the coordinates of other programs begin, and whether they lie on the slide.

Level 0 of a MIRAX or SCN slide is the whole glass, of which a part was scanned. QuPath shows
that part alone and counts from its corner; OpenSlide, and so cytofm, counts from the corner of
level 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cytofm_cli.errors import CytofmError, InputError
from cytofm_cli.store.io import Store
from cytofm_cli.store.tables import NucleusTable
from cytofm_cli.units import Box, Size

Note = Callable[[str], None]
SLIDE: Final = "slide"
BOUNDS: Final = "bounds"
# What OpenSlide says of these has bounds; stores of earlier versions did not keep them.
_CROPPED: Final = ("mirax", "leica")


@dataclass(frozen=True, kw_only=True)
class SlidePlace:
    """The slide that nuclei are brought to.

    Attributes:
        slide_id: its name.
        size_px0: size of level 0.
        bounds_px0: the scanned part, if it is not all of level 0.
    """

    slide_id: str
    size_px0: Size
    bounds_px0: Box | None = None

    def frame(self, origin: str) -> Box:
        """Return the part of level 0 whose corner is (0, 0): of the slide, or of its bounds."""
        whole = Box(0, 0, *self.size_px0)
        return whole if origin == SLIDE else self.bounds_px0 or whole


def place_of(store: Store, note: Note, *, slides: Path | None = None) -> SlidePlace:
    """Collect where the slide of a store lies.

    Args:
        store: its store.
        note: told where an old store does not say what part was scanned.
        slides: folder where the slides lie now, if they were moved since.
    """
    slide = store.slide
    bounds = Box(*slide.bounds_px0) if slide.bounds_px0 else None
    if not slide.says_bounds and slide.format in _CROPPED:
        known, bounds = _bounds_of_file(store, slides)
        if not known:
            note(
                f"warning: {store.slide_id}: this store does not say which part was scanned, and "
                "the slide is not at hand: QuPath may show nuclei shifted; --slides DIR finds it"
            )
    return SlidePlace(
        slide_id=store.slide_id,
        size_px0=Size(*slide.size_px0),
        bounds_px0=bounds,
    )


def _bounds_of_file(store: Store, slides: Path | None) -> tuple[bool, Box | None]:
    """Return whether the slide could be asked, and its answer."""
    from cytofm_cli.slides.open import open_slide
    from cytofm_cli.tiles.origin import find_slide

    try:
        with open_slide(find_slide(store, slides), reader=store.slide.reader) as reader:
            return True, reader.info.bounds_px0
    except CytofmError:
        return False, None


def on_slide(table: NucleusTable, frame: Box, what: str, note: Note) -> NucleusTable:
    """Return the nuclei with their centroid inside a part of level 0.

    Args:
        table: in level-0 pixels.
        frame: the slide, or the part that the file speaks of.
        what: the file, for messages.
        note: told how many were left out.

    Raises:
        InputError: most lie outside: another scale, slide or origin.
    """
    x, y = table.xy_px0.T
    inside = (x >= frame.x) & (x <= frame.x + frame.w) & (y >= frame.y) & (y <= frame.y + frame.h)
    n_outside = len(table) - int(inside.sum())
    if not n_outside:
        return table
    told = (
        f"{what}: {n_outside} of {len(table)} nuclei lie outside the slide: x is to be {frame.x} "
        f"to {frame.x + frame.w} and is {x.min():.0f} to {x.max():.0f}, y {frame.y} to "
        f"{frame.y + frame.h} and is {y.min():.0f} to {y.max():.0f}"
    )
    if 2 * n_outside > len(table):
        raise InputError(
            f"{told}.",
            hint="is it the file of this slide? Else --set scale=S, S level-0 pixels to one of the "
            "file, or --set origin=slide|bounds",
        )
    note(f"warning: {told}: left out")
    return table.take(np.flatnonzero(inside))


def count_off_tiles(store: Store, table: NucleusTable) -> int:
    """Count the nuclei whose centroid lies in no tile: no pixels of theirs are stored."""
    from scipy.spatial import cKDTree

    side = float(store.tile.tile_px0)
    corners = store.tile_xy_px0.astype(np.float64)
    if not len(table) or not len(corners):
        return len(table)
    gap, _ = cKDTree(corners + side / 2).query(table.xy_px0.astype(np.float64), p=np.inf)
    return int((gap > side / 2).sum())
