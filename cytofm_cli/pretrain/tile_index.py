"""The tiles, or cells, of many stores under one numbering, with their nuclei; any thread may read.

A cell is a square around a nucleus (`pretrain.cells`) and counts as a tile in all that follows.

Letters: B tiles, M nuclei, C H W an image.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cytofm_cli.config import digest
from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.pretrain.cells import CellNuclei, open_squares
from cytofm_cli.pretrain.sampling import Schedule
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.tiles.canvas import Canvases, open_canvases
from cytofm_cli.tiles.source import plan_of
from cytofm_cli.views import stored
from cytofm_cli.views.make import pad_nuclei
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.stored import TileNuclei, open_nuclei

_SAME_MPP: Final = 0.12  # relative; two levels that `cytofm tile` both takes for its target
_MOST_OPEN: Final = 256  # stores
_MOST_OPEN_SLIDES: Final = 64  # a reader holds a cache of pixels
_FILES_A_STORE: Final = schema.MOST_SHARDS
_REPEATS_NOTED: Final = 10


@dataclass(frozen=True, eq=False)
class IndexedSlide:
    """The tiles of one slide, with their nuclei.

    Attributes:
        nuclei: of each tile; `CellNuclei` where the tiles are cells.
        bare_N: bool, the tiles in which no nucleus lies; none where nuclei are not used.
        mark: changes with the tiles and the nuclei.
    """

    store: Store
    nuclei: TileNuclei
    bare_N: NDArray[np.bool_]
    mark: str

    @property
    def slide_id(self) -> str:
        """Name of the slide."""
        return self.store.slide_id

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return len(self.bare_N)


class TileIndex:
    """The tiles of all slides, numbered 0 … n_tiles - 1 slide by slide.

    Attributes:
        slides: in the order of their names.
        unit: "tile" or "cell".
        tile_px: side of a tile.
        mpp: µm/px of the tiles, the median over the slides.
        detector: whose nuclei; None: none are used.
        n_tiles: of all slides.
        n_without_nuclei: tiles in which no nucleus lies; 0 where none are used.
        notes: what the user should know, one line each.
    """

    def __init__(
        self,
        slides: Sequence[IndexedSlide],
        detector: str | None,
        folder: Path | None,
        cell_px: int | None = None,
    ) -> None:
        self.slides, self.detector = tuple(slides), detector
        self.unit = "tile" if cell_px is None else "cell"
        self.tile_px = cell_px or plan_of(slides[0].store).tile_px
        self.mpp = float(np.median([plan_of(slide.store).mpp for slide in slides]))
        self.n_tiles = sum(slide.n_tiles for slide in slides)
        self.n_without_nuclei = sum(int(slide.bare_N.sum()) for slide in slides)
        self._first = np.cumsum([0, *(slide.n_tiles for slide in slides)])
        self._sources = _Sources(slides, self.tile_px, folder)
        self.notes = tuple(self._notes())

    def facts(self) -> dict[str, Any]:
        """Return what a run records about its data."""
        marks = {slide.slide_id: slide.mark for slide in self.slides}
        return {
            "n_slides": len(self.slides),
            "unit": self.unit,
            "n_tiles": self.n_tiles,
            "n_without_nuclei": self.n_without_nuclei,
            "tile_px": self.tile_px,
            "mpp": self.mpp,
            "detector": self.detector,
            "digest": digest(marks),
        }

    def schedule(self, seed: int, balance: str, per_slide: int = 1) -> Schedule:
        """Return which tile each slot of a run takes."""
        names, sizes = [s.slide_id for s in self.slides], [s.n_tiles for s in self.slides]
        return Schedule(names, sizes, seed, balance, per_slide)

    def locate(self, tile: int) -> tuple[int, int]:
        """Return a tile's slide and its number in there."""
        slide = int(np.searchsorted(self._first, tile, side="right")) - 1
        return slide, tile - int(self._first[slide])

    def read(self, tiles: Sequence[int], ncp: NcpConfig) -> stored.Batch:
        """Read tiles of any slides, with their nuclei and their margins; any thread may.

        A tile's margin is what its views may show around it (`stored.margin_for`); cells are
        centred as they are and have none.
        """
        margin_px = stored.margin_for(ncp, self.tile_px) if self.unit == "tile" else 0
        parts = []
        for tile in tiles:
            slide, within = self.locate(tile)
            with self._sources.use(slide) as source:
                nuclei = self.slides[slide].nuclei
                parts.append(stored.read_batch(source, nuclei, [within], ncp, margin_px))
        return join(parts)

    def close(self) -> None:
        """Close all stores; those in use stay open until they are not."""
        self._sources.close()

    def _notes(self) -> Iterator[str]:
        if len(self.slides) == 1:
            yield f"one slide only ({self.slides[0].slide_id}): --balance has no meaning"
        if self.n_without_nuclei:
            yield f"{self.n_without_nuclei} of {self.n_tiles} tiles have no nuclei: plain views"
        small = min(self.slides, key=lambda slide: slide.n_tiles)
        repeats = self.n_tiles / len(self.slides) / small.n_tiles
        if repeats >= _REPEATS_NOTED:
            yield (
                f"slide {small.slide_id} has {small.n_tiles} {self.unit}s: balanced over slides, "
                f"each is seen {repeats:.0f} times an epoch"
            )


