"""Hamamatsu NDP.view: `<annotations><ndpviewstate><title><annotation type><pointlist>…`.

Nanometres from the middle of the glass, of which the slide states how far its own middle lies
(`XOffsetFromSlideCentre`). The class is the title. Closed freehands (also drawn as rectangles)
and circles are regions; rulers, pins, pointers and open lines are left out.
Source: OpenSlide's and QuPath's description of the format; openslide.org/formats/hamamatsu.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import (
    SLIDE,
    UNCLASSIFIED,
    Drawn,
    Place,
    Region,
    Ring,
    ellipse_ring,
    ring_of,
)  # fmt: skip

ROOT: Final = "annotations"
_NM: Final = "nanometers"
_LEFT_OUT: Final = {
    "linearmeasure": "ruler(s)", "pin": "pin(s)", "pointer": "pointer(s)", "text": "text(s)",
}  # fmt: skip


def read(path: Path, root: Element) -> Drawn:
    """Return the regions of a file, in nanometres from the middle of the glass.

    Raises:
        InputError: another unit, or coordinates that are none; names the annotation.
    """
    regions, left_out = [], Counter[str]()
    for number, state in enumerate(root.iter("ndpviewstate")):
        where = f"{path}: annotation {state.get('id', number)}"
        unit = (state.findtext("coordformat") or _NM).strip().casefold()
        if unit != _NM:
            raise InputError(
                f"{where}: is in {unit}; NDPA files are read in {_NM}.", hint="export it again"
            )
        name = (state.findtext("title") or "").strip() or UNCLASSIFIED
        for drawn in state.iter("annotation"):
            what = _open_line(drawn) or _LEFT_OUT.get(drawn.get("type", "").casefold())
            if what is not None:
                left_out[what] += 1
                continue
            regions.append(Region(name=name, rings=(_ring(drawn, where),), where=where))
    return Drawn(regions=tuple(regions), left_out=dict(left_out), origin=SLIDE)


def in_pixels(drawn: Drawn, path: Path, place: Place) -> Drawn:
    """Bring nanometres from the middle of the glass to level-0 pixels.

    Raises:
        InputError: the slide does not state where its middle lies.
    """
    if place.centre_nm is None:
        raise InputError(
            f"{path}: counts from the middle of the glass, and the slide {place.slide_id} does not "
            "state where its picture lies (XOffsetFromSlideCentre).",
            hint="open the .ndpi itself; or export GeoJSON from QuPath",
        )
    scale = 1 / (1000 * place.mpp)
    shift = tuple(
        side / 2 - offset * scale
        for side, offset in zip(place.size_px0, place.centre_nm, strict=True)
    )
    moved = (region.moved(scale, (shift[0], shift[1])) for region in drawn.regions)
    return replace(drawn, regions=tuple(moved), unit="nm")


def _open_line(drawn: Element) -> str | None:
    if drawn.get("type", "freehand").casefold() != "freehand":
        return None
    closed = (drawn.findtext("closed") or "1").strip()
    return "open line(s)" if closed in ("0", "false") else None


def _ring(drawn: Element, where: str) -> Ring:
    try:
        if drawn.get("type", "").casefold() == "circle":
            x, y, radius = (float(drawn.findtext(tag) or "") for tag in ("x", "y", "radius"))
            return ellipse_ring((x, y), (radius, radius))
        points = [
            (float(p.findtext("x") or ""), float(p.findtext("y") or ""))
            for p in drawn.iter("point")
        ]
        return ring_of(points)
    except ValueError as error:
        raise InputError(f"{where}: its points are no polygon ({error}).") from error
