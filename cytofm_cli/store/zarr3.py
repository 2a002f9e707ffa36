"""Write Zarr v3 nodes; `store.chunks` reads what lies in their files.

Our own writer, because the tile step spends its time here: it assembles a shard from chunks
that are encoded elsewhere (or copied from the slide), streams it to disk, and needs no import
of zarr, which costs half a second. Everything it writes is read back with zarr in the tests.
Format: Zarr core v3.0 and the `sharding_indexed` codec v1.0 of its specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.store.checksum import (
    CRC32C,
    N_BYTES,
    Codec,
    checksum,
    write_node,
)

BYTES: Codec = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD: Codec = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
# The name under which published packages register imagecodecs' JPEG codec with zarr.
JPEG: Codec = {"name": "imagecodecs_jpeg"}
MISSING = 2**64 - 1


def zstd_encode(data: bytes) -> bytes:
    """Compress with zstd level 1: lossless at the speed of the disk."""
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(data, level=1))


def zstd_decode(data: bytes, n_bytes: int) -> bytes:
    """Decompress one zstd frame, whose own word for its length is not believed.

    Args:
        data: the frame.
        n_bytes: length of what it holds.

    Raises:
        ValueError, RuntimeError: it is damaged, or holds more or less than that.
    """
    import imagecodecs

    raw = bytes(imagecodecs.zstd_decode(data, out=n_bytes))
    if len(raw) != n_bytes:
        raise ValueError(f"a chunk of {len(raw)} bytes in place of {n_bytes}")
    return raw


def write_group(
    path: Path, attributes: Mapping[str, Any] | None = None, *, flush: bool = False
) -> None:
    """Make a group node, with its folder; `flush` one that is not in a staging folder.

    What is staged is flushed whole before it is renamed into place (`flush_folder`).
    """
    node = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
    write_node(path, node, flush=flush)


def write_array(
    path: Path,
    values: NDArray[Any],
    *,
    axes: Sequence[str],
    compress: bool = True,
    attributes: Mapping[str, Any] | None = None,
    rows_per_chunk: int | None = None,
) -> None:
    """Write an array as one chunk in one file; a longer one as a file every `rows_per_chunk`."""
    codecs = [BYTES, ZSTD, CRC32C] if compress else [BYTES, CRC32C]
    path.mkdir(parents=True, exist_ok=True)
    rows = min(values.shape[0], rows_per_chunk or values.shape[0])
    chunk = (max(1, rows), *(max(1, side) for side in values.shape[1:]))
    _write_array_node(path, values.shape, values.dtype, chunk, codecs, axes, attributes)
    if not values.size:
        return
    for number, start in enumerate(range(0, values.shape[0], rows)):
        block = np.ascontiguousarray(values[start : start + rows])
        raw = block.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        raw += bytes((rows - len(block)) * (len(raw) // len(block)))  # a chunk is always whole
        key = ".".join(["c", str(number), *["0"] * (values.ndim - 1)])
        data = zstd_encode(raw) if compress else raw
        (path / key).write_bytes(data + checksum(data))


def _write_array_node(
    path: Path,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    chunk: Sequence[int],
    codecs: Sequence[Codec],
    axes: Sequence[str],
    attributes: Mapping[str, Any] | None,
) -> None:
    node = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        # "." keeps every chunk file in the array's own folder: fewer folders, fewer inodes.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": list(codecs),
        "attributes": dict(attributes or {}),
        "dimension_names": list(axes),
    }
    write_node(path, node, flush=False)


class ShardedArrayWriter:
    """Write a sharded array from encoded chunks, shard by shard.

    Args:
        path: folder of the array; made here.
        shape: shape of the array.
        dtype: dtype of the array.
        rows_per_shard: rows (first axis) in one shard.
        chunk: shape of an inner chunk; divides `(rows_per_shard, *shape[1:])`.
        codecs: inner codecs, as Zarr metadata, by which each chunk was encoded; the checksum of
            each is added here.
        axes: dimension names.
        attributes: what the array says of itself.
    """

    def __init__(
        self,
        path: Path,
        *,
        shape: Sequence[int],
        dtype: str,
        rows_per_shard: int,
        chunk: Sequence[int],
        codecs: Sequence[Codec],
        axes: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        shard_shape = (rows_per_shard, *(max(1, side) for side in shape[1:]))
        self.chunks_per_shard = tuple(
            outer // inner for outer, inner in zip(shard_shape, chunk, strict=True)
        )
        self.n_shards = -(-shape[0] // rows_per_shard)
        path.mkdir(parents=True, exist_ok=True)
        sharding = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": list(chunk),
                "codecs": [*codecs, CRC32C],
                "index_codecs": [BYTES, CRC32C],
                "index_location": "end",
            },
        }
        kind = np.dtype(dtype)
        _write_array_node(path, shape, kind, shard_shape, [sharding], axes, attributes)

    def write_shard(self, index: int, chunks: Iterable[bytes | None]) -> int:
        """Stream one shard to disk.

        Args:
            index: position of the shard along the first axis.
            chunks: encoded chunks in C order; None is a chunk of fill value. May end early.

        Returns:
            Bytes written.
        """
        n_chunks = int(np.prod(self.chunks_per_shard))
        table = np.full((n_chunks, 2), MISSING, dtype="<u8")
        key = ".".join(["c", str(index), *["0"] * (len(self.chunks_per_shard) - 1)])
        with (self.path / key).open("wb") as handle:
            offset = 0
            for position, chunk in enumerate(chunks):
                if chunk is not None:
                    handle.write(chunk)
                    handle.write(checksum(chunk))
                    table[position] = (offset, len(chunk) + N_BYTES)
                    offset += len(chunk) + N_BYTES
            index_bytes = table.tobytes()
            handle.write(index_bytes + checksum(index_bytes))
            return handle.tell()


def write_rows(
    path: Path,
    values: NDArray[Any],
    *,
    axes: Sequence[str],
    rows_per_chunk: int,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a table (n, d) as one shard of uncompressed row blocks: one file, read by block."""
    write_blocks(
        path,
        [values],
        shape=values.shape,
        dtype=values.dtype.name,
        axes=axes,
        rows_per_chunk=rows_per_chunk,
        attributes=attributes,
    )