def open_index(
    stores: Sequence[Path],
    detector: str | None = None,
    *,
    need_nuclei: bool = True,
    cell_um: float | None = None,
    slides: Path | None = None,
) -> TileIndex:
    """Open stores for pretraining and count their tiles.

    Args:
        stores: with tiles; their order does not matter.
        detector: whose nuclei; None takes the only ones there are.
        need_nuclei: False leaves the nuclei out.
        cell_um: side of a square around each nucleus, µm: these are the tiles then.
        slides: folder where the slides lie now, for stores without pixels.

    Raises:
        InputError: no stores, two of one slide, tiles that do not go together, or no nuclei
            where cells are wanted.
        StoreError: a store without tiles or without nuclei.
    """
    by_slide, name = _read_all(stores, detector, need_nuclei=need_nuclei)
    if not by_slide:
        raise InputError("the stores hold no tiles.", hint="make some with `cytofm tile`.")
    ordered = [by_slide[slide_id] for slide_id in sorted(by_slide)]
    _check_alike(ordered)
    if cell_um is None:
        return TileIndex(ordered, name, slides)
    mpp = float(np.median([plan_of(slide.store).mpp for slide in ordered]))
    side_px = max(1, round(cell_um / mpp))
    cells = [_cells(slide, side_px) for slide in ordered if len(slide.nuclei.table)]
    if not cells:
        raise InputError(
            f"{name} found no nuclei in the stores, so there are no cells.", hint="--unit tile"
        )
    return TileIndex(cells, name, slides, side_px)


def _read_all(
    stores: Sequence[Path], detector: str | None, *, need_nuclei: bool
) -> tuple[dict[str, IndexedSlide], str | None]:
    """Return the slides that have tiles, by name, and whose nuclei they are given."""
    by_slide: dict[str, IndexedSlide] = {}
    store_of_detector: dict[str, Path] = {}
    for path in stores:
        store = open_store(path)
        if store.slide_id in by_slide:
            raise InputError(
                f"two stores of slide {store.slide_id}: {by_slide[store.slide_id].store.path} "
                f"and {path}.",
                hint="name one of them",
            )
        name, slide = _index(store, detector, need_nuclei=need_nuclei)
        if name is not None:
            store_of_detector.setdefault(name, path)
        if slide.n_tiles:
            by_slide[store.slide_id] = slide
    if by_slide and len(store_of_detector) > 1:
        (first, path), (second, other) = list(store_of_detector.items())[:2]
        raise InputError(
            f"nuclei of several detectors: {first!r} in {path}, {second!r} in {other}.",
            hint=f"--detector {first}, after `cytofm detect` with it on all",
        )
    return by_slide, next(iter(store_of_detector), None)


def _cells(slide: IndexedSlide, side_px: int) -> IndexedSlide:
    """Return the cells of a slide as its tiles."""
    table = slide.nuclei.table
    nuclei = CellNuclei(table, plan_of(slide.store), side_px)
    return IndexedSlide(slide.store, nuclei, np.zeros(len(table), bool), slide.mark)


