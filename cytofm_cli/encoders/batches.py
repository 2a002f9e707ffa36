"""Pixels → encoder → rows of a bag, in windows of rows that are as large for any slide.

Threads read, decode and prepare batches while the encoder works on earlier ones; a network on the
CPU works in them too, each on a batch of its own: two threads on two batches do twice as much
as two threads on the small matrices of one. A batch that does not fit into memory is halved, and
smaller ones are used from there on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.base import Encoder
from cytofm_cli.errors import OutOfMemoryError
from cytofm_cli.tiles.read import ordered_map
from cytofm_cli.tiles.source import ManyTiles, TileSource, read_many
from cytofm_cli.work.memory import give_back

_CPU_BATCH: Final = 16  # larger ones fall out of the caches,
_CPU_BATCH_PX: Final = 2**18  # and of small images fewer waste the processor
_GPU_BATCH: Final = 256
# Rows that are held in memory: at 1 024 features 134 MB. A slide's nuclei are read in the order
# of its tiles within a window, so that a small one would decode tiles again and again.
WINDOW: Final = 2**15

_TRIM_EVERY_S: Final = 2.0  # each takes some 20 ms

Report = Callable[[int, int], None]
Refuse = Callable[[NDArray[np.float32]], None]


class Embedding:
    """The vectors of the tiles of one slide, made window by window while they are iterated over.

    Args:
        tiles: the pixels.
        encoder: turns them into vectors.
        batch_size: tiles at a time, halved when the device has too little memory.
        threads: decoding threads.
        report: called with (done, total) after each batch.
        refuse: raises if the vectors of a batch cannot be used: not hours later.

    Attributes:
        batch_size: the one that has fitted so far.
    """

    def __init__(
        self,
        tiles: TileSource,
        encoder: Encoder,
        *,
        batch_size: int,
        threads: int,
        report: Report,
        refuse: Refuse = lambda _: None,
    ) -> None:
        self.batch_size = batch_size
        self._tiles, self._encoder, self._threads = tiles, encoder, threads
        self._report, self._refuse = report, refuse
        self._trimmed_s = 0.0
        # A CPU's encoder says how a thread gets ready to encode; a GPU has one queue.
        self._enter_thread: Callable[[], None] | None = getattr(encoder, "enter_thread", None)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield float32 (≤ WINDOW, dim), in the order of the tiles.

        Raises:
            OutOfMemoryError: not even one tile fits.
        """
        n = len(self._tiles.xy_px0)
        with ThreadPoolExecutor(self._threads, initializer=self._enter_thread) as pool:
            for first in range(0, n, WINDOW):
                yield self._window(pool, first, min(first + WINDOW, n))

    def _window(self, pool: ThreadPoolExecutor, first: int, stop: int) -> NDArray[np.float32]:
        values = np.empty((stop - first, self._encoder.spec.dim), dtype=np.float32)
        rows, done = _reading_order(self._tiles, first, stop), 0
        while done < len(rows):
            size = self.batch_size
            parts = (rows[at : at + size] for at in range(done, len(rows), size))
            batches = ordered_map(pool, self._prepare, parts, window=2 * self._threads)
            try:
                for part, batch in batches:
                    vectors = batch if self._enter_thread else self._encoder.encode(batch)
                    self._refuse(vectors)
                    values[part - first] = vectors
                    done += len(part)
                    self._report(first + done, len(self._tiles.xy_px0))
                    self._tidy()
            except OutOfMemoryError:
                if size == 1:
                    raise
                self.batch_size = size // 2
            finally:
                batches.close()
        return values

    def _tidy(self) -> None:
        """Give freed memory back now and then: what threads leave in the heap adds up to 100 MB."""
        if time.monotonic() - self._trimmed_s > _TRIM_EVERY_S:
            give_back()
            self._trimmed_s = time.monotonic()

    def _prepare(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
        """Return rows with their batch, or with their vectors."""
        batch = self._encoder.prepare(read_many(self._tiles, rows))
        return rows, self._encoder.encode(batch) if self._enter_thread else batch


def embed_tiles(
    tiles: TileSource, encoder: Encoder, *, batch_size: int, threads: int, report: Report
) -> tuple[NDArray[np.float32], int]:
    """Encode every tile into memory; arguments and errors as of `Embedding`.

    Returns:
        float32 (n, dim) in the order of the tiles, and the batch size that fitted.
    """
    embedding = Embedding(tiles, encoder, batch_size=batch_size, threads=threads, report=report)
    blank = np.empty((0, encoder.spec.dim), np.float32)
    return np.concatenate([blank, *embedding]), embedding.batch_size


def default_batch(device: str, encoder: Encoder, side_px: int = 0) -> int:
    """Return the batch size to start with.

    Args:
        device: as the user names it.
        encoder: one with an attribute `batch_px` takes so many pixels at a time.
        side_px: side of an image, if it is known.
    """
    own: int | None = getattr(encoder, "batch_px", None)
    if own is not None and side_px:
        return max(1, own // side_px**2)
    torch = sys.modules.get("torch")  # loaded by encoders that need it; the others run on CPU
    if device != "cpu" and torch is not None and torch.cuda.is_available():
        return _GPU_BATCH
    seen_px = encoder.spec.input_px or side_px
    return max(_CPU_BATCH, _CPU_BATCH_PX // seen_px**2) if seen_px else _CPU_BATCH


def _reading_order(tiles: TileSource, first: int, stop: int) -> NDArray[np.int64]:
    rows = np.arange(first, stop)
    return tiles.reading_order(rows) if isinstance(tiles, ManyTiles) else rows
