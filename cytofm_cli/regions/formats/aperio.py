"""Aperio ImageScope: `<Annotations MicronsPerPixel><Annotation Id Name><Regions><Region Type>…`.

Level-0 pixels from the corner of level 0. The class is the layer's name, else that of its first
attribute, else the region's text, else the layer's number. Types: 0 freehand, 1 rectangle,
2 ellipse (two corners of its box); arrows (3), rulers (4) and text (5) are left out. A region
marked `NegativeROA` is a hole in the regions of its layer.
Source: ImageScope User's Guide (Leica), appendix on the XML of annotations.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import SLIDE, Drawn, Region, Ring, box_ring, ellipse_ring, ring_of
from cytofm_cli.regions.cover import inside

ROOT: Final = "Annotations"
_LEFT_OUT: Final = {"3": "arrow(s)", "4": "ruler(s)", "5": "text(s)"}
_RECTANGLE, _ELLIPSE = "1", "2"
_YES: Final = ("1", "true", "yes")


def read(path: Path, root: Element) -> Drawn:
    """Return the regions of a file; see the module's text.

    Raises:
        InputError: coordinates that are none; names the region.
    """
    regions: list[Region] = []
    left_out = Counter[str]()
    for layer in root.iter("Annotation"):
        filled: list[Region] = []
        holes: list[Ring] = []
        for number, found in enumerate(layer.iter("Region")):
            kind = found.get("Type", "0").strip()
            if kind in _LEFT_OUT:
                left_out[_LEFT_OUT[kind]] += 1
                continue
            where = f"{path}: layer {layer.get('Id', '?')}, region {found.get('Id', number)}"
            ring = _ring(found, kind, where)
            if found.get("NegativeROA", "0").strip().casefold() in _YES:
                holes.append(ring)
            else:
                filled.append(Region(name=_class(layer, found), rings=(ring,), where=where))
        regions += [_pierced(region, holes) for region in filled]
    return Drawn(regions=tuple(regions), left_out=dict(left_out), origin=SLIDE, mpp=_mpp(root))


def _ring(region: Element, kind: str, where: str) -> Ring:
    try:
        points = [
            (float(p.attrib["X"].replace(",", ".")), float(p.attrib["Y"].replace(",", ".")))
            for p in region.iter("Vertex")
        ]
        if kind in (_RECTANGLE, _ELLIPSE) and len(points) == 2:
            xy = np.array(points)
            (x0, y0), (x1, y1) = xy.min(0).tolist(), xy.max(0).tolist()
            if kind == _RECTANGLE:
                return box_ring((x0, y0), (x1, y1))
            return ellipse_ring(((x0 + x1) / 2, (y0 + y1) / 2), ((x1 - x0) / 2, (y1 - y0) / 2))
        return ring_of(points)
    except (KeyError, ValueError) as error:
        raise InputError(f"{where}: its vertices are no polygon ({error}).") from error


def _pierced(region: Region, holes: list[Ring]) -> Region:
    """Return a region with those holes that begin inside it."""
    own = [hole for hole in holes if bool(inside([region], hole[:1])[0])]
    return Region(name=region.name, rings=(*region.rings, *own), where=region.where)


def _class(layer: Element, region: Element) -> str:
    attribute = layer.find("Attributes/Attribute")
    words = (
        layer.get("Name"),
        None if attribute is None else attribute.get("Name"),
        region.get("Text"),
    )
    named = next((word.strip() for word in words if word and word.strip()), "")
    return named or f"layer {layer.get('Id', '?')}"


def _mpp(root: Element) -> float | None:
    try:
        mpp = float(root.get("MicronsPerPixel", "").replace(",", "."))
    except ValueError:
        return None
    return mpp if mpp > 0 else None
