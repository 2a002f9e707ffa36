"""Create the arrays of a store: each is of a kind of `schema.ARRAYS`, and as that has it.

The folder is that in which a step is staged. What does not fit the layout is a bug of ours, so
it is a plain error; `check_staged` refuses what came into the folder by another way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.store import schema, zarr3
from cytofm_cli.store.checksum import Codec
from cytofm_cli.store.schema import ArrayKind
from cytofm_cli.store.zarr3 import ShardedArrayWriter
from cytofm_cli.work.files import read_plain


def write(
    folder: Path,
    kind: ArrayKind,
    values: NDArray[Any],
    told: Mapping[str, object] | None = None,
) -> None:
    """Write an array as one chunk; one of more than `schema.ROWS_PER_FILE` rows as several.

    Args:
        folder: where its step is staged.
        kind: what it is.
        values: of the dtype and the axes of its kind.
        told: what it says of itself besides what its kind says.

    Raises:
        ValueError: another dtype or number of axes.
    """
    _check(kind, values)
    attributes = kind.attributes | dict(told or {})
    zarr3.write_array(
        folder / kind.in_step,
        values,
        axes=kind.axes,
        attributes=attributes,
        rows_per_chunk=schema.ROWS_PER_FILE,
    )


def write_rows(folder: Path, kind: ArrayKind, values: NDArray[Any]) -> None:
    """Write a table (n, d) as one shard of row blocks; arguments and errors as `write`."""
    _check(kind, values)
    zarr3.write_rows(
        folder / kind.in_step,
        values,
        axes=kind.axes,
        rows_per_chunk=schema.ROWS_PER_CHUNK,
        attributes=kind.attributes,
    )


def write_blocks(
    folder: Path,
    kind: ArrayKind,
    blocks: Iterable[NDArray[Any]],
    *,
    shape: Sequence[int],
    dtype: str,
) -> None:
    """Write a table (n, d) like `write_rows`, of blocks of rows that come one after the other.

    Args:
        folder: where its step is staged.
        kind: what it is.
        blocks: rows in their order; all but the last a multiple of `schema.ROWS_PER_CHUNK`.
        shape: (n, d).
        dtype: of the rows.

    Raises:
        ValueError: another dtype or number of axes, or blocks that do not fit the shape.
    """
    _check(kind, np.empty((0,) * len(shape), dtype))
    zarr3.write_blocks(
        folder / kind.in_step,
        blocks,
        shape=shape,
        dtype=dtype,
        axes=kind.axes,
        rows_per_chunk=schema.ROWS_PER_CHUNK,
        attributes=kind.attributes,
    )


def open_shards(
    folder: Path,
    kind: ArrayKind,
    *,
    shape: Sequence[int],
    rows_per_shard: int,
    chunk: Sequence[int],
    codecs: Sequence[Codec],
) -> ShardedArrayWriter:
    """Return a writer of an array that comes shard by shard; see `ShardedArrayWriter`."""
    return ShardedArrayWriter(
        folder / kind.in_step,
        shape=shape,
        dtype=kind.dtype[0],
        rows_per_shard=rows_per_shard,
        chunk=chunk,
        codecs=codecs,
        axes=kind.axes,
        attributes=kind.attributes,
    )


def check_staged(folder: Path, step: str) -> None:
    """Refuse to commit arrays that the layout does not have.

    Args:
        folder: where the step is staged.
        step: its name.

    Raises:
        ValueError: an array of another path, dtype or axes.
    """
    above = "" if step == schema.TILE_STEP else f"{step}/"
    for file in sorted(folder.rglob("zarr.json")):
        node = json.loads(read_plain(file))
        if node["node_type"] == "array":
            path = above + file.parent.relative_to(folder).as_posix()
            schema.kind_of(path).check(node["data_type"], node["dimension_names"])


def _check(kind: ArrayKind, values: NDArray[Any]) -> None:
    if values.ndim != len(kind.axes):
        raise ValueError(f"{kind.path} has {values.ndim} axes; the layout has {kind.axes}")
    kind.check(np.dtype(values.dtype).name, kind.axes)
