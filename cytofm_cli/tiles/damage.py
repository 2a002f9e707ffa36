"""Read slides of which a few tiles are damaged: those are blank, and counted.

One bad tile must neither cost the slide nor pass for its picture. Decoders do not notice most
damage of JPEG data, so each of the file's own JPEG tiles is checked once, when it is first
copied or read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import NativeJpeg, SlideReader
from cytofm_cli.slides.jpeg_check import is_sound
from cytofm_cli.units import Box

# Above this share of its tiles a slide is refused.
MOST_DAMAGED: Final = 0.1
_SMALLEST_PX: Final = 256


class Damage:
    """What of a slide is damaged; any thread may ask and tell."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sound: dict[tuple[NativeJpeg, int, int], bool] = {}
        self._rows: set[int] = set()

    @property
    def n_tiles(self) -> int:
        """Tiles that are blank in part or as a whole."""
        return len(self._rows)

    def tell(self, row: int) -> None:
        """Count a tile of the store as damaged."""
        with self._lock:
            self._rows.add(row)

    def stream(self, jpeg: NativeJpeg, column: int, row: int) -> bytes | None:
        """Return the stream of one of the file's own tiles; None where the file leaves it out.

        Raises:
            SlideError: it is damaged.
        """
        stream = jpeg.stream(column, row)
        if stream is not None and not self._is_sound(stream, (jpeg, column, row)):
            raise SlideError(f"damaged JPEG tile at column {column}, row {row}.")
        return stream

    def refuse_too_much(self, path: str | Path, n_tiles: int) -> None:
        """Refuse a slide of whose tiles too many are damaged.

        Raises:
            SlideError: more than a tenth.
        """
        if self.n_tiles > MOST_DAMAGED * n_tiles:
            raise SlideError(
                f"{path}: {self.n_tiles} of {n_tiles} tiles are damaged.",
                hint="copy the file again from its source.",
            )

    def _is_sound(self, stream: bytes, key: tuple[NativeJpeg, int, int]) -> bool:
        with self._lock:
            known = self._sound.get(key)
        if known is None:
            known = is_sound(stream)
            with self._lock:
                self._sound[key] = known
        return known


class LenientReader:
    """A reader whose damaged parts are blank: `read` of `SlideReader` for one tile."""

    def __init__(
        self, reader: SlideReader, damage: Damage, jpeg: NativeJpeg | None, fill: int
    ) -> None:
        self.info = reader.info
        self.has_damage = False
        self._reader = reader
        self._damage = damage
        self._jpeg = jpeg
        self._fill = fill

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box; what cannot be read, or whose JPEG data are damaged, is blank."""
        try:
            pixels = self._reader.read(level, box)
        except SlideError:
            return self._read_parts(level, box)
        bad = [] if self._jpeg is None else list(self._damaged_tiles(self._jpeg, box))
        if bad:
            self.has_damage = True
            pixels = pixels.copy()
            for x, y, w, h in bad:
                pixels[max(0, y) : y + h, max(0, x) : x + w] = self._fill
        return pixels

    def _read_parts(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Halve a box that cannot be read until what is lost is small."""
        if max(box.w, box.h) <= _SMALLEST_PX:
            self.has_damage = True
            return np.full((box.h, box.w, 3), self._fill, np.uint8)
        if box.w >= box.h:
            half = box.w // 2
            parts = [box._replace(w=half), box._replace(x=box.x + half, w=box.w - half)]
            return np.concatenate([self.read(level, part) for part in parts], axis=1)
        half = box.h // 2
        parts = [box._replace(h=half), box._replace(y=box.y + half, h=box.h - half)]
        return np.concatenate([self.read(level, part) for part in parts], axis=0)

    def _damaged_tiles(self, jpeg: NativeJpeg, box: Box) -> Iterator[Box]:
        """Yield the file's damaged tiles under a box, relative to it."""
        width, height = jpeg.tile_px
        for row in range(box.y // height, -(-(box.y + box.h) // height)):
            for column in range(box.x // width, -(-(box.x + box.w) // width)):
                try:
                    self._damage.stream(jpeg, column, row)
                except SlideError:
                    yield Box(column * width - box.x, row * height - box.y, width, height)
