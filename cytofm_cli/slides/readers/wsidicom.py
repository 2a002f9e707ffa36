"""wsidicom: DICOM slides with several focal planes or optical paths."""

from __future__ import annotations

from typing import Any, Final

from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import dicom
from cytofm_cli.slides.base import SlideInfo, mean_mpp
from cytofm_cli.slides.foreign import (
    ForeignReader,
    levels_of,
    open_with,
    planes_note,
    with_notes,
)
from cytofm_cli.slides.packages import Package
from cytofm_cli.units import Box, Size

NAME: Final = "wsidicom"
PACKAGE: Final = Package(
    module="wsidicom",
    project="wsidicom",
    at_least="0.30",
    install="pip install 'cytofm[dicom]'",
)


class WsiDicomPlugin:
    """Opens DICOM slides with planes or paths."""

    def probe(self, path: str) -> str | None:
        """Say why wsidicom should not read `path`; None if it should."""
        if "://" in path:
            return "reads local files only"
        instance = dicom.read(path)
        if instance is None or instance.kind != "VOLUME":
            return "no level of a DICOM slide"
        one = dicom.planes_and_paths(path) == (1, 1)
        return "has one focal plane and one optical path" if one else None

    def open(self, path: str) -> ForeignReader:
        """Open a slide: the file's whole series."""
        package, files = PACKAGE.load(), list(dicom.series_of(path))
        slide = open_with(path, lambda _: package.WsiDicom.open(files))
        try:
            return _reader(path, slide)
        except Exception:
            slide.close()
            raise


def _reader(path: str, slide: Any) -> ForeignReader:
    all_levels = [slide.levels[i] for i in range(len(slide.levels))]
    base = all_levels[0]
    heights, paths = sorted(base.focal_planes), list(base.optical_paths)
    whole = [lv for lv in all_levels if len(lv.focal_planes) == len(heights)] or [base]
    levels, places = levels_of(
        [(level.size.width, level.size.height) for level in whole],
        Size(base.tile_size.width, base.tile_size.height),
    )
    mpp, doubt = mean_mpp(base.mpp.width, base.mpp.height)
    middle = len(heights) // 2
    info = SlideInfo(
        path=path,
        reader=NAME,
        format="dicom",
        levels=levels,
        mpp=mpp,
        mpp_source="dicom.PixelSpacing" if mpp else None,
        n_focal_planes=len(heights),
        focal_plane=middle,
        planes_um=tuple(heights) if len(heights) > 1 else None,
        reads_planes=len(heights) > 1,
    )
    told = f"Of {len(paths)} optical paths {paths[0]!r} is read." if len(paths) > 1 else None
    info = with_notes(info, [told, doubt, planes_note(len(heights), middle)])

    def read(level: int, box: Box, plane: int) -> Any:
        return slide.read_region(
            (box.x, box.y),
            whole[places[level]].level,
            (box.w, box.h),
            z=heights[plane],
            path=paths[0],
            as_array=True,
        )

    return ForeignReader(info, read, slide.close)


PLUGIN = ReaderPlugin(
    make=WsiDicomPlugin,
    summary="DICOM slides with focal planes or optical paths",
    needs=("wsidicom",),
    extra="dicom",
    suffixes=(".dcm", ".dicom"),
    only=True,
    turn=15,
    sample="cytofm_cli.testing.samples.scanners:wsidicom",
)
