"""Write Zarr v3 nodes, and read the encoded chunks of sharded ones.

Our own writer, because the tile step spends its time here: it assembles a shard from chunks
that are encoded elsewhere (or copied from the slide), streams it to disk, and needs no import
of zarr, which costs half a second. Everything it writes is read back with zarr in the tests.
Format: Zarr core v3.0 and the `sharding_indexed` codec v1.0 of its specification.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.closing import Closes
from cytofm_cli.work.files import write_json

Codec = dict[str, Any]

BYTES: Codec = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD: Codec = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
# The name under which published packages register imagecodecs' JPEG codec with zarr.
JPEG: Codec = {"name": "imagecodecs_jpeg"}
_CRC32C: Codec = {"name": "crc32c"}
_MISSING = 2**64 - 1
_BLOCK_BYTES = 2**20


def zstd_encode(data: bytes) -> bytes:
    """Compress with zstd level 1: lossless at the speed of the disk."""
    import imagecodecs

    return bytes(imagecodecs.zstd_encode(data, level=1))


def zstd_decode(data: bytes) -> bytes:
    """Decompress one zstd frame."""
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(data))


def write_group(
    path: Path, attributes: Mapping[str, Any] | None = None, *, flush: bool = False
) -> None:
    """Make a group node, with its folder; `flush` one that is not in a staging folder.

    What is staged is flushed whole before it is renamed into place (`flush_folder`).
    """
    node = {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes or {})}
    write_json(path / "zarr.json", node, indent=1, flush=flush)


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
    codecs = [BYTES, ZSTD] if compress else [BYTES]
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
        (path / key).write_bytes(zstd_encode(raw) if compress else raw)


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
    write_json(path / "zarr.json", node, indent=1, flush=False)


def hash_array(path: Path, hasher: Hasher) -> None:
    """Feed shape, dtype and values to a hash; how they were compressed does not count.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    node = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    hasher.update(json.dumps([node["shape"], node["data_type"]]).encode())
    compressed = node["codecs"][-1]["name"] == ZSTD["name"]
    for chunk in sorted(path.glob("c.*")):
        hasher.update(f"\0{chunk.name}\0".encode())
        if compressed:
            hasher.update(zstd_decode(chunk.read_bytes()))
            continue
        with chunk.open("rb") as handle:
            while block := handle.read(_BLOCK_BYTES):
                hasher.update(block)


class Hasher(Protocol):
    """A hash of the standard library."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


class ShardedArrayWriter:
    """Write a sharded array from encoded chunks, shard by shard.

    Args:
        path: folder of the array; made here.
        shape: shape of the array.
        dtype: dtype of the array.
        rows_per_shard: rows (first axis) in one shard.
        chunk: shape of an inner chunk; divides `(rows_per_shard, *shape[1:])`.
        codecs: inner codecs, as Zarr metadata, by which each chunk was encoded.
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
                "codecs": list(codecs),
                "index_codecs": [BYTES, _CRC32C],
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
        from numcodecs.checksum32 import CRC32C  # importing numcodecs takes 0.05 to 0.15 s

        n_chunks = int(np.prod(self.chunks_per_shard))
        table = np.full((n_chunks, 2), _MISSING, dtype="<u8")
        key = ".".join(["c", str(index), *["0"] * (len(self.chunks_per_shard) - 1)])
        with (self.path / key).open("wb") as handle:
            offset = 0
            for position, chunk in enumerate(chunks):
                if chunk is not None:
                    handle.write(chunk)
                    table[position] = (offset, len(chunk))
                    offset += len(chunk)
            handle.write(bytes(CRC32C().encode(table)))
            return handle.tell()


def _crc32c(data: bytes) -> bytes:
    """Return the CRC-32C that stands behind the index of a shard.

    What numcodecs writes there; readers do without importing numcodecs.
    """
    import google_crc32c

    return int(google_crc32c.value(data)).to_bytes(4, "little")


