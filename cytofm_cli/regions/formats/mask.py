"""Mask images: a value a class, 0 for none, at any scale of the slide's shape.

A mask covers the slide, or the part of it that was scanned; its scale follows from its size, and
a mask of another shape is refused. The classes are its values as text ("1", "255").
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import BOUNDS, SLIDE, Note, Place
from cytofm_cli.regions.chosen import Mask
from cytofm_cli.units import Box

MOST_PX: Final = 2**29  # a mask in memory, and its sums four times that
MOST_CLASSES: Final = 256
_ASPECT: Final = 0.01  # beside a pixel of the mask, as levels are rounded
_HINT: Final = "save the classes themselves, one channel of whole numbers"


def read(path: Path, place: Place, origin: str, note: Note) -> Mask:
    """Return the regions of a mask image.

    Args:
        path: PNG or TIFF of one channel.
        place: the slide.
        origin: "auto", or what the mask covers: the slide, or its scanned part.
        note: told where both are possible.

    Raises:
        InputError: no readable image, several channels, too large, empty, or of another shape.
    """
    value_HW = _values(path)
    frame = _frame(value_HW.shape, path, place, origin, note)
    height, width = value_HW.shape
    mask = Mask(
        value_HW,
        corner_px0=(float(frame.x), float(frame.y)),
        pixel_px0=(frame.w / width, frame.h / height),
        size_px0=place.size_px0,
    )
    n = len(mask.classes)
    if n == 0:
        raise InputError(f"{path}: holds no regions: all of its pixels are 0.")
    if n > MOST_CLASSES:
        raise InputError(f"{path}: {n} values; a mask has at most {MOST_CLASSES}.", hint=_HINT)
    return mask


def _values(path: Path) -> NDArray[np.integer[Any]]:
    import pyvips

    try:
        image = pyvips.Image.new_from_file(str(path), access="sequential")
        if image.bands != 1:
            raise InputError(f"{path}: {image.bands} channels; a mask has one.", hint=_HINT)
        if image.width * image.height > MOST_PX:
            raise InputError(
                f"{path}: {image.width} x {image.height} px; a mask has at most {MOST_PX}.",
                hint="save it at a lower scale: it is brought to the slide's",
            )
        values = image.numpy()
    except pyvips.Error as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path}: not a readable image ({reason}).") from error
    values = values[..., 0] if values.ndim == 3 else values
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.round(values)):
            raise InputError(f"{path}: its values are not whole numbers.", hint=_HINT)
        values = values.astype(np.int64)
    if values.min(initial=0) < 0:
        raise InputError(f"{path}: has negative values.", hint=_HINT)
    whole: NDArray[np.integer[Any]] = values
    return whole


def _frame(shape: tuple[int, ...], path: Path, place: Place, origin: str, note: Note) -> Box:
    """Return the part of the slide that a mask covers, told by its shape.

    Raises:
        InputError: it has the shape of neither.
    """
    asked = (SLIDE, BOUNDS) if origin == "auto" else (origin,)
    frames = {name: place.frame(name) for name in asked}
    fits = [name for name, frame in frames.items() if _same_shape(shape, frame)]
    if not fits:
        height, width = shape
        told = " or ".join(dict.fromkeys(f"{f.w} x {f.h}" for f in frames.values()))
        raise InputError(
            f"{path}: {width} x {height} px is not the shape of the slide ({told} px).",
            hint="a mask covers the whole slide, at any scale",
        )
    if len(fits) > 1 and frames[SLIDE] != frames[BOUNDS]:
        note(
            f"{path}: has the shape of the slide and of its scanned part: taken for the slide; "
            "--region-origin bounds for the other"
        )
    return frames[fits[0]]


def _same_shape(shape: tuple[int, ...], frame: Box) -> bool:
    height, width = shape
    wanted_w, wanted_h = height * frame.w / frame.h, width * frame.h / frame.w
    off_w, off_h = abs(width - wanted_w), abs(height - wanted_h)
    return min(off_w, off_h) <= 1 or off_w <= _ASPECT * wanted_w
