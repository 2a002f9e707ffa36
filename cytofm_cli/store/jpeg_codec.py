"""The zarr codec `imagecodecs_jpeg`: each chunk is one complete JPEG stream.

Registered as an entry point of zarr, so that `zarr.open` decodes stores wherever cytofm is
installed. The name and meaning (bytes to bytes, after the `bytes` serializer) are those of
the published package virtual-tiff, which decodes our stores without cytofm.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from cytofm_cli.store.zarr3 import JPEG, jpeg_decode, jpeg_encode


@dataclass(frozen=True)
class JpegCodec(BytesBytesCodec):  # type: ignore[misc]
    """Decode (and encode, 4:4:4) 8-bit JPEG chunks of shape (1, y, x, 3)."""

    is_fixed_size = False
    level: int = 95

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build from the `codecs` entry of `zarr.json`."""
        return cls(**(data.get("configuration") or {}))

    def to_dict(self) -> dict[str, Any]:
        """Return the `codecs` entry of `zarr.json`."""
        return dict(JPEG)

    def compute_encoded_size(self, _input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        """Raise: the size of a JPEG stream is known only after encoding."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        pixels = await asyncio.to_thread(jpeg_decode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(pixels.tobytes())

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        pixels = np.frombuffer(chunk_bytes.to_bytes(), dtype=np.uint8)
        image = pixels.reshape(chunk_spec.shape[-3:])
        data = await asyncio.to_thread(jpeg_encode, image, self.level)
        return chunk_spec.prototype.buffer.from_bytes(data)
