"""Batches of views for pretraining, made ahead in threads.

Letters: B tiles, M nuclei, C H W an image.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytofm_cli.errors import StoreError, UsageError
from cytofm_cli.pretrain.base import Batch
from cytofm_cli.pretrain.sampling import Schedule
from cytofm_cli.pretrain.tile_index import TileIndex, join, open_index
from cytofm_cli.views import draws, stored
from cytofm_cli.views.make import ViewSet, make_views
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import Recipe
from cytofm_cli.work.closing import Closes

__all__ = ["Batches", "Schedule", "TileIndex", "open_index"]

_CHUNK: Final = 8  # tiles that a thread works on at a time
_Item = tuple[NDArray[np.int64], draws.Keys]  # the tiles of a part, and their keys


class Batches(Closes):
    """Batches of views, made ahead in threads.

    Each `next` gives the next part of this process's share: a step has `parts` of them. With a
    GPU, tiles are read on the host and views made on the device; else all is done in the
    threads, one of torch's threads each. Errors come up in `next`. Close it, or use it in a
    `with`; a forgotten one stops by itself after what it has begun.

    Args:
        index: the tiles; it stays open.
        schedule: which tile each slot takes.
        recipe: the set of views.
        ncp: how nuclei guide them.
        batch: tiles a step, over all processes.
        parts: into which a share is cut.
        rank: of this process.
        world: number of processes.
        start: the first step.
        stop: the step to stop before; None: never.
        device: where the views are to be.
        threads: that read tiles.
        prefetch: parts that are made ahead.

    Attributes:
        waited_s: seconds that `next` had to wait, all together.
        n_without_nuclei: tiles without nuclei among those given so far.

    Raises:
        UsageError: shares that do not divide; tiles without nuclei are to be dropped.
        StoreError: outlines are needed and a slide has none.
    """

    def __init__(
        self,
        index: TileIndex,
        schedule: Schedule,
        *,
        recipe: Recipe,
        ncp: NcpConfig,
        batch: int,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | None = None,
        threads: int = 1,
        prefetch: int = 2,
    ) -> None:
        _check(index, ncp, batch, parts * world)
        self._index, self._recipe, self._ncp = index, recipe, ncp
        self._device = device or torch.device("cpu")
        steps = itertools.count(start) if stop is None else iter(range(start, stop))
        self._items = _items(schedule, batch, parts, (rank, world), steps)
        self.waited_s, self.n_without_nuclei = 0.0, 0
        self._finisher = ThreadPoolExecutor(1, "cytofm-views")
        self._pool = ThreadPoolExecutor(threads, "cytofm-tiles")
        on_gpu = self._device.type == "cuda"
        self._stream = _new_stream(self._device) if on_gpu else None
        _take_one_torch_thread([*[self._pool] * threads, self._finisher])
        share = batch // (world * parts)
        self._chunk = max(1, min(_CHUNK, -(-share // threads)))
        self._ahead: deque[Future[_Made]] = deque()
        for _ in range(prefetch):
            self._begin()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._ahead:
            raise StopIteration
        start = time.monotonic()
        first = self._ahead.popleft()
        self._begin()
        views = first.result()
        self.waited_s += time.monotonic() - start
        views.hand_over()
        self.n_without_nuclei += views.n_without
        return views.batch

    def close(self) -> None:
        """Stop all threads; what they had begun is finished first, and lost."""
        self._ahead.clear()
        for pool in (self._pool, self._finisher):
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        """Start on the next part, if there is one."""
        item = next(self._items, None)
        if item is None:
            return
        tiles, keys_B = item
        # The threads get all but this object: else they would keep a forgotten one alive.
        job = _Job(self._index, self._recipe, self._ncp, self._device)
        work: Callable[..., Any] = job.views if self._stream is None else job.read
        chunks = [
            self._pool.submit(work, tiles[i : i + self._chunk], keys_B[i : i + self._chunk])
            for i in range(0, len(tiles), self._chunk)
        ]
        if self._stream is None:
            self._ahead.append(self._finisher.submit(job.join, chunks, item))
        else:
            self._ahead.append(self._finisher.submit(job.upload, chunks, item, self._stream))


@dataclass(frozen=True)
class _Made:
    """A finished part.

    Attributes:
        ready: what a GPU has done when the views are there.
    """

    batch: Batch
    n_without: int
    ready: torch.cuda.Event | None = None

    def hand_over(self) -> None:
        """Let the current stream of the GPU wait for the views."""
        if self.ready is not None:
            current = torch.cuda.current_stream(self.batch.views[0].device)
            current.wait_event(self.ready)
            for view in self.batch.views:
                view.record_stream(current)  # not to be reused before that stream is done


@dataclass(frozen=True)
class _Job:
    """What the threads do."""

    index: TileIndex
    recipe: Recipe
    ncp: NcpConfig
    device: torch.device

    def read(self, tiles: NDArray[np.int64], keys_B: draws.Keys) -> stored.Batch:
        """Read some tiles."""
        return self.index.read(tiles.tolist(), self.ncp)

    def views(self, tiles: NDArray[np.int64], keys_B: draws.Keys) -> ViewSet:
        """Read some tiles and make their views, on the CPU."""
        return self._make(self.read(tiles, keys_B), keys_B)

    def join(self, chunks: Sequence[Future[ViewSet]], item: _Item) -> _Made:
        """Put chunks of views together."""
        sets = [chunk.result() for chunk in chunks]
        views = [
            torch.cat(some) for some in zip(*(views_of.views for views_of in sets), strict=True)
        ]
        return self._made(views, sum(views_of.n_without_nuclei for views_of in sets), item)

    def upload(
        self,
        chunks: Sequence[Future[stored.Batch]],
        item: _Item,
        stream: torch.cuda.Stream,
    ) -> _Made:
        """Bring tiles to the GPU and make their views there, beside what it is doing."""
        batch = join([chunk.result() for chunk in chunks])
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            tile = batch.tile_BCHW.pin_memory().to(self.device, non_blocking=True)
            label = batch.label_BHW
            if label is not None:
                label = label.pin_memory().to(self.device, non_blocking=True)
            views = self._make(replace(batch, tile_BCHW=tile, label_BHW=label), item[1])
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record(stream)
        return replace(self._made(views.views, views.n_without_nuclei, item), ready=ready)

    def _make(self, batch: stored.Batch, keys_B: draws.Keys) -> ViewSet:
        return make_views(
            batch.tile_BCHW,
            batch.xy_BM2,
            batch.valid_BM,
            recipe=self.recipe,
            ncp=self.ncp,
            mpp=self.index.mpp,
            keys_B=keys_B,
            label_BHW=batch.label_BHW,
            margin_px=batch.margin_px,
        )

    def _made(self, views: list[Tensor], n_without: int, item: _Item) -> _Made:
        tiles_B, keys_B = item
        n_global = self.recipe.n_global
        batch = Batch(views=views, n_global=n_global, keys_B=keys_B, tiles_B=tiles_B)
        return _Made(batch, n_without if self.index.detector else 0)


def _items(
    schedule: Schedule,
    batch: int,
    parts: int,
    place: tuple[int, int],
    steps: Iterator[int],
) -> Iterator[_Item]:
    rank, world = place
    for step in steps:
        tiles, keys_B = schedule.share(step, batch=batch, rank=rank, world=world)
        yield from zip(np.split(tiles, parts), np.split(keys_B, parts), strict=True)


def _check(index: TileIndex, ncp: NcpConfig, batch: int, shares: int) -> None:
    if batch % shares:
        raise UsageError(
            f"a batch of {batch} does not divide into {shares} shares (processes × parts).",
            hint=f"--batch {max(1, batch // shares) * shares}",
        )
    if ncp.without_nuclei == "drop":
        raise UsageError(
            "tiles without nuclei cannot be left out of a batch while training.",
            hint="--without-nuclei plain",
        )
    bare = [slide for slide in index.slides if not slide.nuclei.has_outlines]
    if ncp.region == "boundary" and bare:
        raise StoreError(
            f"{bare[0].path}: --region boundary needs outlines, and {index.detector!r} "
            "found points only.",
            hint="--region disk, or a detector with outlines",
        )


def _take_one_torch_thread(pools: Sequence[ThreadPoolExecutor]) -> None:
    """Let each thread compute alone: torch's threads would get in each other's way.

    torch keeps the number for threads yet to come too, so the caller's own is set again.
    """
    own, gate = torch.get_num_threads(), threading.Barrier(len(pools))

    def take() -> None:
        torch.set_num_threads(1)
        gate.wait()  # nobody takes two of these, so every thread takes one

    for future in [pool.submit(take) for pool in pools]:
        future.result()
    torch.set_num_threads(own)


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream
