"""pyisyntax: Philips .isyntax, wavelets in tiles, through libisyntax."""

from __future__ import annotations

from typing import Any, Final

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import SlideInfo, mean_mpp
from cytofm_cli.slides.foreign import ForeignReader, levels_of, open_with, with_notes
from cytofm_cli.slides.packages import Package
from cytofm_cli.units import Box, Size

NAME: Final = "isyntax"
PACKAGE: Final = Package(
    module="isyntax",
    project="pyisyntax",
    at_least="0.1.7",
    install="pip install 'cytofm[isyntax]'",
)


class IsyntaxPlugin:
    """Opens Philips iSyntax slides."""

    def probe(self, path: str) -> str | None:
        """Say why pyisyntax should not read `path`; None if it should."""
        return "reads local files only" if "://" in path else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        slide = open_with(path, PACKAGE.load().ISyntax.open)
        mpp, note = mean_mpp(slide.mpp_x or None, slide.mpp_y or None)
        tile_px = Size(slide.tile_width, slide.tile_height)
        levels, places = levels_of(slide.level_dimensions, tile_px)
        info = SlideInfo(
            path=path,
            reader=NAME,
            format="philips-isyntax",
            levels=levels,
            mpp=mpp,
            mpp_source="isyntax.mpp_x" if mpp else None,
            codec="wavelet",
            has_icc_profile=bool(slide.read_icc_profile()),
        )

        def read(level: int, box: Box, _plane: int) -> Any:
            return slide.read_region(*box, places[level])

        return ForeignReader(with_notes(info, [note]), read, slide.close)


PLUGIN = ReaderPlugin(
    make=IsyntaxPlugin,
    summary="Philips iSyntax",
    needs=("isyntax",),
    extra="isyntax",
    suffixes=(".isyntax",),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:isyntax",
)
