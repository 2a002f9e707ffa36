"""opensdpc or sdpc-for-python: Sqray's .sdpc and .dyqx, through the maker's own native library.

The library crashes on files that are none, so the head of a file is checked before it sees one.
Both packages ask for opencv-python, whose files are those of the headless build that cytofm
uses: they are installed without what they ask for.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides.base import SlideInfo, mean_mpp, slide_error
from cytofm_cli.slides.foreign import ForeignReader, corner_px0, levels_of, open_with, with_notes
from cytofm_cli.slides.packages import Package, load_first
from cytofm_cli.units import Box

NAME: Final = "sdpc"
_LIBRARIES: Final = (
    "add its folders LINUX, LINUX/ffmpeg and LINUX/jpeg to LD_LIBRARY_PATH before cytofm starts."
)
PACKAGES: Final = tuple(
    Package(
        module=module,
        project=project,
        at_least=version,
        install=f"pip install --no-deps {project}",
        libraries=_LIBRARIES,
    )
    for module, project, version in (
        ("opensdpc", "opensdpc", "1.0.0"),
        ("sdpc", "sdpc-for-python", "1.0.5"),
    )
)
# The head: a mark, a version of 16 bytes, its own length, the length of the file.
_HEAD: Final = struct.Struct("<2s16xIq")
_CODECS: Final = {0: "jpeg", 1: "none", 2: "png", 4: "hevc"}


class SdpcPlugin:
    """Opens Sqray slides."""

    def probe(self, path: str) -> str | None:
        """Say why the packages should not read `path`; None if they should."""
        return "reads local files only" if "://" in path else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide."""
        package = load_first(PACKAGES)
        _verify(path)
        make = getattr(package, "OpenSdpc", None) or package.Sdpc
        slide = open_with(path, make)
        head = slide.sdpc.contents.picHead.contents
        mpp, note = mean_mpp(head.ruler or None, head.ruler or None)
        levels, places = levels_of(slide.level_dimensions)
        info = SlideInfo(
            path=path,
            reader=NAME,
            format="sqray",
            levels=levels,
            mpp=mpp,
            mpp_source="sdpc.ruler" if mpp else None,
            codec=_CODECS.get(head.sliceFormat, "unknown"),
            objective=float(head.rate) or None,
        )
        scales = slide.level_downsamples

        def read(level: int, box: Box, _plane: int) -> Any:
            place = places[level]
            return slide.read_region(corner_px0(box.x, box.y, scales[place]), place, (box.w, box.h))

        return ForeignReader(with_notes(info, [note]), read, slide.close)


def _verify(path: str) -> None:
    with Path(path).open("rb") as handle:
        head = handle.read(_HEAD.size)
    size_bytes = Path(path).stat().st_size
    mark, _, stated = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0, 0)
    if mark != b"SQ":
        raise slide_error(path, "does not begin as an SDPC slide.")
    if stated > size_bytes:
        raise slide_error(path, f"is truncated: {size_bytes} of {stated} bytes are there.")


PLUGIN = ReaderPlugin(
    make=SdpcPlugin,
    summary="Sqray SDPC, by opensdpc or sdpc-for-python (native, Linux and Windows)",
    suffixes=(".sdpc", ".dyqx"),
    only=True,
    turn=30,
    sample="cytofm_cli.testing.samples.scanners:sdpc",
)
