"""Whether nuclei from a file can be nuclei: a mask, a map of classes, another scale, regions.

Such files are well formed and lie on the slide, so nothing else finds them out.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.base import NucleusTable
from cytofm_cli.nuclei.place import Note
from cytofm_cli.units import Box

# Half of the nuclei of any smear or section are larger and smaller than this: 2 µm and 50 µm wide.
USUAL_UM2: Final = (3.0, 2000.0)
# No nucleus is: 113 µm wide.
REGION_UM2: Final = 10_000.0
# So many have something on both sides of the slide's middle unless they are of one region.
_SOME: Final = 20
_MOST_CLASSES: Final = 20  # more values are labels
_PARTS: Final = 2.0  # connected parts a label; a cut or speckled nucleus has a few, most have one


def as_instances(
    labels_HW: NDArray[np.integer[Any]], what: str, note: Note
) -> NDArray[np.integer[Any]]:
    """Return a label image as it is, or a mask of one value with a label for each part.

    Args:
        labels_HW: integers, 0 is background.
        what: the file, for messages.
        note: told that it is a mask.

    Raises:
        InputError: a few values in many parts: classes of pixels, not nuclei.
    """
    from scipy import ndimage

    values = np.unique(labels_HW[labels_HW > 0])
    n_parts = 0
    parts_HW = labels_HW
    if 0 < values.size <= _MOST_CLASSES:
        for value in values:
            parts_HW, n = ndimage.label(labels_HW == value, structure=np.ones((3, 3)))
            n_parts += int(n)
    if n_parts <= _PARTS * values.size:
        return labels_HW
    if values.size == 1:
        note(
            f"warning: {what}: a mask of one value ({values[0]}), not labels: each of its "
            f"{n_parts} connected parts is taken as a nucleus; those that touch are one"
        )
        return parts_HW
    raise InputError(
        f"{what}: {values.size} labels in {n_parts} separate parts: a map of classes, not a label "
        "image with a value for each nucleus.",
        hint="save the labels of the nuclei, or GeoJSON with a class for each",
    )


def say_doubts(table: NucleusTable, frame: Box, what: str, note: Note) -> None:
    """Warn of nuclei of impossible sizes, and of such as fill only the top left of the slide.

    Args:
        table: in level-0 pixels.
        frame: the slide, or the part that the file speaks of.
        what: the file, for messages.
        note: told what is odd.
    """
    look = "is the file in micrometres, or of another level? Then --set scale=S"
    areas = table.area_um2[np.isfinite(table.area_um2)]
    n_regions = int((areas > REGION_UM2).sum())
    usual = float(np.median(areas)) if len(areas) else USUAL_UM2[0]
    if not USUAL_UM2[0] <= usual <= USUAL_UM2[1]:
        note(f"warning: {what}: its nuclei have a median of {usual:.3g} µm²; {look}")
    elif n_regions:
        note(
            f"warning: {what}: {n_regions} of {len(table)} nuclei have more than "
            f"{REGION_UM2:g} µm²: are they regions?"
        )
    far = table.xy_px0.max(axis=0) - (frame.x, frame.y) if len(table) >= _SOME else None
    if far is not None and far[0] <= frame.w / 2 and far[1] <= frame.h / 2:
        note(
            f"warning: {what}: all {len(table)} nuclei lie in the top left {far[0]:.0f} x "
            f"{far[1]:.0f} px of {frame.w} x {frame.h}; unless only that part was looked at: {look}"
        )
