"""AnnData's file format, written with h5py alone, in blocks of rows.

The on-disk format of AnnData 0.1.0 (anndata 0.7 and later read it): every group and dataset says
in `encoding-type` and `encoding-version` what it is.
https://anndata.readthedocs.io/en/latest/fileformat-prose.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import h5py

INDEX: Final = "_index"
_ROWS: Final = 16384
_X_ROWS: Final = 1024
_EMPTY: Final = ("layers", "varm", "obsp", "varp")


def begin(file: h5py.File, *, n_obs: int, var: Sequence[str], uns: Mapping[str, Any]) -> None:
    """Write all of a file but what has a row an observation, and make room for `X`.

    Args:
        file: new.
        n_obs: rows.
        var: names of the columns of `X`.
        uns: what is said of the whole: text, numbers, and mappings of these.
    """
    _mark(file, "anndata", "0.1.0")
    for name in _EMPTY:
        _mark(file.create_group(name), "dict", "0.1.0")
    _mark(file.create_group("obsm"), "dict", "0.1.0")
    _write_mapping(file, "uns", uns)
    frame(file, "var", ())
    strings(file["var"], INDEX, len(var))[:] = np.array(var, object)
    array(file, "X", (n_obs, len(var)), np.float32, rows=_X_ROWS)


def frame(parent: h5py.Group, name: str, columns: Sequence[str]) -> h5py.Group:
    """Make a table, whose columns and index (`INDEX`) are then made in it."""
    import h5py

    group = _mark(parent.create_group(name), "dataframe", "0.2.0")
    group.attrs["_index"] = INDEX
    group.attrs.create(
        "column-order", np.array(columns, object), (len(columns),), h5py.string_dtype()
    )
    return group


def array(
    parent: h5py.Group, name: str, shape: Sequence[int], dtype: Any, *, rows: int = _ROWS
) -> h5py.Dataset:
    """Make an array, to be filled by rows."""
    return _mark(_room(parent, name, shape, dtype, rows), "array", "0.2.0")


def strings(parent: h5py.Group, name: str, count: int) -> h5py.Dataset:
    """Make an array of texts, to be filled."""
    import h5py

    room = _room(parent, name, (count,), h5py.string_dtype(), _ROWS)
    return _mark(room, "string-array", "0.2.0")


def categorical(
    parent: h5py.Group, name: str, count: int, categories: Sequence[str]
) -> h5py.Dataset:
    """Make a column of categories; return its codes, to be filled, -1 for none."""
    group = _mark(parent.create_group(name), "categorical", "0.2.0")
    group.attrs["ordered"] = False
    strings(group, "categories", len(categories))[:] = np.array(categories, object)
    return array(group, "codes", (count,), np.int16)


def _write_mapping(parent: h5py.Group, name: str, values: Mapping[str, Any]) -> None:
    group = _mark(parent.create_group(name), "dict", "0.1.0")
    for key, value in values.items():
        if isinstance(value, Mapping):
            _write_mapping(group, key, value)
        elif isinstance(value, str):
            _mark(group.create_dataset(key, data=value), "string", "0.2.0")
        elif value is not None:
            _mark(group.create_dataset(key, data=value), "numeric-scalar", "0.2.0")


def _room(
    parent: h5py.Group, name: str, shape: Sequence[int], dtype: Any, rows: int
) -> h5py.Dataset:
    chunks = (min(rows, shape[0]), *shape[1:]) if all(shape) else None
    return parent.create_dataset(name, shape=tuple(shape), dtype=dtype, chunks=chunks)


def _mark(node: Any, kind: str, version: str) -> Any:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version
    return node
