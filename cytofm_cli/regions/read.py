"""Read the regions of a slide, and refuse what does not lie on it.

| file | coordinates | class |
|---|---|---|
| GeoJSON (QuPath) | level-0 px from the corner of the scanned part | classification |
| ASAP XML | level-0 px | group |
| Aperio XML | level-0 px | layer |
| NDPA (Hamamatsu) | nm from the middle of the glass | title |
| mask, PNG or TIFF | its pixels, scaled to the slide | value |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.regions import cover
from cytofm_cli.regions.base import (
    BOUNDS,
    SLIDE,
    Drawn,
    Note,
    Place,
    Region,
    signed_area,
)
from cytofm_cli.regions.chosen import Polygons, RegionSet
from cytofm_cli.regions.formats import aperio, asap, geojson, mask, ndpa
from cytofm_cli.regions.geojson_stream import hint_for
from cytofm_cli.regions.safe_xml import read_xml
from cytofm_cli.units import Box

GEOJSON: Final = (".geojson", ".json")
XML: Final = (".xml", ".ndpa")
MASKS: Final = (".png", ".tif", ".tiff")
SUFFIXES: Final = (*GEOJSON, *XML, *MASKS)
_MPP_TOLERANCE: Final = 0.05
_CROSSED: Final = 0.01  # share of a region's area that loops of a hand-drawn line may take
_UM_REACH: Final = 0.9
_UM_POINTS: Final = 8


def read_regions(
    path: Path, place: Place, note: Note, *, unit: str = "auto", origin: str = "auto"
) -> RegionSet:
    """Return the regions of a file in level-0 pixels.

    Args:
        path: the file.
        place: its slide.
        note: told what was left out or assumed.
        unit: "px" or "um" of what is drawn; "auto": as the file says, else px, and what looks
            like micrometres is refused.
        origin: where its (0, 0) is: "slide", "bounds", or "auto" as the table above has it.

    Raises:
        InputError: not readable, no regions, or regions that lie outside the slide, enclose
            nothing, cross themselves, or are in another unit.
    """
    suffix = path.suffix.lower()
    if suffix in MASKS:
        return mask.read(path, place, origin, note)
    drawn = _drawn(path, place, suffix)
    if drawn.left_out:
        told = ", ".join(f"{n} {what}" for what, n in sorted(drawn.left_out.items()))
        note(f"{path}: {told} left out: no regions")
    if not drawn.regions:
        raise InputError(f"{path}: holds no regions.", hint="export annotations with an area")
    for region in drawn.regions:
        _refuse_odd(region)
    _check_mpp(drawn, path, place)
    corner = _corner(drawn, path, place, origin, note)
    scale = 1 / place.mpp if unit == "um" and drawn.unit != "nm" else 1.0
    regions = tuple(region.moved(scale, corner) for region in drawn.regions)
    frame = place.frame(BOUNDS)
    frame = frame if corner == frame[:2] else place.frame(SLIDE)
    if unit == "auto" and drawn.unit == "um":
        raise _in_um(path, "says that it is in micrometres")
    _refuse_outside(regions, frame, path, place)
    if unit == "auto" and drawn.unit != "nm" and _reach_of_um(regions, frame, place.mpp):
        raise _in_um(path, "covers just the slide's size in micrometres")
    return Polygons(regions, place.size_px0)


def _drawn(path: Path, place: Place, suffix: str) -> Drawn:
    if suffix in GEOJSON:
        return geojson.read(path)
    if suffix not in XML:
        raise InputError(
            f"{path}: regions cannot be read from {suffix or 'a file without suffix'}.",
            hint=hint_for(suffix, SUFFIXES),
        )
    root = read_xml(path)
    if root.tag == asap.ROOT:
        return asap.read(path, root)
    if root.tag == aperio.ROOT:
        return aperio.read(path, root)
    if root.tag == ndpa.ROOT:
        return ndpa.in_pixels(ndpa.read(path, root), path, place)
    raise InputError(
        f"{path}: <{root.tag}> is the XML of no program that is known.",
        hint="ASAP, Aperio ImageScope or Hamamatsu NDPA; else GeoJSON from QuPath",
    )


def _refuse_odd(region: Region) -> None:
    """Refuse a region that encloses nothing, or whose outline crosses itself.

    Raises:
        InputError: names it.
    """
    for ring in region.rings:
        alone = replace(region, rings=(ring,))
        area, by_turns = cover.area_of(alone), abs(signed_area(ring))
        if area <= 0:
            raise InputError(f"{region.where} ({region.name!r}): encloses no area.")
        # Loops that a line makes count once more, or the other way, in the shoelace formula.
        if abs(area - by_turns) > _CROSSED * area:
            raise InputError(
                f"{region.where} ({region.name!r}): its outline crosses itself.",
                hint="mend it in the program that drew it, e.g. split it into simple outlines",
            )


def _check_mpp(drawn: Drawn, path: Path, place: Place) -> None:
    if drawn.mpp is None or abs(drawn.mpp / place.mpp - 1) <= _MPP_TOLERANCE:
        return
    raise InputError(
        f"{path}: was drawn at {drawn.mpp:g} µm/px, and the slide has {place.mpp:g}.",
        hint="is it the file of this slide?",
    )


def _corner(drawn: Drawn, path: Path, place: Place, origin: str, note: Note) -> tuple[float, float]:
    """Return the point of level 0 that is (0, 0) in a file; say so where it could be another."""
    if origin == "auto" and isinstance(drawn.origin, tuple):
        return drawn.origin
    chosen = origin if origin != "auto" else drawn.origin
    if place.bounds_px0 is None or not isinstance(chosen, str):
        return 0.0, 0.0
    corner = place.frame(chosen)
    whose = "the scanned part, as in QuPath" if chosen == BOUNDS else "level 0"
    note(
        f"{path}: coordinates are counted from the corner of {whose} ({corner.x}, {corner.y}); "
        f"--region-origin {SLIDE if chosen == BOUNDS else BOUNDS} for the other"
    )
    return float(corner.x), float(corner.y)


def _refuse_outside(regions: Sequence[Region], frame: Box, path: Path, place: Place) -> None:
    """Refuse regions of which more than half lies beyond the slide.

    Raises:
        InputError: says how many, and where they lie.
    """
    low = np.stack([region.low for region in regions])
    high = np.stack([region.high for region in regions])
    corner = np.array([frame.x, frame.y], np.float64)
    end = corner + np.array([frame.w, frame.h])
    on = np.clip(high, corner, end) - np.clip(low, corner, end)
    outside = on.prod(1) < 0.5 * (high - low).prod(1)
    if not outside.any():
        return
    (x0, y0), (x1, y1) = low.min(0), high.max(0)
    first = regions[int(np.flatnonzero(outside)[0])]
    raise InputError(
        f"{path}: {int(outside.sum())} of {len(regions)} regions lie outside the slide "
        f"{place.slide_id}, the first is {first.where.removeprefix(f'{path}: ')}: x is to be "
        f"{frame.x} to {frame.x + frame.w} and is {x0:.0f} to {x1:.0f}, y {frame.y} to "
        f"{frame.y + frame.h} and is {y0:.0f} to {y1:.0f}.",
        hint="is it the file of this slide, in pixels of level 0? Else --region-origin or "
        "--region-unit",
    )


def _reach_of_um(regions: Sequence[Region], frame: Box, mpp: float) -> bool:
    """Tell whether regions reach just to where a slide would end in micrometres."""
    if mpp > _UM_REACH:  # a pixel is a micrometre, nearly
        return False
    high = np.max([region.high for region in regions], axis=0) - (frame.x, frame.y)
    share = high / (np.array([frame.w, frame.h]) * mpp)
    return bool((share <= 1).all() and (share >= _UM_REACH).all())


def refuse_um(
    there: RegionSet,
    names: Sequence[str],
    path: Path,
    place: Place,
    foreground_HW: NDArray[np.bool_],
) -> None:
    """Refuse regions that lie beside the foreground as pixels, and on it as micrometres.

    Judged by the corners of the outlines: at least `_UM_POINTS` of them lie on foreground if
    they are micrometres, and a quarter as many if they are pixels.

    Args:
        there: the regions, read with `unit="auto"`.
        names: the classes that are wanted.
        path: their file.
        place: the slide.
        foreground_HW: mask of the whole slide.

    Raises:
        InputError: they look like micrometres.
    """
    if not isinstance(there, Polygons) or foreground_HW.all() or path.suffix.lower() == ".ndpa":
        return
    wanted = [region for region in there.regions if region.name in names]
    xy_N2 = np.concatenate([np.zeros((0, 2)), *(r.rings[0] for r in wanted)])
    corner = np.array(place.frame(BOUNDS)[:2] if place.bounds_px0 else (0, 0), np.float64)
    in_um = corner + (xy_N2 - corner) / place.mpp
    if (in_um > place.size_px0).any():
        return
    height, width = foreground_HW.shape

    def count(at_N2: NDArray[np.float64]) -> int:
        x, y = (at_N2 * (width, height) / place.size_px0).astype(np.int64).T
        return int(foreground_HW[y.clip(0, height - 1), x.clip(0, width - 1)].sum())

    n_um = count(in_um)
    if n_um >= _UM_POINTS and count(xy_N2) < 0.25 * n_um:
        raise _in_um(path, "lies beside the cells as pixels, and on them as micrometres")


def _in_um(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: {why}; regions are read in pixels of level 0.",
        hint="--region-unit um converts it; --region-unit px if it is in pixels after all",
    )
