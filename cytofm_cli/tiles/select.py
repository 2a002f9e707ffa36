"""Choose which tiles of a slide are kept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cytofm_cli.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

How = Literal["all", "random", "densest"]


def slide_seed(seed: int, slide_id: str) -> int:
    """Return the seed of one slide: the same on every platform, different for every slide.

    A slide's choice depends neither on the other slides of a run nor on their order.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\0{slide_id}".encode()).digest()[:16], "big")


def choose(
    foreground: NDArray[np.float32],
    focus: NDArray[np.float32] | None,
    n_max: int | None,
    how: str,
    seed: int,
    slide_id: str = "",
) -> NDArray[np.int64]:
    """Return the indices of the tiles to keep, increasing.

    With "random" and "densest" a larger `n_max` keeps what a smaller one kept, and adds to it.

    Args:
        foreground: (n,) share of each tile that is foreground.
        focus: (n,) focus score of each tile; None or empty where it was not measured.
        n_max: how many tiles to keep at most; None for all.
        how: "all"; "random" draws without replacement; "densest" takes the largest share of
            foreground, then the better focus, then the first of the grid.
        seed: of the run.
        slide_id: makes the draw of each slide its own, see `slide_seed`.

    Raises:
        UsageError: "all" with more tiles than the limit, a limit below 1, an unknown `how`.
    """
    n = len(foreground)
    if how not in get_args(How):
        raise UsageError(f"no way to choose tiles is called {how!r}.", hint="all, random, densest")
    if n_max is not None and n_max < 1:
        raise UsageError(f"cannot keep {n_max} tiles a slide.", hint="give --max-tiles 1 or more")
    if how == "all":
        if n_max is not None and n_max < n:
            raise UsageError(
                f"{n} tiles are more than {n_max}, and nothing says which to keep.",
                hint="add --select random or --select densest",
            )
        return np.arange(n, dtype=np.int64)
    if how == "random":
        # Raw 64-bit words: numpy keeps their stream fixed across versions, unlike its methods.
        words = np.random.PCG64(slide_seed(seed, slide_id)).random_raw(n)
        order = np.argsort(words, kind="stable")
    else:
        sharp = np.zeros(n) if focus is None or len(focus) == 0 else focus.astype(np.float64)
        order = np.lexsort((-sharp, -foreground.astype(np.float64)))  # stable: then grid order
    return np.sort(order[:n_max]).astype(np.int64)
