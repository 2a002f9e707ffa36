"""kfbslide: KFBIO's .kfb, JPEG tiles with an index, in pure Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.slides.foreign import ForeignReader, open_with
from cytofm_cli.slides.like_openslide import SoundTiles, reader_of, refuse_hollow, resolution
from cytofm_cli.slides.packages import Package
from cytofm_cli.units import Size

NAME: Final = "kfb"
# 0.3.4: threads have file handles of their own, and offsets beyond 4 GB.
PACKAGE: Final = Package(
    module="kfbslide",
    project="kfbslide",
    at_least="0.3.4",
    install="pip install 'cytofm[kfb]'",
)


class KfbPlugin:
    """Opens KFBIO slides."""

    def probe(self, path: str) -> str | None:
        """Say why kfbslide should not read `path`; None if it should."""
        return "reads local files only" if "://" in path else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        slide = open_with(path, PACKAGE.load().OpenSlide)
        properties = slide.properties
        n_tiles, tile_px = (
            int(properties[f"kfbio.{name}"]) for name in ("tile_count", "tile_size")
        )
        try:
            refuse_hollow(path, Size(*slide.dimensions), tile_px, n_tiles)
        except SlideError:
            slide.close()
            raise
        info = SlideInfo(path=path, reader=NAME, format="kfbio", levels=(), codec="jpeg")
        tiles = SoundTiles(path, tile_px, lambda *tile: _stream(path, slide, tile_px, *tile))
        return reader_of(slide, resolution(info, properties, "kfbio.mpp"), tiles)


def _stream(path: str, slide: Any, tile_px: int, level: int, column: int, row: int) -> bytes | None:
    """Read a tile by the package's own index, the only place where offsets of tiles are."""
    index = slide._index
    number = index.lookup.get((index.level_scales[level], column * tile_px, row * tile_px))
    if number is None:
        return None
    with Path(path).open("rb") as handle:
        handle.seek(index.offsets[number])
        return handle.read(index.entries[number]["size"])


PLUGIN = ReaderPlugin(
    make=KfbPlugin,
    summary="KFBIO KFB",
    needs=("kfbslide",),
    extra="kfb",
    suffixes=(".kfb",),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:kfb",
)
