"""The lower levels of a pyramid, made as the strips of the finest one pass: encoded, on disk.

Letters: H rows, W columns, C colours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.work.opencv import opencv

Image = NDArray[np.uint8]
Encode = Callable[[Image], bytes]
_SMALLEST: Final = 512  # the coarsest level is no larger


def level_sizes(size_px: int) -> list[int]:
    """Return a side on each level of a pyramid, finest first; each is half of the last."""
    sizes = [size_px]
    while sizes[-1] > _SMALLEST:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def halved(image: Image) -> Image:
    """Return means of 2 by 2 px, rounded half up; a last odd row or column counts twice."""
    cv2 = opencv()
    h, w = image.shape[:2]
    if h % 2 or w % 2:
        image = cv2.copyMakeBorder(image, 0, h % 2, 0, w % 2, cv2.BORDER_REPLICATE)
    size = (image.shape[1] // 2, image.shape[0] // 2)
    half: Image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return half


def padded(tile: Image, side: int) -> Image:
    """Return a tile of the full side; its last row and column go on beyond the picture."""
    h, w = tile.shape[:2]
    if (h, w) == (side, side):
        return tile
    cv2 = opencv()
    whole = cv2.copyMakeBorder(tile, 0, side - h, 0, side - w, cv2.BORDER_REPLICATE)
    filled: Image = whole.astype(np.uint8)
    return filled


class Level:
    """A level below the finest: takes strips, keeps encoded tiles, hands half on.

    Args:
        sizes: widths of this level and of those below it.
        encode: of a whole tile.
        folder: where tiles wait, in a file without a name.
        tile_px: side of a tile.
    """

    def __init__(self, sizes: list[int], encode: Encode, folder: Path, tile_px: int) -> None:
        self._side, self._encode, self._tile_px = sizes[0], encode, tile_px
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - until `close`
        self._lengths: list[int] = []
        self._waiting: list[Image] = []
        self._uniform: dict[bytes, bytes] = {}
        self._below = Level(sizes[1:], encode, folder, tile_px) if len(sizes) > 1 else None

    def add(self, strip: Image) -> None:
        """Take the next rows, (H, W, 3) of the whole width."""
        self._waiting.append(strip)
        while sum(map(len, self._waiting)) >= self._tile_px:
            self._flush(self._tile_px)

    def finish(self) -> None:
        """Say that a plane is over."""
        if self._waiting and sum(map(len, self._waiting)):
            self._flush(self._tile_px)
        self._waiting = []
        if self._below is not None:
            self._below.finish()

    def tiles(self) -> Iterator[bytes]:
        """Yield the tiles, row by row and plane by plane."""
        self._file.seek(0)
        for length in self._lengths:
            yield self._file.read(length)

    def levels(self) -> list[Level]:
        """Return this level and those below it."""
        return [self, *(self._below.levels() if self._below is not None else [])]

    def close(self) -> None:
        """Give the files back."""
        for level in self.levels():
            level._file.close()

    def _flush(self, n_rows: int) -> None:
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        strip, rest = rows[:n_rows], rows[n_rows:]
        self._waiting = [rest] if len(rest) else []
        for x in range(0, self._side, self._tile_px):
            data = self._encoded(strip[:, x : x + self._tile_px])
            self._file.write(data)
            self._lengths.append(len(data))
        if self._below is not None:
            self._below.add(halved(strip))

    def _encoded(self, tile: Image) -> bytes:
        """Encode a tile; those of one colour only once."""
        first = tile[:1, :1]
        # Two comparisons along memory: most of a large slide is of one colour.
        if not (tile[:1] == first).all() or not (tile == tile[:1]).all():
            return self._encode(padded(tile, self._tile_px))
        key = first.tobytes()
        if key not in self._uniform:
            self._uniform[key] = self._encode(padded(tile, self._tile_px))
        return self._uniform[key]
