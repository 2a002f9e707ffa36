"""Pictures of single cells, with where their outlines lie on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.files import jpeg_bytes
from cytofm_cli.store import schema
from cytofm_cli.store.io import Store
from cytofm_cli.tiles.field import Field, open_field
from cytofm_cli.tiles.squares import corners, read_squares, reading_order
from cytofm_cli.work.opencv import opencv

PICTURE_PX: Final = 128
_POINTS: Final = 48  # of an outline: more are not seen at this size

Outline = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class CellPicture:
    """One cell to look at.

    Attributes:
        jpeg: a square of `PICTURE_PX`.
        mpp: µm to one of its pixels.
        outline: points (x, y) of the nucleus in its pixels; () where none is known.
    """

    jpeg: bytes
    mpp: float
    outline: Outline = ()


def cell_pictures(
    store: Store,
    xy_px0: NDArray[Any],
    outlines: Sequence[NDArray[np.float32]],
    *,
    cell_um: float,
    slides: Path | None,
    quality: int = 85,
) -> list[CellPicture]:
    """Cut squares around points out of a slide.

    Args:
        store: of the slide, with tiles.
        xy_px0: (n, 2) centres, level-0 pixels.
        outlines: of the nucleus at each, level-0 pixels; without points where none is known.
        cell_um: side of a square.
        slides: folder where the slides lie now, for stores without pixels.
        quality: of the JPEG.

    Raises:
        SlideError: the store has no pixels and the slide cannot be read.
        StoreError: the store is damaged.
    """
    if not len(xy_px0):
        return []
    with open_field(store, slides=slides) as field:
        side_px = max(1, round(cell_um / field.mpp))
        corner_N2 = corners(field, np.asarray(xy_px0, np.float32), side_px)
        pictures: list[CellPicture] = [CellPicture(b"", 0.0)] * len(xy_px0)
        for row in reading_order(field, corner_N2).tolist():
            square_HWC = read_squares(field, corner_N2[row : row + 1], side_px, store.tile.fill)[0]
            pictures[row] = CellPicture(
                jpeg=jpeg_bytes(resized(square_HWC, PICTURE_PX, PICTURE_PX), quality),
                mpp=side_px * field.mpp / PICTURE_PX,
                outline=_placed(outlines[row], field, corner_N2[row], side_px),
            )
    return pictures


def tile_pictures(
    store: Store, rows: NDArray[np.int64], *, slides: Path | None, quality: int = 85
) -> list[CellPicture]:
    """Return pictures of whole tiles; arguments and errors as `cell_pictures`."""
    from cytofm_cli.tiles.source import open_tiles

    if not len(rows):
        return []
    mpp = store.tile.mpp * store.tile.tile_px / PICTURE_PX
    with open_tiles(store, slides=slides) as tiles:
        return [
            CellPicture(jpeg_bytes(resized(tiles.read(row), PICTURE_PX, PICTURE_PX), quality), mpp)
            for row in rows.tolist()
        ]


def resized(image_HWC: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return a picture in another size: averaged where it shrinks, smooth where it grows."""
    cv2 = opencv()
    shrinks = width < image_HWC.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    picture: NDArray[np.uint8] = cv2.resize(image_HWC, (width, height), interpolation=how)
    return picture


def outlines_of(store: Store, detector: str, rows: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Read the outlines of some nuclei, (k, 2) level-0 pixels each, without reading all.

    Raises:
        StoreError: damaged.
    """
    step = schema.nuclei_step(detector)
    start_N = store.read(f"{step}/contour_start")
    polygons: list[NDArray[np.float32]] = [np.zeros((0, 2), np.float32)] * len(rows)
    with store.rows(f"{step}/contour_px0") as points:
        for place in np.argsort(rows, kind="stable").tolist():
            row = int(rows[place])
            polygons[place] = points.read(int(start_N[row]), int(start_N[row + 1]))
    return polygons


def _placed(
    polygon_K2: NDArray[np.float32], field: Field, corner: NDArray[np.int64], side_px: int
) -> Outline:
    """Return an outline in the pixels of its picture."""
    if not len(polygon_K2):
        return ()
    step = max(1, -(-len(polygon_K2) // _POINTS))
    in_field_K2 = polygon_K2[::step].astype(np.float64) / field.downsample - corner
    placed_K2 = in_field_K2 * (PICTURE_PX / side_px)
    return tuple((round(x, 1), round(y, 1)) for x, y in placed_K2.tolist())