class ShardedArrayReader(Closes):
    """Read encoded chunks of an array written by `ShardedArrayWriter`, any thread.

    Raises:
        ValueError: the node is no sharded array, or a shard's index is damaged.
        OSError: a file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        node = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        sharding = node["codecs"][0]
        if sharding["name"] != "sharding_indexed":
            raise ValueError(f"{path}: not a sharded array")
        configuration = sharding["configuration"]
        self.path = path
        self.shape: tuple[int, ...] = tuple(node["shape"])
        self.dtype = np.dtype(node["data_type"])
        self.chunk: tuple[int, ...] = tuple(configuration["chunk_shape"])
        self.codecs: list[Codec] = configuration["codecs"]
        shard_shape = node["chunk_grid"]["configuration"]["chunk_shape"]
        self.rows_per_shard: int = shard_shape[0]
        self.chunks_per_shard = tuple(
            outer // inner for outer, inner in zip(shard_shape, self.chunk, strict=True)
        )
        self._lock = threading.Lock()
        self._tables: dict[int, NDArray[np.uint64]] = {}
        self._handles: dict[int, BinaryIO] = {}

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()

    def row_chunks(self, row: int) -> list[bytes | None]:
        """Return the encoded chunks of one row (one chunk deep), in C order."""
        if self.chunk[0] != 1:
            raise ValueError(f"{self.path}: chunks hold {self.chunk[0]} rows, not one")
        shard, within = divmod(row, self.rows_per_shard)
        table = self._table(shard)
        per_row = int(np.prod(self.chunks_per_shard[1:]))
        descriptor = self._handles[shard].fileno()
        chunks: list[bytes | None] = []
        for offset, n_bytes in table[within * per_row : (within + 1) * per_row]:
            missing = int(offset) == _MISSING
            chunks.append(None if missing else os.pread(descriptor, int(n_bytes), int(offset)))
        return chunks

    def chunk_at(self, number: int) -> bytes | None:
        """Return an encoded chunk of an array whose chunks are whole rows, by its place."""
        shard, within = divmod(number, self.chunks_per_shard[0])
        offset, n_bytes = self._table(shard)[within]
        if int(offset) == _MISSING:
            return None
        return os.pread(self._handles[shard].fileno(), int(n_bytes), int(offset))

    def _table(self, shard: int) -> NDArray[np.uint64]:
        with self._lock:  # else two threads open a shard, and one closes it under the other
            return self._tables[shard] if shard in self._tables else self._open(shard)

    def _open(self, shard: int) -> NDArray[np.uint64]:
        key = ".".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])
        handle = (self.path / key).open("rb")
        n_bytes = int(np.prod(self.chunks_per_shard)) * 16
        handle.seek(-n_bytes - 4, 2)
        data = handle.read()
        if _crc32c(data[:-4]) != data[-4:]:
            handle.close()
            raise ValueError(f"{self.path / key}: the shard's index is damaged")
        self._handles[shard] = handle
        self._tables[shard] = np.frombuffer(data[:-4], dtype="<u8").reshape(-1, 2)
        return self._tables[shard]


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
        return lambda data: jpeg_decode(data).reshape(shape)
    if name == ZSTD["name"]:
        return lambda data: np.frombuffer(zstd_decode(data), dtype=np.uint8).reshape(shape)
    raise ValueError(f"unknown chunk codec {name!r}")


def jpeg_decode(data: bytes) -> NDArray[np.uint8]:
    """Decode a complete JPEG stream to (y, x, 3) RGB with libjpeg-turbo."""
    import imagecodecs

    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(data)
    return pixels


def jpeg_encode(pixels_HWC: NDArray[np.uint8], quality: int) -> bytes:
    """Encode (y, x, 3) RGB as JPEG without chroma subsampling (stains are colour)."""
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(pixels_HWC, level=quality, subsampling="444"))
