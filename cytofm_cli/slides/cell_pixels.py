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
_OPAQUE: Final = 255
_DIM: Final = 16  # of 255: what a camera of 12 bits leaves in the upper 8 of 16
# All that Pillow raises on a damaged file.
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, struct.error, TypeError, IndexError)


@dataclass(frozen=True, eq=False)
class CellPixels:
    """A decoded image.

    Attributes:
        image_HWC: uint8 RGB.
        converted: what it was besides one 8-bit RGB picture: "grey", "16-bit", "transparent",
            "CMYK", "frames" (several); "dim": of its 16 bits the upper 8 hold next to nothing.
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
            has_frames = getattr(image, "n_frames", 1) > 1
            image.load()
            return _as_rgb(image, beyond, is_wide=is_wide, has_frames=has_frames)
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


def _as_rgb(image: Any, beyond: int, *, is_wide: bool, has_frames: bool) -> CellPixels:
    if image.mode in ("I", "F"):
        raise ValueError("samples of more than 16 bits")
    facts = {
        "16-bit": is_wide,
        "grey": image.mode in ("1", "L", "LA") or image.mode.startswith("I;16"),
        "CMYK": image.mode == "CMYK",
        "frames": has_frames,
    }
    if image.mode.startswith("I;16"):
        grey_HW = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        image_HWC = np.repeat(grey_HW[:, :, None], 3, 2)
    elif image.has_transparency_data:
        rgba_HWC = np.asarray(image.convert("RGBA"))
        facts["transparent"] = bool((rgba_HWC[:, :, 3] < _OPAQUE).any())
        image_HWC = _laid_on(rgba_HWC, beyond)
    else:
        image_HWC = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    facts["dim"] = is_wide and int(image_HWC.max()) < _DIM
    return CellPixels(image_HWC, frozenset(name for name, holds in facts.items() if holds))


def _laid_on(rgba_HWC: NDArray[np.uint8], beyond: int) -> NDArray[np.uint8]:
    wide_HWC = rgba_HWC.astype(np.uint32)
    alpha_HW1 = wide_HWC[:, :, 3:]
    laid_HWC = (wide_HWC[:, :, :3] * alpha_HW1 + beyond * (255 - alpha_HW1) + 127) // 255
    return laid_HWC.astype(np.uint8)
