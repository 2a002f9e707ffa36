"""Look at a slide before its nuclei are detected, and at their number afterwards."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from cytofm_cli.nuclei.base import NucleusDetector, SlideDetector
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import Field
from cytofm_cli.units import Box

MOST_IMAGES: Final = 16
MOST_SIDE_PX: Final = 1024  # of an image
# Nuclei to a mm² of foreground: a Pap field has about 1700, a packed lymph node 10 000, and disks
# of 2.5 µm without a gap 50 000.
FEW: Final = 10.0
MANY: Final = 15000.0
# Two fields of 40×. Less foreground may well hold nothing, or be hardly more than bare nuclei.
SOME_MM2: Final = 0.05


def settle(
    detector: NucleusDetector, field: Field, store: Store
) -> tuple[NucleusDetector, dict[str, Any], list[str]]:
    """Return the detector for one slide, facts for its record, and what the user should know."""
    if not isinstance(detector, SlideDetector):
        return detector, {}, []
    boxes = sorted(set(field.boxes))
    rows = np.unique(np.linspace(0, len(boxes) - 1, MOST_IMAGES).round().astype(int))
    images = [field.read(_middle(boxes[row])) for row in rows] if boxes else []
    illumination = store.tile.illumination
    return detector.for_slide(images, field.mpp, illumination)


def doubts(n_nuclei: int, store: Store) -> list[str]:
    """Say what is odd about the number of nuclei of a slide, one line each."""
    area = foreground_mm2(store)
    look = "look at them: `cytofm views STORE -o sheets --preview 4`"
    if n_nuclei == 0:
        return ["no nuclei found" + (f" in {area:.2g} mm² of foreground; {look}" if area else "")]
    if area < SOME_MM2:
        return []
    if n_nuclei < FEW * area:
        return [
            f"hardly any nuclei found: {n_nuclei} in {area:.2g} mm² of foreground; {look}, then "
            "perhaps --set stain=… or --set nuclei=…"
        ]
    if n_nuclei > MANY * area:
        return [
            f"{n_nuclei} nuclei found in {area:.2g} mm² of foreground, more than fit side by "
            f"side; {look}, then check --set nuclei=…, --set stain=… and µm/px"
        ]
    return []


def foreground_mm2(store: Store) -> float:
    """Return the area of a store's tiles that is foreground."""
    tile = store.tile
    side_mm = float(tile.tile_px) * float(tile.mpp) / 1000
    share = np.ones(tile.n_tiles)
    if store.has(schema.TILE_FOREGROUND.path):
        share = np.nan_to_num(store.read(schema.TILE_FOREGROUND.path), nan=1.0)
    return float(share.sum()) * side_mm**2


def _middle(box: Box) -> Box:
    w, h = min(box.w, MOST_SIDE_PX), min(box.h, MOST_SIDE_PX)
    return Box(box.x + (box.w - w) // 2, box.y + (box.h - h) // 2, w, h)
