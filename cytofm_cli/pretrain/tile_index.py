"""The tiles, or cells, of many stores under one numbering, with their nuclei; any thread may read.

A cell is a square around a nucleus (`pretrain.cells`) and counts as a tile in all that follows.

Letters: B tiles, M nuclei, C H W an image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from cytofm_cli.config import digest
from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.pretrain.cells import CellNuclei, open_squares
from cytofm_cli.pretrain.indexed import IndexedSlide, Pixels, Sources
from cytofm_cli.pretrain.packed import read_packed
from cytofm_cli.pretrain.sampling import Schedule
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.store.pack_file import is_pack
from cytofm_cli.tiles.canvas import open_canvases
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.views import stored
from cytofm_cli.views.make import pad_nuclei
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.stored import TileNuclei, open_nuclei

_SAME_MPP: Final = 0.12  # relative; two levels that `cytofm tile` both takes for its target
_REPEATS_NOTED: Final = 10


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
        self.tile_px = cell_px or slides[0].plan.tile_px
        self.mpp = float(np.median([slide.plan.mpp for slide in slides]))
        self.n_tiles = sum(slide.n_tiles for slide in slides)
        self.n_without_nuclei = sum(int(slide.bare_N.sum()) for slide in slides)
        self._first = np.cumsum([0, *(slide.n_tiles for slide in slides)])
        self._sources = Sources(slides, folder)
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
        """Read tiles of any slides, with their nuclei and their margins; any thread may."""
        margin_px, parts = self.margin_px(ncp), []
        for tile in tiles:
            slide, within = self.locate(tile)
            with self._sources.use(slide) as source:
                nuclei = self.slides[slide].nuclei
                parts.append(stored.read_batch(source, nuclei, [within], ncp, margin_px))
        return join(parts)

    def margin_px(self, ncp: NcpConfig) -> int:
        """Return how much around a tile its views may show; cells are centred and have none."""
        return stored.margin_for(ncp, self.tile_px) if self.unit == "tile" else 0

    def pixels(self, slide: int) -> contextlib.AbstractContextManager[Pixels]:
        """Open the pixels of a slide, for reading all of them."""
        return self._sources.use(slide)

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
    """Open stores and packs for pretraining and count their tiles.

    Args:
        stores: with tiles, or packs; their order does not matter.
        detector: whose nuclei; None takes the only ones there are.
        need_nuclei: False leaves the nuclei out.
        cell_um: side of a square around each nucleus, µm: these are the tiles then.
        slides: folder where the slides lie now, for stores without pixels.

    Raises:
        InputError: no stores, two of one slide, tiles that do not go together, or no nuclei
            where cells are wanted.
        StoreError: a store without tiles or without nuclei, a damaged pack.
    """
    found, name = _read_all(stores, detector, cell_um, need_nuclei=need_nuclei)
    by_slide: dict[str, IndexedSlide] = {}
    for slide in found:
        other = by_slide.setdefault(slide.slide_id, slide)
        if other is not slide:
            raise InputError(
                f"two stores of slide {slide.slide_id}: {other.path} and {slide.path}.",
                hint="name one of them",
            )
    with_tiles = [by_slide[slide_id] for slide_id in sorted(by_slide) if by_slide[slide_id].n_tiles]
    if not with_tiles:
        raise InputError("the stores hold no tiles.", hint="make some with `cytofm tile`.")
    _check_alike(with_tiles, unit="tile" if cell_um is None else "cell")
    if cell_um is None:
        return TileIndex(with_tiles, name, slides)
    mpp = float(np.median([slide.plan.mpp for slide in with_tiles]))
    side_px = max(1, round(cell_um / mpp))
    cells = [_cells(slide, side_px) for slide in with_tiles if len(slide.nuclei.table)]
    if not cells:
        raise InputError(
            f"{name} found no nuclei in the stores, so there are no cells.", hint="--unit tile"
        )
    return TileIndex(cells, name, slides, side_px)


def _read_all(
    paths: Sequence[Path], detector: str | None, cell_um: float | None, *, need_nuclei: bool
) -> tuple[list[IndexedSlide], str | None]:
    """Return the slides of stores and packs, and whose nuclei they are given."""
    slides: list[IndexedSlide] = []
    place_of_detector: dict[str, Path] = {}
    for path in paths:
        if is_pack(path):
            name, some = read_packed(path, detector, cell_um, need_nuclei=need_nuclei)
        else:
            name, slide = _index(open_store(path), detector, need_nuclei=need_nuclei)
            some = [slide]
        if name is not None:
            place_of_detector.setdefault(name, path)
        slides += some
    # Cells that came ready cut were found by nobody: they go with the nuclei of any detector.
    if len(place_of_detector) > 1:
        place_of_detector.pop(schema.GIVEN, None)
    if any(slide.n_tiles for slide in slides) and len(place_of_detector) > 1:
        (first, path), (second, other) = list(place_of_detector.items())[:2]
        raise InputError(
            f"nuclei of several detectors: {first!r} in {path}, {second!r} in {other}.",
            hint=f"--detector {first}, after `cytofm detect` with it on all",
        )
    return slides, next(iter(place_of_detector), None)


def _cells(slide: IndexedSlide, side_px: int) -> IndexedSlide:
    """Return the cells of a slide as its tiles."""
    table = slide.nuclei.table
    nuclei = CellNuclei(table, slide.plan, side_px)
    bare_N = np.zeros(len(table), bool)
    if slide.packed_px is not None:  # a pack holds the very squares
        if slide.packed_px != side_px:
            raise InputError(
                f"{slide.path}: holds squares of {slide.packed_px} px, beside which those of the "
                f"others have {side_px}.",
                hint="pack all stores together",
            )
        return replace(slide, nuclei=nuclei, bare_N=bare_N)
    store = open_store(slide.path)
    return replace(
        slide,
        nuclei=nuclei,
        bare_N=bare_N,
        opened=lambda folder: open_squares(store, nuclei, side_px, slides=folder),
    )


def _index(
    store: Store, detector: str | None, *, need_nuclei: bool
) -> tuple[str | None, IndexedSlide]:
    n_tiles, plan = store.tile.n_tiles, plan_of(store)
    steps, name, bare_N = [schema.TILE_STEP], None, np.zeros(n_tiles, bool)
    if need_nuclei:
        name, nuclei = open_nuclei(store, detector)
        steps.append(schema.nuclei_step(name))
        bare_N = np.array([not len(nuclei.rows(tile)) for tile in range(n_tiles)], bool)
    else:
        none = make_table(np.zeros((0, 2)), np.zeros(0))
        nuclei = TileNuclei(none, store.tile_xy_px0, plan)
    slide = IndexedSlide(
        slide_id=store.slide_id,
        path=store.path,
        plan=plan,
        nuclei=nuclei,
        bare_N=bare_N,
        marks=tuple(store.steps[step].identity for step in steps),
        opened=lambda folder: open_canvases(store, slides=folder),
        reads_slide=not store.has(schema.TILE_PIXELS.path),
    )
    return name, slide


def _check_alike(slides: Sequence[IndexedSlide], unit: str) -> None:
    """Refuse tiles of several sizes, where views are cut from tiles, or resolutions."""
    plans = [(slide.plan, slide.path) for slide in slides]
    first, path = plans[0]
    for plan, other in plans[1:] if unit == "tile" else []:
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