def write_blocks(
    path: Path,
    blocks: Iterable[NDArray[Any]],
    *,
    shape: Sequence[int],
    dtype: str,
    axes: Sequence[str],
    rows_per_chunk: int,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a table as `write_rows` does, of blocks that come one after the other.

    Args:
        path: folder of the array; made here.
        blocks: rows in their order; all but the last a multiple of `rows_per_chunk`.
        shape: (n, d).
        dtype: of the rows.
        axes: dimension names.
        rows_per_chunk: rows that are read together.
        attributes: what the array says of itself.

    Raises:
        ValueError: the blocks hold other than n rows, or are cut elsewhere.
    """
    rows = min(rows_per_chunk, max(1, shape[0]))
    chunk = (rows, *(max(1, side) for side in shape[1:]))
    writer = ShardedArrayWriter(
        path,
        shape=shape,
        dtype=dtype,
        rows_per_shard=-(-max(1, shape[0]) // rows) * rows,
        chunk=chunk,
        codecs=[BYTES],
        axes=axes,
        attributes=attributes,
    )

    def encoded() -> Iterable[bytes]:
        n_rows = 0
        for block in blocks:
            if n_rows % rows:
                raise ValueError(f"{path}: a block ends inside a chunk of {rows} rows")
            n_rows += len(block)
            for start in range(0, len(block), rows):
                whole = np.zeros(chunk, dtype=dtype)
                part = block[start : start + rows]
                whole[: len(part)] = part
                yield whole.tobytes()
        if n_rows != shape[0]:
            raise ValueError(f"{path}: {n_rows} rows came of {shape[0]}")

    if all(shape):
        writer.write_shard(0, encoded())


Decoder = Callable[[bytes], NDArray[np.uint8]]


def chunk_decoder(codecs: Sequence[Codec], chunk: Sequence[int]) -> Decoder:
    """Return the function that decodes one pixel chunk of the store to (y, x, c)."""
    name = codecs[-1]["name"]
    shape = tuple(chunk[1:])
    if name == JPEG["name"]:
        return lambda data: jpeg_decode(data, shape)
    if name == ZSTD["name"]:
        n_bytes = math.prod(shape)
        return lambda data: np.frombuffer(zstd_decode(data, n_bytes), np.uint8).reshape(shape)
    raise ValueError(f"unknown chunk codec {name!r}")


def refuse_undecodable(
    data: bytes, codecs: Sequence[Codec], shape: Sequence[int], dtype: str
) -> None:
    """Decode a chunk that has no checksum, to see whether it can be.

    Args:
        data: the encoded chunk.
        codecs: by which it was encoded.
        shape: of the chunk.
        dtype: of the array.

    Raises:
        ValueError, RuntimeError: it cannot be decoded, or is of another size.
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    name = codecs[-1]["name"]
    if name == JPEG["name"]:
        jpeg_decode(data, tuple(shape[1:]))
    elif name == ZSTD["name"]:
        zstd_decode(data, n_bytes)
    elif name == BYTES["name"] and len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes in place of {n_bytes}")


def jpeg_decode(data: bytes, shape: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    """Decode a complete JPEG stream to (y, x, 3) RGB with libjpeg-turbo.

    Args:
        data: the stream.
        shape: what it must hold; None: whatever it says.

    Raises:
        ValueError, RuntimeError: it is damaged, or of another shape.
    """
    import imagecodecs

    out = None if shape is None else np.empty(shape, np.uint8)
    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data, out=out)
    return pixels


def jpeg_encode(pixels_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """Encode (y, x, 3) RGB as JPEG without chroma subsampling (stains are colour)."""
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(pixels_HWC, level=quality, subsampling="444"))
