"""Decode the image of one cell to 8-bit RGB, and say what had to be converted for it."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.slides.jpeg_check import refuse_broken_scan
from cytofm_cli.units import Size

FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# Fewer pixels show no cell; a longer side is a field of view, not a cell.
LEAST_PX: Final = 4
MOST_PX: Final = 8192
_WHITE: Final = 255
# All that Pillow raises on a damaged file.
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, IndexError)


@dataclass(frozen=True, eq=False)
class CellPixels:
    """A decoded image.

    Attributes:
        image_HWC: uint8 RGB.
        converted: what it was besides 8-bit RGB: "grey", "16-bit", "transparent", "CMYK".
    """

    image_HWC: NDArray[np.uint8]
    converted: frozenset[str] = frozenset()


def size_of(data: bytes) -> Size:
    """Return width and height of an image, from its header.

    Raises:
        ValueError: it is none, or not of the size of a cell's.
    """
    with _opened(data) as image:
        return Size(*image.size)


def decode(data: bytes, beyond: int = _WHITE) -> CellPixels:
    """Decode an image; of several frames the first.

    Pixels are as stored: neither orientation nor colour profile is applied. Grey becomes RGB, of
    16 bits the upper 8 are kept, what is transparent is laid on `beyond`.

    Args:
        data: the file.
        beyond: grey level behind what is transparent.

    Raises:
        ValueError: it is no image, damaged, or not of the size of a cell's.
    """
    with _opened(data) as image:
        if image.format == "JPEG":
            refuse_broken_scan(data)
        # How the file keeps its samples; Pillow forgets it when it has decoded them.
        is_wide = "16" in image.mode or ";16" in str([tile[3] for tile in image.tile])
        try:
            image.load()
            return _as_rgb(image, beyond, is_wide=is_wide)
        except _DAMAGE as error:
            raise ValueError(f"cannot be decoded ({' '.join(str(error).split())})") from error


def _opened(data: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError("claims more pixels than an image of one cell has") from error
    except UnidentifiedImageError as error:
        what = "is empty" if not data else "is no image that can be read"
        raise ValueError(what) from error
    except _DAMAGE as error:
        raise ValueError(f"has a damaged header ({' '.join(str(error).split())})") from error
    if min(image.size) < LEAST_PX or max(image.size) > MOST_PX:
        image.close()
        raise ValueError(f"has {image.width} x {image.height} px, which is no image of one cell")
    return image


def _as_rgb(image: Any, beyond: int, *, is_wide: bool) -> CellPixels:
    is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
    if image.mode in ("I", "F"):
        raise ValueError("samples of more than 16 bits")
    facts = {
        "16-bit": is_wide,
        "grey": is_grey,
        "CMYK": image.mode == "CMYK",
        "transparent": image.has_transparency_data,
    }
    converted = frozenset(name for name, holds in facts.items() if holds)
    if image.mode.startswith("I;16"):
        grey_HW = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return CellPixels(np.repeat(grey_HW[:, :, None], 3, 2), converted)
    if image.has_transparency_data:
        return CellPixels(_laid_on(image, beyond), converted)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    return CellPixels(np.asarray(rgb), converted)


def _laid_on(image: Any, beyond: int) -> NDArray[np.uint8]:
    rgba_HWC = np.asarray(image.convert("RGBA")).astype(np.uint32)
    alpha_HW1 = rgba_HWC[:, :, 3:]
    laid_HWC = (rgba_HWC[:, :, :3] * alpha_HW1 + beyond * (255 - alpha_HW1) + 127) // 255
    return laid_HWC.astype(np.uint8)
