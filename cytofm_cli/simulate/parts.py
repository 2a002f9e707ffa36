"""A slide part by part: all that is made of one region at once, so that workers can share it out.

Letters: H rows, W columns, C colours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cytofm_cli.pictures.pyramid import halved, padded
from cytofm_cli.simulate import truth
from cytofm_cli.simulate.cohort import Slide
from cytofm_cli.simulate.preset import Optics
from cytofm_cli.simulate.render import TILE, Box, Placed, Scene, tiles_of
from cytofm_cli.work.opencv import opencv

PART: Final = 2048  # px, whole tiles
_ZLIB: Final = 4
LABELS: Final = ("nuclei", "cytoplasm")


@dataclass(frozen=True)
class PartTask:
    """One region of one focal plane."""

    number: int
    plane: int
    box: Box


@dataclass(frozen=True)
class Part:
    """What is made of a region.

    Attributes:
        tiles: JPEG of its tiles, row by row; None: blank.
        half: half of its pixels, (H, W, 3); None: all of it is blank.
        pixels: its pixels, of a picture that is not written in tiles.
        labels: encoded label tiles by `LABELS`, row by row; None: nothing there.
        rows: of cells.csv, of the cells whose middle lies in it.
        features: of the GeoJSON, of the same cells.
        sheets: of marked cells: number of each sheet that has a cell here, and its kind.
        n_cells: cells whose middle lies in it.
    """

    tiles: list[bytes | None]
    half: NDArray[np.uint8] | None
    pixels: NDArray[np.uint8] | None
    labels: dict[str, list[bytes | None]]
    rows: str
    features: bytes
    sheets: dict[int, str]
    n_cells: int


def tasks_of(slide: Slide) -> list[PartTask]:
    """Return the parts of a slide: plane by plane, row by row."""
    tops = range(0, slide.size_px, PART)
    side = slide.size_px
    boxes = [(x, y, min(x + PART, side), min(y + PART, side)) for y in tops for x in tops]
    return [
        PartTask(plane * len(boxes) + number, plane, box)
        for plane in range(slide.planes)
        for number, box in enumerate(boxes)
    ]


def encode_jpeg(tile: NDArray[np.uint8], optics: Optics, *, small: bool = False) -> bytes:
    """Encode a tile, (H, W, 3), as YCbCr.

    Args:
        tile: RGB.
        optics: quality and resolution of colour.
        small: find the best Huffman code, in twice the time.
    """
    return bytes(
        imagecodecs.jpeg8_encode(
            tile,
            level=optics.jpeg_quality,
            colorspace="rgb",
            outcolorspace="ycbcr",
            subsampling=optics.jpeg_colour.replace(":", ""),
            optimize=small,
        )
    )


def encode_labels(tile: NDArray[np.uint32]) -> bytes:
    """Encode a label tile, Deflate."""
    return bytes(imagecodecs.deflate_encode(tile.tobytes(), level=_ZLIB))


class PartMaker:
    """Makes the parts of one slide.

    Args:
        scene: the slide.
        tiled: written in tiles, a pyramid; else as one picture.
    """

    def __init__(self, scene: Scene, *, tiled: bool) -> None:
        opencv()  # on one thread: processes share the slide out
        self._scene, self._preset, self._tiled = scene, scene.preset, tiled

    def __call__(self, task: PartTask) -> Part:
        """Make one part."""
        scene, box = self._scene, task.box
        cells = scene.cells(box)
        own = [one for one in cells if _holds(box, one)] if task.plane == 0 else []
        blank = not cells and all(scene.is_blank(tile) for tile in tiles_of(box))
        image = None if blank else scene.pixels(box, task.plane)
        tiles: list[bytes | None] = []
        if self._tiled:
            tiles = list(self._tiles(box, image))
        slide = scene.slide
        heights = [slide.focus_um(plane) for plane in range(slide.planes)]
        return Part(
            tiles=tiles,
            half=halved(image) if self._tiled and image is not None else None,
            pixels=None if self._tiled else image,
            labels=_labels(cells, box) if task.plane == 0 else {},
            rows=truth.rows(own, self._preset, slide.slide_id, heights),
            features=truth.features(own, self._preset, slide.slide_id),
            sheets={
                one.sheet: one.cell.kind for one in own if self._preset.kinds[one.cell.kind].marked
            },
            n_cells=len(own),
        )

    def _tiles(self, box: Box, image: NDArray[np.uint8] | None) -> Iterator[bytes | None]:
        for tile in tiles_of(box):
            if image is None or self._scene.is_blank(tile):
                yield None
            else:
                pixels = _cut(image, tile, box)
                yield encode_jpeg(padded(pixels, TILE), self._preset.optics)


def _labels(cells: list[Placed], box: Box) -> dict[str, list[bytes | None]]:
    return {of: [_label_tile(cells, tile, of) for tile in tiles_of(box)] for of in LABELS}


def _label_tile(cells: list[Placed], tile: Box, of: str) -> bytes | None:
    drawn = truth.labels(cells, tile, of=of)
    if drawn is None:
        return None
    whole = np.zeros((TILE, TILE), np.uint32)
    whole[: drawn.shape[0], : drawn.shape[1]] = drawn
    return encode_labels(whole)


def _holds(box: Box, placed: Placed) -> bool:
    cell = placed.cell
    return box[0] <= cell.x < box[2] and box[1] <= cell.y < box[3]


def _cut(image: NDArray[np.uint8], tile: Box, box: Box) -> NDArray[np.uint8]:
    return image[tile[1] - box[1] : tile[3] - box[1], tile[0] - box[0] : tile[2] - box[0]]
