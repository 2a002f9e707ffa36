"""Read a store of cytofm where cytofm is not installed: zarr and imagecodecs are enough.

    python read_store.py stores/slide.zarr

Every array opens by its path with plain zarr. Only `tiles/pixels` of a slide that was JPEG needs
more: its chunks are complete JPEG streams under the codec name `imagecodecs_jpeg`. zarr refuses
to *list* a group that holds an array whose codec it does not know, so register one first.
"""

# ruff: noqa: T201 - a script that prints

import asyncio
import sys
from dataclasses import dataclass
from typing import Any, Self

import imagecodecs
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec


@dataclass(frozen=True)
class ImagecodecsJpeg(BytesBytesCodec):
    """Decode one JPEG stream to its RGB bytes."""

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build from the `codecs` entry of `zarr.json`."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """Return the `codecs` entry of `zarr.json`."""
        return {"name": "imagecodecs_jpeg"}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        """Nothing is encoded here."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        pixels = await asyncio.to_thread(imagecodecs.jpeg8_decode, chunk_bytes.to_bytes())
        return chunk_spec.prototype.buffer.from_bytes(pixels.tobytes())

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        raise NotImplementedError


register_codec("imagecodecs_jpeg", ImagecodecsJpeg)

if __name__ == "__main__":
    store = zarr.open_group(sys.argv[1], mode="r")
    for path, node in sorted(store.members(max_depth=None)):
        if isinstance(node, zarr.Array):
            print(path, node.dtype, node.shape, node.attrs.get("description", ""))
    print("mean colour of the first tile:", store["tiles/pixels"][0].mean((0, 1)).round(1))
