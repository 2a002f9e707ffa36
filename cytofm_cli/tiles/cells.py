"""Images of single cells as tiles: what is told of each, and how large a tile they need.

Such a store is a slide that nobody scanned: a sheet on which every image has a square of its own,
row by row. Nothing lies between the squares, and none is the neighbour of another
(`tiles.field` never shows two of them in one box).

Letters: H W pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.slides.cell_images import ImagePlace
from cytofm_cli.slides.cell_pixels import CellPixels, decode, size_of
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.tiles.focus import image_focus
from cytofm_cli.tiles.morphology import dilate
from cytofm_cli.tiles.read import resample
from cytofm_cli.units import Size

Apart = Literal["cut-out", "border"]
READER: Final = "cells"
STEP_PX: Final = 16  # sides are multiples of it, as networks with patches want them
# JPEG moves a flat background by a few grey levels.
FLAT: Final = 16
_RIM_PX: Final = 2
_SAMPLE: Final = 64


@dataclass(frozen=True, kw_only=True)
class CellImage:
    """What is told of the image of one cell.

    Attributes:
        file: its name, as the user gave it.
        place: where it lies; None: nowhere.
        mpp: µm/px of the image.
        label: index of its class; None: it has none.
        xy: the cell's centre, pixels of the image; None: its middle.
    """

    file: str
    place: ImagePlace | None
    mpp: float
    label: int | None = None
    xy: tuple[float, float] | None = None

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            ValueError: missing or damaged.
        """
        if self.place is None:
            raise ValueError("is missing")
        try:
            return self.place.read()
        except FileNotFoundError as error:
            raise ValueError("is missing") from error
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """How images of cells become tiles; the same for all stores of a table.

    Attributes:
        side_px: of a tile.
        mpp: µm/px of the tiles; finer images are reduced to it.
        tolerance: relative; an image this close to `mpp` is taken as it is.
        apart: what surrounds an image in its tile.
        fill: grey level of a known background; 255 where none is known.
        repaint: grey level of the images' own background where it is another one: it is painted
            over, with the rim that it has left on the cell.
    """

    side_px: int
    mpp: float
    tolerance: float
    apart: Apart
    fill: int
    repaint: int | None = None


@dataclass(frozen=True, kw_only=True)
class CellsJob:
    """What to do with the cells of one store.

    Attributes:
        slide_id: name of the store.
        path: the table, or the folder or archive of images.
        stores: folder of the stores.
        cells: its images, in the order of its tiles.
        classes: names of the classes of the whole table.
        sheet: how they become tiles.
        config: how pixels are kept.
        mpp_source: who states the resolution.
        overwrite: replace a finished store.
        dry_run: write nothing.
        threads: threads for this store.
        synthetic: what made the images where no microscope did; None: they are real.
    """

    slide_id: str
    path: str
    stores: Path
    cells: tuple[CellImage, ...]
    classes: tuple[str, ...]
    sheet: Sheet
    config: TileConfig
    mpp_source: str
    overwrite: bool = False
    dry_run: bool = False
    threads: int = 1
    synthetic: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Survey:
    """What the images of a table are like.

    Attributes:
        largest_px: longest side at the tiles' resolution.
        black, white: share of border pixels, of a sample, that are of this colour.
        twins: rows of two images of the same bytes, the first of them and another.
        bad: why an image cannot be used, by its file.
    """

    largest_px: int
    black: float
    white: float
    twins: tuple[tuple[int, int], ...] = ()
    bad: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class CellTile:
    """A tile and what is known of it.

    Attributes:
        image_HWC: uint8 RGB, square.
        mask_HW: bool, what is not background.
        focus: score of the image, 0 to 1.
        point: the cell's centre, pixels of the tile.
        is_cut: the image is larger than the tile.
        converted: see `CellPixels`.
    """

    image_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    focus: float
    point: tuple[float, float]
    is_cut: bool
    converted: frozenset[str]


def survey(cells: Sequence[CellImage], mpp: float, tolerance: float) -> Survey:
    """Look at size and bytes of all images, and at the border of some.

    What cannot be read counts for nothing here: its store refuses it.
    """
    largest, bad = 0, {}
    first: dict[bytes, int] = {}
    twins: list[tuple[int, int]] = []
    sample = set(np.linspace(0, len(cells) - 1, _SAMPLE).round().astype(int).tolist())
    borders: list[NDArray[np.uint8]] = []
    for row, cell in enumerate(cells):
        try:
            data = cell.read()
            largest = max(largest, *_scaled(size_of(data), cell.mpp, mpp, tolerance))
            before = first.setdefault(hashlib.blake2b(data, digest_size=16).digest(), row)
            if before != row:
                twins.append((before, row))
            if row in sample:
                borders.append(_border(decode(data).image_HWC))
        except ValueError as error:
            bad[cell.file] = str(error)
    border_N3 = np.concatenate([*borders, np.zeros((0, 3), np.uint8)])
    if not len(border_N3):
        return Survey(largest, 0.0, 0.0, tuple(twins), bad)
    black, white = (1 - float(_off(border_N3[None], grey).mean()) for grey in (0, 255))
    return Survey(largest, black, white, tuple(twins), bad)


