"""Read encoded chunks of arrays, checked, without importing zarr."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.store import budget
from cytofm_cli.store.checksum import (
    Codec,
    checked,
    checksum,
    has_checksum,
    read_node,
    without,
)
from cytofm_cli.store.zarr3 import MISSING, ZSTD, zstd_decode
from cytofm_cli.work.closing import Closes
from cytofm_cli.work.files import open_plain, read_plain


def hash_array(path: Path, hasher: Hasher) -> None:
    """Feed shape, dtype and values to a hash; how they are compressed or checked does not count.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    node = read_node(path)
    budget.refuse_claim(path, node)
    hasher.update(json.dumps([node["shape"], node["data_type"]]).encode())
    if node["codecs"][0]["name"] == "sharding_indexed":
        with ShardedArrayReader(path) as reader:
            reader.hash(hasher)
        return
    compressed = without(node["codecs"])[-1]["name"] == ZSTD["name"]
    n_bytes = budget.n_bytes(node, budget.chunk_shapes(node)[0])
    for chunk in sorted(path.glob("c.*")):
        hasher.update(f"\0{chunk.name}\0".encode())
        data = read_chunk(chunk, node["codecs"])
        hasher.update(zstd_decode(data, n_bytes) if compressed else data)


_CHUNK_BYTES: Final = 2 << 30  # of one file


def read_chunk(file: Path, codecs: Sequence[Codec]) -> bytes:
    """Return what a file of one chunk holds, checked, without its checksum.

    Raises:
        ValueError: its checksum is wrong.
        OSError: it cannot be read.
    """
    data = read_plain(file, _CHUNK_BYTES)
    return checked(data, file.name) if has_checksum(codecs) else data


class Hasher(Protocol):
    """A hash of the standard library."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""


class ShardedArrayReader(Closes):
    """Read encoded chunks of an array written by `ShardedArrayWriter`, any thread.

    Chunks come checked, and without their checksum, which `codecs` therefore does not name.

    Attributes:
        shape, dtype: of the array.
        chunk: shape of an inner chunk.
        codecs: by which each chunk was encoded.
        has_checksums: chunks are checked; those of earlier versions cannot be.

    Raises:
        ValueError: the node is no sharded array, or a shard's index or a chunk is damaged.
        OSError: a file is missing or unreadable.
    """

    def __init__(self, path: Path) -> None:
        node = read_node(path)
        sharding = node["codecs"][0]
        if sharding["name"] != "sharding_indexed":
            raise ValueError(f"{path}: not a sharded array")
        configuration = sharding["configuration"]
        self.path = path
        self.shape: tuple[int, ...] = tuple(node["shape"])
        self.dtype = np.dtype(node["data_type"])
        budget.refuse_chunks(node)
        self.chunk: tuple[int, ...] = tuple(configuration["chunk_shape"])
        self.codecs: list[Codec] = without(configuration["codecs"])
        self.has_checksums = has_checksum(configuration["codecs"])
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
        places = range(within * per_row, (within + 1) * per_row)
        return [self._chunk(shard, place, table[place]) for place in places]

    def chunk_at(self, number: int) -> bytes | None:
        """Return an encoded chunk of an array whose chunks are whole rows, by its place."""
        return self.chunk_in(*divmod(number, self.chunks_per_shard[0]))

    def n_chunks(self, shard: int) -> int:
        """Return how many chunks a shard has places for; reads its index."""
        return len(self._table(shard))

    def chunk_in(self, shard: int, place: int) -> bytes | None:
        """Return an encoded chunk by its shard, and its place there in C order."""
        return self._chunk(shard, place, self._table(shard)[place])

    def size_of(self, shard: int, place: int) -> int:
        """Return the bytes that a chunk takes on the disk."""
        offset, n_bytes = self._table(shard)[place]
        return 0 if int(offset) == MISSING else int(n_bytes)

    def hash(self, hasher: Hasher) -> None:
        """Feed all shards to a hash as they are, or would be, without checksums of chunks."""
        for file in sorted(self.path.glob("c.*")):
            hasher.update(f"\0{file.name}\0".encode())
            shard = int(file.name.split(".")[1])
            table, offset = self._table(shard).copy(), 0
            for number, place in enumerate(table):
                chunk = self._chunk(shard, number, place)
                if chunk is not None:
                    hasher.update(chunk)
                    place[:] = (offset, len(chunk))
                    offset += len(chunk)
            hasher.update(table.tobytes() + checksum(table.tobytes()))

    def _chunk(self, shard: int, number: int, place: NDArray[np.uint64]) -> bytes | None:
        offset, n_bytes = int(place[0]), int(place[1])
        if offset == MISSING:
            return None
        data = os.pread(self._handles[shard].fileno(), n_bytes, offset)
        return checked(data, f"chunk {number} of shard {shard}") if self.has_checksums else data

    def _table(self, shard: int) -> NDArray[np.uint64]:
        with self._lock:  # else two threads open a shard, and one closes it under the other
            return self._tables[shard] if shard in self._tables else self._open(shard)

    def _open(self, shard: int) -> NDArray[np.uint64]:
        key = ".".join(["c", str(shard), *["0"] * (len(self.shape) - 1)])
        handle = open_plain(self.path / key)
        n_bytes = int(np.prod(self.chunks_per_shard)) * 16
        handle.seek(-n_bytes - 4, 2)
        try:
            index_bytes = checked(handle.read(), f"the index of shard {shard}")
        except ValueError:
            handle.close()
            raise
        self._handles[shard] = handle
        self._tables[shard] = np.frombuffer(index_bytes, dtype="<u8").reshape(-1, 2)
        return self._tables[shard]
