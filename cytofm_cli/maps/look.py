"""What the heads of networks look at on the images of one slide.

Letters: B images, H heads, P patches, K compartments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.encoders.base import CELL_UM
from cytofm_cli.encoders.batches import Report, default_batch, embed_tiles
from cytofm_cli.errors import StoreError
from cytofm_cli.maps.compartments import Floats, Ground, cover, ground_of
from cytofm_cli.maps.config import AttentionConfig
from cytofm_cli.maps.enrichment import shares
from cytofm_cli.maps.networks import Looker
from cytofm_cli.nuclei.crops import CellCrops
from cytofm_cli.store import io
from cytofm_cli.tiles.field import open_field
from cytofm_cli.tiles.source import TileSource, open_tiles
from cytofm_cli.tiles.squares import corners
from cytofm_cli.views.stored import draw_lots


@dataclass(frozen=True)
class Images:
    """The images of a slide that networks are shown.

    Attributes:
        pixels: uint8 RGB squares, by row.
        rows: which of the store's tiles or nuclei.
        left_top: (B, 2), their corners, level-0 pixels.
        side: of one, level-0 pixels.
        mpp: µm/px of the pixels.
    """

    pixels: TileSource
    rows: NDArray[np.int64]
    left_top: Floats
    side: float
    mpp: float


@dataclass(frozen=True)
class Seen:
    """The attention of one network on the images of a slide.

    Attributes:
        attention_BHP: share on each patch.
        cover_BPK: share of each patch that is nucleus, cytoplasm, other.
        frame: (shift, share): where the square that the network sees lies in the image: the part
            of its side that is cut off before, and the part that is seen.
    """

    attention_BHP: NDArray[np.float32]
    cover_BPK: Floats
    frame: tuple[float, float]


def unit_of(config: AttentionConfig, lookers: Sequence[Looker]) -> str:
    """Return what is looked at: cells where the first encoder was trained on them."""
    return config.unit or ("tile" if lookers[0].spec.cell_um is None else "cell")


@contextlib.contextmanager
def open_images(
    store: io.Store, ground: Ground, config: AttentionConfig, looker: Looker, unit: str
) -> Iterator[Images]:
    """Open tiles with nuclei, or crops around nuclei, of a slide: those that lots choose.

    Raises:
        StoreError: no tile of the slide holds a nucleus.
    """
    if unit == "tile":
        with open_tiles(store, slides=config.slides) as tiles:
            side = float(store.tile.tile_px0)
            corner = tiles.xy_px0.astype(np.float64)
            rows = _chosen(store, config, _with_nuclei(ground, corner, side))
            yield Images(_Some(tiles, rows), rows, corner[rows], side, store.tile.mpp)
        return
    xy_px0 = ground.nuclei.xy_px0
    with open_field(store, slides=config.slides) as field:
        cell_um = config.cell_um or looker.spec.cell_um or CELL_UM
        side_px = max(1, round(cell_um / field.mpp))
        rows = _chosen(store, config, np.arange(len(xy_px0)))
        crops = CellCrops(field, xy_px0[rows], side_px=side_px, fill=store.tile.fill)
        corner = corners(field, xy_px0[rows], side_px).astype(np.float64) * field.downsample
        yield Images(crops, rows, corner, side_px * field.downsample, field.mpp)


class _Some:
    """Some tiles of a slide, as if there were no others."""

    def __init__(self, tiles: TileSource, rows: NDArray[np.int64]) -> None:
        self.xy_px0 = tiles.xy_px0[rows]
        self._tiles, self._rows = tiles, rows

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return one tile."""
        return self._tiles.read(int(self._rows[index]))


def _with_nuclei(ground: Ground, corner: Floats, side: float) -> NDArray[np.int64]:
    """Return the tiles in which the centroid of a nucleus lies."""
    from scipy.spatial import cKDTree

    gap, _ = cKDTree(ground.nuclei.xy_px0).query(corner + side / 2, p=np.inf)
    return np.flatnonzero(gap <= side / 2)


def _chosen(store: io.Store, config: AttentionConfig, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw rows without regard to other slides; in ascending order."""
    if not len(rows):
        raise StoreError(f"{store.path}: none of its tiles holds a nucleus.")
    lots = draw_lots(config.seed, store.slide_id, rows)
    return np.sort(rows[np.argsort(lots, kind="stable")[: config.images]])


def look(
    images: Images,
    ground: Ground,
    looker: Looker,
    *,
    batch_size: int | None,
    threads: int,
    report: Report,
) -> Seen:
    """Read the attention of one network on all images of a slide."""
    seen_px = looker.spec.input_px or 1
    share = min(1.0, seen_px / (looker.spec.resize_px or seen_px))
    frame = ((1 - share) / 2, share)
    batch = batch_size or default_batch(str(looker.inner.device), looker)
    values, _ = embed_tiles(images.pixels, looker, batch_size=batch, threads=threads, report=report)
    n_patches = looker.grid[0] * looker.grid[1]
    cover_BPK = np.stack(
        [
            cover(ground, corner + frame[0] * images.side, share * images.side, looker.grid)
            for corner in images.left_top
        ]
    )
    return Seen(values.reshape(len(values), looker.n_heads, n_patches), cover_BPK, frame)


def measure_slide(
    path: Path,
    lookers: Sequence[Looker],
    config: AttentionConfig,
    *,
    threads: int,
    report: Callable[[int, int], None],
) -> dict[str, dict[str, Any]]:
    """Measure every network on the images of one slide.

    Returns:
        `SlideShares.record()` by the network's label.

    Raises:
        StoreError: no nuclei, no outlines, no tiles.
        SlideError: the pixels are in a slide that is not there.
    """
    store = io.open_store(path)
    ground, unit = ground_of(store, config.detector), unit_of(config, lookers)
    records: dict[str, dict[str, Any]] = {}
    with open_images(store, ground, config, lookers[0], unit) as images:
        for number, looker in enumerate(lookers):
            seen = look(
                images,
                ground,
                looker,
                batch_size=config.batch_size,
                threads=threads,
                report=partial(_tell, report, number, len(lookers)),
            )
            records[looker.label] = shares(seen.attention_BHP, seen.cover_BPK).record()
    return records


def _tell(report: Report, number: int, n_lookers: int, done: int, total: int) -> None:
    """Count the images of all networks."""
    report(number * total + done, n_lookers * total)
