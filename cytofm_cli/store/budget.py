"""How much an array of a store may claim to be: memory is taken by its node, which may lie.

A node of a hundred bytes can state a shape of terabytes. What is read into memory as a whole is
held against the files that are there: no table of a store compresses a thousandfold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from cytofm_cli.work.budget import FREE_BYTES, refuse_size

MOST_RATIO: Final = 1000
_MOST_CHUNK_BYTES: Final = 1 << 30


def refuse_claim(path: Path, node: Mapping[str, Any]) -> None:
    """Refuse an array that states to be far larger than its files can be.

    Args:
        path: its folder.
        node: its `zarr.json`.

    Raises:
        ValueError: it does, or its shape, chunks or dtype are impossible.
    """
    sizes = [n_bytes(node, shape) for shape in (node["shape"], *chunk_shapes(node))]
    if max(sizes) > FREE_BYTES:
        stored = sum(file.stat().st_size for file in path.rglob("c*") if file.is_file())
        refuse_size(max(sizes), stored, ratio=MOST_RATIO)


def refuse_chunks(node: Mapping[str, Any]) -> None:
    """Refuse inner chunks of no size, or of more than 1 GiB; argument and errors as above."""
    for shape in chunk_shapes(node):
        if not 0 < n_bytes(node, shape) <= _MOST_CHUNK_BYTES:
            raise ValueError(f"its node states chunks of {n_bytes(node, shape)} bytes")


def chunk_shapes(node: Mapping[str, Any]) -> list[Sequence[int]]:
    """Return the shapes of the chunks that are decoded as a whole: the inner ones of shards."""
    first = node["codecs"][0]
    if first["name"] == "sharding_indexed":
        return [first["configuration"]["chunk_shape"]]
    return [node["chunk_grid"]["configuration"]["chunk_shape"]]


def n_bytes(node: Mapping[str, Any], shape: Sequence[int]) -> int:
    """Return how many bytes a shape takes in the dtype of an array.

    Raises:
        ValueError: a side is no natural number, or NumPy knows no such dtype.
    """
    if any(not isinstance(side, int) or isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"impossible shape {list(shape)}")
    try:
        return int(math.prod(shape) * np.dtype(node["data_type"]).itemsize)
    except TypeError as error:
        raise ValueError(f"impossible dtype {node['data_type']!r}") from error
