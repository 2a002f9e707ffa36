"""Random tiles of some stores on one contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from cytofm_cli.errors import InputError
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.canvas import open_canvases
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.make import pad_nuclei
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.recipes import ncp_of, recipe_of
from cytofm_cli.views.sheet import Image, contact_sheet
from cytofm_cli.views.stored import (
    Batch,
    TileNuclei,
    draw_lots,
    margin_for,
    open_nuclei,
    read_batch,
    tile_keys,
)


@dataclass(frozen=True)
class ShownTile:
    """A tile on a contact sheet."""

    slide_id: str
    tile: int
    n_nuclei: int


@dataclass(frozen=True)
class _Part:
    """The chosen tiles of one slide."""

    slide_id: str
    tiles: list[int]
    nuclei: TileNuclei
    batch: Batch


def preview(
    paths: Sequence[Path],
    n: int,
    *,
    config: ViewsConfig,
    detector: str | None = None,
    seed: int = 0,
    slides: Path | None = None,
) -> tuple[Image, list[ShownTile]]:
    """Draw the views of `n` random tiles of some stores: uint8 (H, W, 3), and which they are.

    Stores of another resolution or tile size get sheets of their own, one below the other.

    Raises:
        StoreError: a store without tiles or nuclei.
        InputError: only tiles with nuclei are wanted and there is none.
    """
    ncp = ncp_of(config)
    sheets: dict[tuple[float, int, bool], list[_Part]] = {}
    for path, (nuclei, tiles) in _choose(paths, n, ncp, detector, seed).items():
        store = open_store(path)
        plan = plan_of(store)
        with open_canvases(store, slides=slides) as source:
            batch = read_batch(source, nuclei, tiles, ncp, margin_for(ncp, plan.tile_px))
        kind = (plan.mpp, plan.tile_px, batch.label_BHW is None)
        sheets.setdefault(kind, []).append(_Part(store.slide_id, tiles, nuclei, batch))
    images = [_draw(parts, mpp, config, seed) for (mpp, _, _), parts in sheets.items()]
    shown = [
        ShownTile(part.slide_id, tile, len(part.nuclei.rows(tile)))
        for parts in sheets.values()
        for part in parts
        for tile in part.tiles
    ]
    return _stack(images), shown


def _choose(
    paths: Sequence[Path], n: int, ncp: NcpConfig, detector: str | None, seed: int
) -> dict[Path, tuple[TileNuclei, list[int]]]:
    """Choose random tiles of some stores, in the order of the stores."""
    lots: list[tuple[float, Path, int]] = []
    nuclei: dict[Path, TileNuclei] = {}
    for path in paths:
        store = open_store(path)
        nuclei[path] = open_nuclei(store, detector)[1]
        tiles = np.arange(store.tile.n_tiles)
        drawn = draw_lots(seed, store.slide_id, tiles).tolist()
        lots += [(lot, path, tile) for lot, tile in zip(drawn, tiles.tolist(), strict=True)]
    chosen: dict[Path, list[int]] = {path: [] for path in paths}
    for _, path, tile in sorted(lots):
        if sum(map(len, chosen.values())) == n:
            break
        if ncp.without_nuclei == "plain" or len(nuclei[path].rows(tile)):
            chosen[path].append(tile)
    if not any(chosen.values()):
        raise InputError("no tile to draw: none has a nucleus.", hint="--without-nuclei plain")
    return {path: (nuclei[path], sorted(tiles)) for path, tiles in chosen.items() if tiles}


def _draw(parts: Sequence[_Part], mpp: float, config: ViewsConfig, seed: int) -> Image:
    batches = [part.batch for part in parts]
    points = [xy[ok] for b in batches for xy, ok in zip(b.xy_BM2, b.valid_BM, strict=True)]
    labels = [batch.label_BHW for batch in batches if batch.label_BHW is not None]
    keys = [tile_keys(seed, part.slide_id, part.tiles) for part in parts]
    return contact_sheet(
        torch.cat([batch.tile_BCHW for batch in batches]),
        *pad_nuclei(points),
        recipe=recipe_of(config),
        ncp=ncp_of(config),
        mpp=mpp,
        keys_B=np.concatenate(keys),
        label_BHW=torch.cat(labels) if labels else None,
        margin_px=batches[0].margin_px,
    )


def _stack(images: Sequence[Image]) -> Image:
    """Set pictures of several widths below each other, on the paper of the first."""
    height, width = sum(map(len, images)), max(image.shape[1] for image in images)
    sheet = np.empty((height, width, 3), np.uint8)
    sheet[:] = images[0][0, 0]
    ends = np.cumsum([0, *map(len, images)]).tolist()
    for (top, bottom), image in zip(pairwise(ends), images, strict=True):
        sheet[top:bottom, : image.shape[1]] = image
    return sheet
