"""From stores to one file that pretraining reads on any machine: `cytofm pack`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import OutputError
from cytofm_cli.evaluate.points import read_groups
from cytofm_cli.pretrain.config import PackConfig
from cytofm_cli.pretrain.indexed import IndexedSlide, Pixels
from cytofm_cli.pretrain.packed import PackedSlide, mirrored_around
from cytofm_cli.pretrain.tile_index import TileIndex, open_index
from cytofm_cli.store.pack_file import writing_pack
from cytofm_cli.tiles.canvas import Canvases
from cytofm_cli.views.crops import margin_of


@dataclass(frozen=True)
class PackReport:
    """A pack that was written.

    Attributes:
        path: of the file.
        facts: what it holds, plain JSON values.
        notes: what the user should know, one line each.
    """

    path: Path
    facts: dict[str, Any]
    notes: tuple[str, ...]


def pack(
    config: PackConfig,
    stores: Sequence[Path],
    out: Path,
    *,
    slides: Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PackReport:
    """Write the tiles or cells of stores, with their nuclei, into one file.

    The same stores give the same bytes; a lossless pack gives the same views as they do.

    Args:
        config: what is packed, and how.
        stores: with tiles, and nuclei unless `nuclei` is off.
        out: the file.
        slides: folder where the slides lie now, for stores without pixels.
        overwrite: replace a file that is there.
        progress: called with (images written, of how many).

    Raises:
        OutputError: `out` is there already.
        InputError, StoreError: see `tile_index.open_index`; a table of groups that does not fit.
    """
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: is there already.", hint="--overwrite replaces it.")
    cell_um = config.cell_um if config.unit == "cell" else None
    index = open_index(
        stores, config.detector, need_nuclei=config.nuclei, cell_um=cell_um, slides=slides
    )
    try:
        ids = [slide.slide_id for slide in index.slides]
        groups, notes = ({}, []) if config.groups is None else read_groups(config.groups, ids)
        with writing_pack(out, codec=config.codec, quality=config.quality) as writer:
            tables = _Tables()
            margin_px = margin_of(index.tile_px) if config.margin and cell_um is None else 0
            for number, slide in enumerate(index.slides):
                with index.pixels(number) as pixels:
                    own_px = 0 if _is_mirrored(slide, pixels, margin_px) else margin_px
                    for tile in range(slide.n_tiles):
                        writer.add(_read(pixels, tile, own_px))
                        progress(tables.n_tiles + tile + 1, index.n_tiles)
                tables.add(slide, groups.get(slide.slide_id), own_px, mirrored=own_px < margin_px)
            header = _header(config, index, cell_um) | {"slides": tables.records}
            writer.finish(header, tables.arrays())
    finally:
        index.close()
    facts = {name: header[name] for name in ("tile_px", "mpp", "cell_um", "detector")}
    facts |= {"n_slides": len(ids), "n_tiles": index.n_tiles, "bytes": out.stat().st_size}
    return PackReport(out, facts, tuple(notes))


def _header(config: PackConfig, index: TileIndex, cell_um: float | None) -> dict[str, Any]:
    return {
        "tile_px": index.tile_px,
        "mpp": index.mpp,
        "cell_um": cell_um,
        "detector": index.detector,
        "quality": config.quality,
    }


def _read(pixels: Pixels, tile: int, margin_px: int) -> NDArray[np.uint8]:
    if isinstance(pixels, Canvases):
        return pixels.read(tile, margin_px)
    return pixels.read(tile)


def _is_mirrored(slide: IndexedSlide, pixels: Pixels, margin_px: int) -> bool:
    """Tell whether nothing is known of what lies around any tile: then it need not be packed."""
    return margin_px > 0 and all(
        np.array_equal(
            _read(pixels, tile, margin_px), mirrored_around(_read(pixels, tile, 0), margin_px)
        )
        for tile in range(slide.n_tiles)
    )


class _Tables:
    """What goes beside the images, slide by slide."""

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.n_tiles = self._n_nuclei = self._n_points = 0
        self._columns: dict[str, list[NDArray[Any]]] = {
            "tile_xy_px0": [np.zeros((0, 2), np.int32)],
            "bare": [np.zeros(0, np.uint8)],
            "nucleus_xy_px0": [np.zeros((0, 2), np.float32)],
            "nucleus_area_um2": [np.zeros(0, np.float32)],
            "nucleus_points": [np.zeros(0, np.int64)],
            "contour_px0": [np.zeros((0, 2), np.float32)],
        }

    def add(
        self, slide: IndexedSlide, group: str | None, margin_px: int, *, mirrored: bool
    ) -> None:
        """Add a slide's tiles and nuclei."""
        table = slide.nuclei.table
        columns: dict[str, NDArray[Any]] = {
            "tile_xy_px0": slide.nuclei.corner_px0,
            "bare": slide.bare_N.astype(np.uint8),
            "nucleus_xy_px0": table.xy_px0,
            "nucleus_area_um2": table.area_um2,
            "nucleus_points": np.diff(table.contour_start),
            "contour_px0": table.contour_px0,
        }
        for name, column in columns.items():
            self._columns[name].append(column)
        first, row, point = self.n_tiles, self._n_nuclei, self._n_points
        self.n_tiles += slide.n_tiles
        self._n_nuclei += len(table)
        self._n_points += len(table.contour_px0)
        packed = PackedSlide(
            slide_id=slide.slide_id,
            group=group,
            plan=slide.plan,
            marks=slide.marks,
            margin_px=margin_px,
            mirrored=mirrored,
            tiles=(first, self.n_tiles),
            nuclei=(row, self._n_nuclei),
            points=(point, self._n_points),
        )
        self.records.append(packed.to_record())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns of all slides."""
        return {name: np.concatenate(parts) for name, parts in self._columns.items()}