def _index(
    store: Store, detector: str | None, *, need_nuclei: bool
) -> tuple[str | None, IndexedSlide]:
    n_tiles = store.tile.n_tiles
    steps, name, bare_N = [schema.TILE_STEP], None, np.zeros(n_tiles, bool)
    if need_nuclei:
        name, nuclei = open_nuclei(store, detector)
        steps.append(schema.nuclei_step(name))
        bare_N = np.array([not len(nuclei.rows(tile)) for tile in range(n_tiles)], bool)
    else:
        none = make_table(np.zeros((0, 2)), np.zeros(0))
        nuclei = TileNuclei(none, store.tile_xy_px0, plan_of(store))
    mark = "-".join(store.steps[step].identity for step in steps)
    return name, IndexedSlide(store, nuclei, bare_N, mark)


def _check_alike(slides: Sequence[IndexedSlide]) -> None:
    """Refuse tiles of several sizes or resolutions."""
    plans = [(plan_of(slide.store), slide.store.path) for slide in slides]
    first, path = plans[0]
    for plan, other in plans[1:]:
        if plan.tile_px != first.tile_px:
            raise InputError(
                f"tiles of {first.tile_px} px in {path} and of {plan.tile_px} px in {other}.",
                hint="tile all slides alike: `cytofm tile --tile-px`",
            )
    (low, path), (high, other) = (pick(plans, key=lambda item: item[0].mpp) for pick in (min, max))
    if high.mpp > low.mpp * (1 + _SAME_MPP):
        raise InputError(
            f"tiles at {low.mpp:.4g} µm/px in {path} and at {high.mpp:.4g} in {other}.",
            hint="tile all slides alike: `cytofm tile --mpp`",
        )


def join(parts: Sequence[stored.Batch]) -> stored.Batch:
    """Put tiles of any slides together; label maps where one of them has any."""
    points = [xy[ok] for b in parts for xy, ok in zip(b.xy_BM2, b.valid_BM, strict=True)]
    tile_BCHW = torch.cat([part.tile_BCHW for part in parts])
    label = None
    if any(part.label_BHW is not None for part in parts):
        # A slide that has points only: no pixel belongs to a nucleus, as without a map.
        blank = torch.zeros((1, *tile_BCHW.shape[-2:]), dtype=torch.int32)
        label = torch.cat([blank if p.label_BHW is None else p.label_BHW for p in parts])
    rows = [row for part in parts for row in part.rows]
    return stored.Batch(tile_BCHW, *pad_nuclei(points), label, rows, parts[0].margin_px)


@dataclass
class _Open:
    """An open store and how many threads read it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    source: stored.Readable | Canvases | None = None
    users: int = 0


class _Sources:
    """The pixels of many slides, opened when needed; those longest unused are closed again."""

    def __init__(self, indexed: Sequence[IndexedSlide], side_px: int, folder: Path | None) -> None:
        self._indexed, self._side_px, self._folder = indexed, side_px, folder
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _Open] = OrderedDict()
        stored_pixels = all(slide.store.has(schema.TILE_PIXELS.path) for slide in indexed)
        self._most = min(
            _MOST_OPEN if stored_pixels else _MOST_OPEN_SLIDES, _files() // (2 * _FILES_A_STORE)
        )

    @contextlib.contextmanager
    def use(self, number: int) -> Iterator[stored.Readable | Canvases]:
        """Give the tiles of one store."""
        with self._lock:
            opened = self._open.setdefault(number, _Open())
            self._open.move_to_end(number)
            opened.users += 1
        try:
            with opened.lock:
                if opened.source is None:
                    opened.source = opened.stack.enter_context(self._opened(number))
            yield opened.source
        finally:
            with self._lock:
                opened.users -= 1
            self._close(keep=self._most)

    def _opened(self, number: int) -> contextlib.AbstractContextManager[stored.Readable | Canvases]:
        store, nuclei = self._indexed[number].store, self._indexed[number].nuclei
        if isinstance(nuclei, CellNuclei):
            return open_squares(store, nuclei, self._side_px, slides=self._folder)
        return open_canvases(store, slides=self._folder)

    def close(self) -> None:
        """Close what nobody reads."""
        self._close(keep=0)

    def _close(self, keep: int) -> None:
        with self._lock:
            idle = [number for number, opened in self._open.items() if not opened.users]
            surplus = idle[: max(0, len(self._open) - keep)]
            closing = [self._open.pop(number) for number in surplus]
        for opened in closing:
            opened.stack.close()


def _files() -> int:
    """Return how many files may be open, after asking for as many as the system allows."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN * _FILES_A_STORE * 2
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return soft if soft != resource.RLIM_INFINITY else wanted
