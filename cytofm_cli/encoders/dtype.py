"""The type in which vectors are stored: what it cannot hold is refused, when it happens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError


def refuse_overflow(values: NDArray[np.float32], dtype: str, where: str) -> None:
    """Refuse values that cannot be stored.

    Args:
        values: float32 of any shape.
        dtype: "float16" or "float32".
        where: the store and who made the values, for the error.

    Raises:
        StoreError: a value is NaN or infinite, or larger than the dtype holds.
    """
    if not np.isfinite(values).all():
        raise StoreError(f"{where} gave values that are not finite.")
    with np.errstate(over="ignore"):  # refused in the next line
        if not np.isfinite(values.astype(dtype)).all():
            raise _misfit(values, dtype, where)


def as_stored(
    blocks: Iterable[NDArray[np.float32]], dtype: str, where: str
) -> Iterator[NDArray[np.floating[Any]]]:
    """Yield blocks of vectors as they are stored; arguments as `refuse_overflow`.

    Raises:
        StoreError: see there; or, after the last, all were so small that the dtype makes little
            or nothing of them.
    """
    largest = np.float32(0)
    for values in blocks:
        refuse_overflow(values, dtype, where)
        largest = max(largest, np.abs(values).max(initial=np.float32(0)))
        yield values.astype(dtype, copy=False)
    if 0 < largest < np.finfo(dtype).tiny:
        raise _misfit(np.array([largest]), dtype, where)


def _misfit(values: NDArray[np.float32], dtype: str, where: str) -> StoreError:
    limits = np.finfo(dtype)
    return StoreError(
        f"{where} gave values up to {np.abs(values).max():.6g}; "
        f"{dtype} holds {limits.tiny:.2g} to {limits.max:.6g}.",
        hint="--dtype float32",
    )
