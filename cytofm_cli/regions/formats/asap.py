"""ASAP: `<ASAP_Annotations><Annotations><Annotation Type Name PartOfGroup><Coordinates>…`.

Level-0 pixels from the corner of level 0. The class is the group; without one ("None") the name.
Rectangles are four corners, splines their points joined by lines; dots, point sets and
measurements enclose nothing and are left out.
Source: computationalpathologygroup/ASAP, annotation/XmlRepository.cpp.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import SLIDE, UNCLASSIFIED, Drawn, Region, ring_of

ROOT: Final = "ASAP_Annotations"
_AREAS: Final = ("polygon", "rectangle", "spline")
_LEFT_OUT: Final = {
    "dot": "dot(s)", "pointset": "point set(s)", "point": "dot(s)", "measurement": "measurement(s)",
}  # fmt: skip


def read(path: Path, root: Element) -> Drawn:
    """Return the regions of a file; see the module's text.

    Raises:
        InputError: coordinates that are none; names the annotation.
    """
    regions, left_out = [], Counter[str]()
    for number, found in enumerate(root.iter("Annotation")):
        kind = found.get("Type", "Polygon").casefold()
        if kind not in _AREAS:
            left_out[_LEFT_OUT.get(kind, f"annotation(s) of type {kind}")] += 1
            continue
        where = f"{path}: annotation {number} ({found.get('Name', '')!r})"
        points = sorted(found.iter("Coordinate"), key=lambda point: _order(point, where))
        try:
            ring = ring_of([(float(p.attrib["X"]), float(p.attrib["Y"])) for p in points])
        except (KeyError, ValueError) as error:
            raise InputError(f"{where}: its coordinates are no polygon ({error}).") from error
        regions.append(Region(name=_class(found), rings=(ring,), where=where))
    return Drawn(regions=tuple(regions), left_out=dict(left_out), origin=SLIDE)


def _order(point: Element, where: str) -> float:
    try:
        return float(point.get("Order", "0").replace(",", "."))
    except ValueError as error:
        raise InputError(f"{where}: Order {point.get('Order')!r} is no number.") from error


def _class(annotation: Element) -> str:
    group = annotation.get("PartOfGroup", "").strip()
    name = annotation.get("Name", "").strip()
    # ASAP numbers what nobody has named: "Annotation 3" is no class.
    named = "" if name.startswith("Annotation ") or name.isdigit() else name
    return (group if group not in ("", "None") else named) or UNCLASSIFIED
