"""Pictures as bytes and files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.files import write_bytes

Image = NDArray[np.uint8]


def png_bytes(image: Image) -> bytes:
    """Return a picture, (H, W, 3) or with alpha (H, W, 4), as PNG."""
    encoded: bytes = _vips(image).pngsave_buffer(compression=6)
    return encoded


def jpeg_bytes(image: Image, quality: int = 85) -> bytes:
    """Return a picture, (H, W, 3), as JPEG; colour at full resolution from quality 90 on."""
    encoded: bytes = _vips(image).jpegsave_buffer(Q=quality)
    return encoded


def data_uri(encoded: bytes) -> str:
    """Return a PNG or JPEG as an address that holds the picture itself."""
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"


def save_png(path: Path, image: Image) -> None:
    """Write a picture, complete or not at all; an existing file is replaced.

    Raises:
        OutputError, DiskFullError: it cannot be written.
    """
    write_bytes(path, png_bytes(image))


def _vips(image: Image) -> Any:
    import pyvips

    picture = pyvips.Image.new_from_array(np.ascontiguousarray(image))
    return picture.copy(interpretation="srgb")
