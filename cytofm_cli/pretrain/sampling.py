"""Which tiles a step of pretraining takes: a function of the seed and the step, and nothing else.

An endless row of slots is dealt out, `batch` of them a step. Of n tiles on S slides:

    balance="tiles"   each run of n slots holds every tile once, in an order of its own
    balance="slides"  each run of S slots holds every slide once, in an order of its own; a slide
                      gives its tiles in full permutations, one after the other

With `per_slide` m, balance="slides" gives each slide m slots in a row: a batch then holds several
tiles of each of its slides, and contrast has to tell tiles apart by more than their stain.

An epoch is n slots in both. Letters: B slots, S slides, N all tiles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import UsageError
from cytofm_cli.views import draws
from cytofm_cli.views.stored import tile_keys

# What the keys of tiles are folded with, beyond everything in `draws.Stream`.
_VISIT: Final = 1 << 32
_ORDER: Final = 1 << 33
_DEAL: Final = 1 << 34


class Schedule:
    """Which tile each slot takes.

    Args:
        slide_ids: names of the slides.
        sizes: tiles of each, at least 1.
        seed: of the run.
        balance: "slides" or "tiles".
        per_slide: slots in a row that a slide gets, with balance="slides".

    Raises:
        UsageError: no such balance.
    """

    def __init__(
        self,
        slide_ids: Sequence[str],
        sizes: Sequence[int],
        seed: int,
        balance: str,
        per_slide: int = 1,
    ) -> None:
        if balance not in ("slides", "tiles"):
            raise UsageError(f"no balance {balance!r}.", hint="slides, tiles")
        self.balance, self.per_slide = balance, per_slide
        self.first_S = np.cumsum([0, *sizes])
        self.n_tiles = int(self.first_S[-1])
        keys = [
            tile_keys(seed, name, np.arange(n)) for name, n in zip(slide_ids, sizes, strict=True)
        ]
        self.keys_N = np.concatenate(keys)
        self._keys_S = np.array([some[0] for some in keys])
        self._orders: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def at(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], draws.Keys]:
        """Return the tile of each slot, 0 … n - 1, and a key that no other slot has."""
        deal = self._by_slide if self.balance == "slides" else self._by_tile
        tiles, visit = deal(slots)
        return tiles, draws.fold(self.keys_N[tiles], _VISIT + visit)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the tiles of an epoch in order."""
        return self.at(np.arange(epoch * self.n_tiles, (epoch + 1) * self.n_tiles))[0]

    def share(
        self, step: int, *, batch: int, rank: int = 0, world: int = 1
    ) -> tuple[NDArray[np.int64], draws.Keys]:
        """Return the tiles of a step that one process takes, and their keys.

        The shares of all processes, one after the other, are the batch of a single one.

        Raises:
            UsageError: the batch does not divide by the processes.
        """
        if batch % world:
            raise UsageError(f"a batch of {batch} does not divide by {world} processes.")
        mine = batch // world
        return self.at(step * batch + rank * mine + np.arange(mine))

    def _by_tile(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        epoch, place = np.divmod(slots, self.n_tiles)
        tiles = np.empty_like(slots)
        for e in np.unique(epoch).tolist():
            these = epoch == e
            tiles[these] = self._order(-1, e)[place[these]]
        return tiles, epoch

    def _by_slide(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        stay, nth = np.divmod(slots, self.per_slide)
        turn, place = np.divmod(stay, len(self._keys_S))
        turns, row = np.unique(turn, return_inverse=True)
        slides = draws.fold(self._keys_S, _DEAL + turns[:, None]).argsort(axis=1)[row, place]
        sizes = np.diff(self.first_S)[slides]
        # Its visits to a slide are numbered: they go through its tiles again and again.
        round_, within = np.divmod(turn * self.per_slide + nth, sizes)
        tiles = np.empty_like(slots)
        for number, (slide, r, w) in enumerate(
            zip(slides.tolist(), round_.tolist(), within.tolist(), strict=True)
        ):
            tiles[number] = self._order(slide, r)[w]
        return tiles, round_

    def _order(self, slide: int, round_: int) -> NDArray[np.int64]:
        """Return the order of a slide's tiles (-1: of all) in a round, keeping the last ones."""
        known = self._orders.get((slide, round_))
        if known is None:
            first, last = (0, self.n_tiles) if slide < 0 else self.first_S[slide : slide + 2]
            order = draws.fold(self.keys_N[first:last], _ORDER + round_).argsort(kind="stable")
            known = self._orders[slide, round_] = first + order
            while len(self._orders) > len(self._keys_S) + 1:
                self._orders.popitem(last=False)
        self._orders.move_to_end((slide, round_))
        return known
