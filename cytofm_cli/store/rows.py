"""Read arrays of a store block by block along their first axis, without importing zarr.

Zarr costs a quarter of a second at start-up, and reading rows of a table needs nothing of it:
chunks of whole rows, raw or zstd, each in a file of its own or all in one shard, which is how
`store.zarr3` writes every array but pixels. What is laid out otherwise is left to zarr.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import DAMAGE as BAD_RECORDS
from cytofm_cli.errors import CytofmError
from cytofm_cli.store.budget import refuse_claim
from cytofm_cli.store.checksum import read_node, without
from cytofm_cli.store.chunks import ShardedArrayReader, read_chunk
from cytofm_cli.store.zarr3 import BYTES, ZSTD, zstd_decode
from cytofm_cli.work.closing import Closes
from cytofm_cli.work.files import require_plain

_SHARDING = "sharding_indexed"
# What comes of a node or a chunk that is not as it was written.
DAMAGE: Final = (*BAD_RECORDS, RuntimeError)


class RowReader(Closes):
    """Rows of an array; keeps the last chunk decoded, so reading in order decodes each once.

    Attributes:
        shape: of the array.
        dtype: of the array.
    """

    def __init__(self, path: Path, node: dict[str, Any]) -> None:
        self.path = path
        self.shape: tuple[int, ...] = tuple(node["shape"])
        self.dtype = np.dtype(node["data_type"])
        sharding = node["codecs"][0]
        inner = sharding["configuration"] if sharding["name"] == _SHARDING else None
        chunk = (
            inner["chunk_shape"] if inner else node["chunk_grid"]["configuration"]["chunk_shape"]
        )
        self.chunk: tuple[int, ...] = tuple(chunk)
        self._codecs: list[dict[str, Any]] = inner["codecs"] if inner else node["codecs"]
        self._shards = ShardedArrayReader(path) if inner else None
        self._last: tuple[int, NDArray[Any]] | None = None

    def close(self) -> None:
        """Close the shards."""
        if self._shards is not None:
            self._shards.close()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the rows `start` to `stop`.

        Raises:
            OSError, ValueError, RuntimeError: a file is damaged.
        """
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        rows = np.zeros((max(0, stop - start), *self.shape[1:]), self.dtype)
        height = self.chunk[0]
        if not rows.size:
            return rows
        for number in range(start // height, -(-stop // height)):
            first = number * height
            low, high = max(start, first), min(stop, first + height)
            rows[low - start : high - start] = self._chunk(number)[low - first : high - first]
        return rows

    def _chunk(self, number: int) -> NDArray[Any]:
        if self._last is None or self._last[0] != number:
            self._last = None  # two chunks at a time are not kept
            self._last = (number, self._decoded(number))
        return self._last[1]

    def _decoded(self, number: int) -> NDArray[Any]:
        data = self._encoded(number)
        if data is None:  # the fill value
            return np.zeros(self.chunk, self.dtype)
        compressed = without(self._codecs)[-1]["name"] == ZSTD["name"]
        n_bytes = math.prod(self.chunk) * self.dtype.itemsize
        raw = zstd_decode(data, n_bytes) if compressed else data
        return np.frombuffer(raw, self.dtype.newbyteorder("<")).reshape(self.chunk)

    def _encoded(self, number: int) -> bytes | None:
        if self._shards is not None:
            return self._shards.chunk_at(number)
        file = self.path / ".".join(["c", str(number), *["0"] * (len(self.shape) - 1)])
        return read_chunk(file, self._codecs)


class ZarrRows(Closes):
    """Rows of an array of any other layout."""

    def __init__(self, path: Path) -> None:
        import zarr

        require_plain(path)
        self._array = zarr.open_array(path, mode="r")
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)

    def close(self) -> None:
        """Do nothing: zarr keeps no file open."""

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the rows `start` to `stop`."""
        return np.asarray(self._array[start:stop])


def open_rows(path: Path) -> RowReader | ZarrRows:
    """Return a reader of an array's rows: a context manager.

    Raises:
        OSError, ValueError, KeyError: there is no array, or its node is damaged.
    """
    node = read_node(path)
    refuse_claim(path, node)
    return RowReader(path, node) if _is_ours(node) else ZarrRows(path)


class Rows(Closes):
    """Rows of an array of a store, whose damage is the store's.

    Args:
        path: of the array.
        blame: makes the error that is raised out of what went wrong.
    """

    def __init__(self, path: Path, blame: Callable[[Exception], CytofmError]) -> None:
        self._blame = blame
        with self._blaming():
            self._reader = open_rows(path)
        self.shape = self._reader.shape
        self.dtype = self._reader.dtype

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return the rows `start` to `stop`."""
        with self._blaming():
            return self._reader.read(start, stop)

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise self._blame(error) from error


def _is_ours(node: dict[str, Any]) -> bool:
    """Tell whether an array has chunks of whole rows, named and encoded as `zarr3` does."""
    shape, codecs = node["shape"], node["codecs"]
    grid = node["chunk_grid"]["configuration"].get("chunk_shape")
    keys = node["chunk_key_encoding"]
    if node["node_type"] != "array" or not shape or not grid or node["fill_value"] != 0:
        return False
    if keys["name"] != "default" or keys["configuration"].get("separator") != ".":
        return False
    if codecs[0]["name"] == _SHARDING:
        inner = codecs[0]["configuration"]
        return (
            len(codecs) == 1
            and _is_plain(inner["codecs"])
            and _has_whole_rows(inner["chunk_shape"], shape)
            and _has_whole_rows(grid, shape)
        )
    return _is_plain(codecs) and _has_whole_rows(grid, shape)


def _has_whole_rows(chunk: Sequence[int], shape: Sequence[int]) -> bool:
    return math.prod(chunk) > 0 and list(chunk[1:]) == [max(1, side) for side in shape[1:]]


def _is_plain(codecs: Sequence[dict[str, Any]]) -> bool:
    names = [codec["name"] for codec in without(codecs)]
    return codecs[0] == BYTES and names[1:] in ([], [ZSTD["name"]])
