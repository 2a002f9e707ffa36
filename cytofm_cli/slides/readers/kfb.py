"""kfbslide: KFBIO's .kfb, JPEG tiles with an index, in pure Python."""

from __future__ import annotations

from typing import Final

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.slides.foreign import ForeignReader, open_with
from cytofm_cli.slides.like_openslide import reader_of, refuse_hollow, resolution
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
        return reader_of(slide, resolution(info, properties, "kfbio.mpp"))


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
