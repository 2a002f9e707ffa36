"""Pictures as bytes and files."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.files import write_bytes

Image = NDArray[np.uint8]
_PNG_HEADER: Final = 33  # signature and IHDR


def png_bytes(image: Image, effort: int = 6) -> bytes:
    """Return a picture, (H, W, 3) or with alpha (H, W, 4), as PNG; effort 1 takes a third of 6."""
    encoded: bytes = _vips(image).pngsave_buffer(compression=effort)
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


def with_text(png: bytes, text: Mapping[str, str]) -> bytes:
    """Return a PNG that says more about itself, in text chunks (iTXt) behind its header.

    Args:
        png: the file.
        text: by keyword, of up to 79 Latin letters.
    """
    chunks = b"".join(
        _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + value.encode())
        for key, value in text.items()
    )
    return png[:_PNG_HEADER] + chunks + png[_PNG_HEADER:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")


def _vips(image: Image) -> Any:
    import pyvips

    picture = pyvips.Image.new_from_array(np.ascontiguousarray(image))
    return picture.copy(interpretation="srgb")
