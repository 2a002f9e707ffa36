"""The tile step for the images of cells of one store: read → lay on a sheet → write.

Letters: N cells; H W pixels.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import LevelRecord, SlideRecord, TileRecord
from cytofm_cli.tiles import cells, pixels
from cytofm_cli.tiles.announce import Note, announce_loss
from cytofm_cli.tiles.cells import READER, CellsJob, CellTile
from cytofm_cli.tiles.run import MOST_THUMBNAIL_PX
from cytofm_cli.work.batch import Status

Report = Callable[[int, int], None]
# What may have lost the cell: of what was done to images, worth a warning.
_WARNED = ("cut", "dim", "frames")


def tile_cells(job: CellsJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
    """Make the tiles of one store from the images of cells.

    Returns:
        ("done" or "skipped", facts of the store).

    Raises:
        InputError: an image cannot be used; no part of a store is left.
        ConfigMismatchError: the store was made of other images or with other settings.
    """
    io.check_slide_id(job.stores, job.slide_id)
    path = io.store_path(job.stores, job.slide_id)
    mark = cells.fingerprint(job.cells)
    if _is_done(job, path, mark):
        io.tidy(job.stores, job.slide_id, schema.TILE_STEP)
        return "skipped", _facts(path)
    if job.dry_run:
        announce_loss(path, note)
        return "done", {"n_tiles": len(job.cells)}
    with io.claim_step(job.stores, job.slide_id, schema.TILE_STEP):
        if _is_done(job, path, mark):  # another process did it meanwhile
            return "skipped", _facts(path)
        announce_loss(path, note)
        with io.staging(job.stores, job.slide_id, schema.TILE_STEP) as staged:
            record = _write(job, staged, mark, report, note)
            if cells.fingerprint(job.cells) != mark:
                raise InputError(
                    f"{job.path}: images of {job.slide_id} have changed while they were read.",
                    hint="the same command reads them when nothing writes to them any more.",
                )
            commit.commit_store(staged, path, slide=_slide_record(job, mark), record=record)
    return "done", _facts(path)


def settings_of(job: CellsJob) -> dict[str, Any]:
    """Return the settings that can change a stored number."""
    sheet, config = job.sheet, job.config
    acting: dict[str, Any] = {
        "tile_px": sheet.side_px,
        "stride_px": sheet.side_px,
        "mpp": float(f"{sheet.mpp:.6g}"),
        "mpp_tolerance": sheet.tolerance,
        "reader": READER,
        "foreground": "none",
        "apart": sheet.apart,
        "fill": sheet.fill,
        "repaint": sheet.repaint,
        "select": "all",
        "pixels": "jpeg" if config.pixels == "jpeg" else "lossless",
    }
    return acting | ({"jpeg_quality": config.jpeg_quality} if config.pixels == "jpeg" else {})


def _is_done(job: CellsJob, path: Path, mark: str) -> bool:
    return not job.overwrite and commit.is_finished(
        path, schema.TILE_STEP, config=settings_of(job), input_fingerprint=mark
    )


@dataclass(eq=False)
class _Sheet:
    """What becomes of the images, filled in by several threads, each row by one.

    Attributes:
        point_N2: the cells on their tiles.
        foreground_N, focus_N: of the tiles.
        thumbnail, mask: of the whole sheet, reduced by `factor`.
        bad: why an image cannot be used, by its file.
        counts: images that were cut or converted.
    """

    job: CellsJob
    factor: int
    point_N2: NDArray[np.float32]
    foreground_N: NDArray[np.float32]
    focus_N: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    bad: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encode(self, row: int) -> list[bytes | None]:
        """Make one tile, and keep what is known of it."""
        cell = self.job.cells[row]
        try:
            tile = cells.cut(cell, cell.read(), self.job.sheet)
        except ValueError as error:
            with self.lock:
                self.bad[cell.file] = str(error)
            return [None]
        self._keep(row, tile)
        return [pixels.encode_pixels(tile.image_HWC, self.job.config)]

    def _keep(self, row: int, tile: CellTile) -> None:
        sheet, factor = self.job.sheet, self.factor
        self.point_N2[row] = tile.point
        self.foreground_N[row] = np.count_nonzero(tile.mask_HW) / tile.mask_HW.size
        self.focus_N[row] = tile.focus
        small = -(-sheet.side_px // factor)
        line, column = (at * small for at in divmod(row, cells.columns_of(len(self.job.cells))))
        self.thumbnail[line : line + small, column : column + small] = tile.image_HWC[
            ::factor, ::factor
        ]
        self.mask[line : line + small, column : column + small] = tile.mask_HW[::factor, ::factor]
        with self.lock:
            self.counts.update(tile.converted)
            self.counts["cut"] += tile.is_cut


def _empty_sheet(job: CellsJob) -> _Sheet:
    n, side = len(job.cells), job.sheet.side_px
    columns = cells.columns_of(n)
    lines = -(-n // columns)
    factor = max(1, -(-columns * side // MOST_THUMBNAIL_PX))
    small = -(-side // factor)
    return _Sheet(
        job=job,
        factor=factor,
        point_N2=np.zeros((n, 2), np.float32),
        foreground_N=np.zeros(n, np.float32),
        focus_N=np.zeros(n, np.float32),
        thumbnail=np.full((lines * small, columns * small, 3), job.sheet.fill, np.uint8),
        mask=np.zeros((lines * small, columns * small), np.uint8),
    )


def _write(job: CellsJob, staged: Path, mark: str, report: Report, note: Note) -> TileRecord:
    """Write every array of the step; return its provenance record."""
    sheet, (n, side) = _empty_sheet(job), (len(job.cells), job.sheet.side_px)
    layout = pixels.layout_of(job.config, side)
    n_bytes = pixels.write_tiles(staged, sheet.encode, (n, side), layout, job.threads, report)
    in_order = {cell.file: sheet.bad[cell.file] for cell in job.cells if cell.file in sheet.bad}
    cells.refuse_bad(in_order, n)
    names = [cell.file.encode("utf-8", "replace") for cell in job.cells]
    starts = np.cumsum([0, *map(len, names)], dtype=np.int64)
    for kind, values in (
        (schema.THUMBNAIL, sheet.thumbnail),
        (schema.FOREGROUND, sheet.mask),
        (schema.TILE_XY, cells.corners_of(n, side)),
        (schema.TILE_FOREGROUND, sheet.foreground_N),
        (schema.TILE_FOCUS, sheet.focus_N),
        (schema.TILE_FILE, np.frombuffer(b"".join(names), np.uint8)),
        (schema.TILE_FILE_START, starts),
        (schema.TILE_POINT, sheet.point_N2),
    ):
        arrays.write(staged, kind, values)
    _say(job, sheet, note)
    return TileRecord(
        **provenance.stamp(settings_of(job), input_fingerprint=mark),
        n_tiles=n,
        n_grid=n,
        n_foreground=n,
        tile_px=side,
        tile_px0=float(side),
        mpp=job.sheet.mpp,
        level=0,
        thumbnail_downsample=side / -(-side // sheet.factor),
        fill=job.sheet.fill,
        source_codec="images",
        store_codec=layout[2],
        pixel_bytes=n_bytes,
        apart=job.sheet.apart,
    )


def _say(job: CellsJob, sheet: _Sheet, note: Note) -> None:
    """Say what was done to images so that they fit."""
    n = len(job.cells)
    words = {
        "grey": "are grey and made RGB",
        "16-bit": "have 16 bits, of which the upper 8 are kept",
        "transparent": f"are transparent in parts, laid on grey level {job.sheet.fill}",
        "dim": "have 16 bits of which the upper 8 are nearly black: scale their samples to 16 bits",
        "CMYK": "are CMYK and made RGB",
        "frames": "have several frames or pages, of which the first is taken",
        "cut": f"are larger than the tile of {job.sheet.side_px} px and cut at its edge",
    }
    for what, text in words.items():
        if count := sheet.counts[what]:
            warns = "warning: " if what in _WARNED else ""
            note(f"{warns}{job.slide_id}: {count} of {n} images {text}")


def _slide_record(job: CellsJob, mark: str) -> SlideRecord:
    n, side = len(job.cells), job.sheet.side_px
    columns = cells.columns_of(n)
    size = (columns * side, -(-n // columns) * side)
    return SlideRecord(
        slide_id=job.slide_id,
        path=str(Path(job.path).absolute()),
        reader=READER,
        format=READER,
        size_px0=size,
        levels=(LevelRecord(size_px=size, downsample=1.0),),
        mpp=job.sheet.mpp,
        mpp_source=job.mpp_source,
        codec="images",
        notes=("A sheet of images of single cells, each on a tile of its own.",),
        fingerprint=mark,
        synthetic=job.synthetic,
    )


def _facts(path: Path) -> dict[str, Any]:
    with contextlib.closing(io.open_store(path)) as store:
        record = store.tile
    return {
        "store": str(path),
        "n_tiles": record.n_tiles,
        "n_grid": record.n_grid,
        "mpp": record.mpp,
        "store_codec": record.store_codec,
        "pixel_bytes": record.pixel_bytes,
    }