def side_for(largest_px: int) -> int:
    """Return the side of a tile that holds the largest image: a multiple of 16."""
    return max(1, -(-largest_px // STEP_PX)) * STEP_PX


def columns_of(n: int) -> int:
    """Return how many tiles a row of the sheet has."""
    return max(1, math.isqrt(n - 1) + 1) if n else 1


def corners_of(n: int, side_px: int) -> NDArray[np.int32]:
    """Return the top-left corners of the tiles on the sheet, (n, 2)."""
    index = np.arange(n)
    rows, columns = np.divmod(index, columns_of(n))
    return (np.stack([columns, rows], 1) * side_px).astype(np.int32)


def fingerprint(cells: Sequence[CellImage]) -> str:
    """Identify images by their names, resolutions, points and bytes, wherever they lie.

    Raises:
        InputError: some are missing; names and counts them.
    """
    hasher, missing = hashlib.sha256(), {}
    for cell in cells:
        try:
            data = cell.read()
        except ValueError as error:
            missing[cell.file] = str(error)
            continue
        told = f"{cell.file}\0{cell.mpp:.6g}\0{len(data)}\0"
        told += "" if cell.xy is None else f"{cell.xy[0]:.9g},{cell.xy[1]:.9g}\0"
        hasher.update(told.encode("utf-8", "replace"))
        hasher.update(data)
    refuse_bad(missing, len(cells))
    return hasher.hexdigest()[:16]


def refuse_bad(why: Mapping[str, str], n: int) -> None:
    """Refuse a store of whose images some cannot be used; `why` is by name of the file.

    Raises:
        InputError: there are some; names and counts them.
    """
    if not why:
        return
    told = "; ".join(f"{file} {what}" for file, what in list(why.items())[:3])
    more = f"; and {len(why) - 3} more" if len(why) > 3 else ""
    raise InputError(
        f"{len(why)} of {n} images cannot be used: {told}{more}.",
        hint="mend them, or leave them out of the table; nothing was written.",
    )


def cut(cell: CellImage, data: bytes, sheet: Sheet) -> CellTile:
    """Lay the image of a cell into the middle of a tile.

    Raises:
        ValueError: it cannot be decoded, or is coarser than the tiles.
    """
    pixels = decode(data, sheet.fill)
    height, width = pixels.image_HWC.shape[:2]
    size = _scaled(Size(width, height), cell.mpp, sheet.mpp, sheet.tolerance)
    x, y = cell.xy or (width / 2, height / 2)
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"has {width} x {height} px, and the cell lies at x {x:g}, y {y:g}")
    image_HWC = pixels.image_HWC
    if sheet.repaint is not None:
        image_HWC = _repainted(image_HWC, sheet.repaint, sheet.fill)
    image_HWC = resample(image_HWC, size.w, size.h)
    return _laid(image_HWC, pixels, (x * size.w / width, y * size.h / height), sheet)


def _laid(
    image_HWC: NDArray[np.uint8], pixels: CellPixels, point: tuple[float, float], sheet: Sheet
) -> CellTile:
    side, (height, width) = sheet.side_px, image_HWC.shape[:2]
    left, top = (_start(length, at, side) for length, at in ((width, point[0]), (height, point[1])))
    around = sheet.fill
    tile_HWC = np.empty((side, side, 3), np.uint8)
    tile_HWC[:] = around if sheet.apart == "cut-out" else np.median(_border(image_HWC), axis=0)
    y0, x0 = max(top, 0), max(left, 0)
    part_HWC = image_HWC[max(-top, 0) : side - top, max(-left, 0) : side - left]
    y1, x1 = y0 + part_HWC.shape[0], x0 + part_HWC.shape[1]
    tile_HWC[y0:y1, x0:x1] = part_HWC
    mask_HW = np.zeros((side, side), bool)
    mask_HW[y0:y1, x0:x1] = sheet.apart == "border" or _off(part_HWC, sheet.fill)
    inside = tuple(min(max(at, 1.0), side - 1.0) for at in (point[0] + left, point[1] + top))
    return CellTile(
        image_HWC=tile_HWC,
        mask_HW=mask_HW,
        focus=image_focus(part_HWC, sheet.mpp, mask_HW[y0:y1, x0:x1]),
        point=(inside[0], inside[1]),
        is_cut=max(height, width) > side,
        converted=pixels.converted,
    )


def _repainted(image_HWC: NDArray[np.uint8], grey: int, fill: int) -> NDArray[np.uint8]:
    """Paint a flat background over, and the rim of two pixels that compression mixes with it."""
    painted_HWC = image_HWC.copy()
    painted_HWC[dilate(~_off(image_HWC, grey), _RIM_PX)] = fill
    return painted_HWC


def _off(image_HWC: NDArray[np.uint8], grey: int) -> NDArray[np.bool_]:
    """Tell which pixels are not of a flat grey, bool (H, W)."""
    off_HWC = (image_HWC > min(grey + FLAT, 255)) | (image_HWC < max(grey - FLAT, 0))
    return off_HWC[:, :, 0] | off_HWC[:, :, 1] | off_HWC[:, :, 2]


def _start(length: int, at: float, side: int) -> int:
    """Return where an image starts on its tile: in the middle; a larger one shows its cell."""
    if length <= side:
        return (side - length) // 2
    return -min(max(round(at - side / 2), 0), length - side)


def _scaled(size: Size, own_mpp: float, mpp: float, tolerance: float) -> Size:
    """Return the size of an image at the tiles' resolution.

    Raises:
        ValueError: it is coarser: nothing is ever enlarged.
    """
    if own_mpp > mpp * (1 + tolerance) * (1 + 1e-9):
        raise ValueError(f"has {own_mpp:.4g} µm/px, coarser than the wanted {mpp:.4g}")
    if own_mpp >= mpp * (1 - tolerance):
        return size
    return Size(*(max(1, round(length * own_mpp / mpp)) for length in size))


def _border(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the outermost pixels of an image, (n, 3)."""
    edges = (image_HWC[0], image_HWC[-1], image_HWC[1:-1, 0], image_HWC[1:-1, -1])
    return np.concatenate(edges)
