"""OpenSlide: Hamamatsu, MIRAX, Leica, Ventana, Philips, Sakura, Zeiss, DICOM and others.

Transparent pixels, those outside the scanned area, become white. OpenSlide keeps a handle
in error after one bad tile, so the handle is replaced after each error. Levels whose
downsample is no whole number come slightly blurred: OpenSlide interpolates there.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.registry import ReaderPlugin
from cytofm_cli.slides import adopt, colour, native_jpeg, pyramid, tiff
from cytofm_cli.slides.base import (
    Level,
    NativeJpeg,
    SlideInfo,
    SlideReader,
    check_box,
    mean_mpp,
    parse_float,
    slide_error,
)
from cytofm_cli.slides.blocks import damaged, on_white, overview_by_blocks
from cytofm_cli.slides.tile_check import CheckedLevels
from cytofm_cli.units import Box, Size

NAME: Final = "openslide"

# DICOM transfer syntaxes (PS3.5 annex A); everything unlisted is "unknown".
_DICOM_CODECS: Final = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.1.99": "deflate",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
    "1.2.840.10008.1.2.4.201": "htj2k",
    "1.2.840.10008.1.2.4.202": "htj2k",
    "1.2.840.10008.1.2.4.203": "htj2k",
    "1.2.840.10008.1.2.5": "rle",
}
_MIRAX_CODEC: Final = "mirax.LAYER_0_LEVEL_0_SECTION.IMAGE_FORMAT"
# As for TIFF (see `tiff.verify`): with fewer of its frames a slide is broken, not sparse.
_MIN_STORED: Final = 200


class OpenSlideReader(SlideReader):
    """A slide read through OpenSlide."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._slide: Any = _open_handle(path)
        self._directories = _directories(path)
        self.info = _info(path, self._slide, self._directories)
        self._checks = self._all_checks()
        self._levels = tuple(range(len(self.info.levels)))
        layout = pyramid.of_file(path)
        if layout is not None:
            why = adopt.refusal(layout, _decodes)
            if why:
                raise slide_error(path, f"{why}.", "leave --reader at auto.")
            self.info, self._levels = adopt.with_facts(
                self.info, layout, self._directories, self.read
            )
            self._checks = self._all_checks()

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        self._checks.refuse_broken(level, box)
        # Another thread may have put the handle in error: the second try has a fresh one.
        try:
            return self._read(level, box)
        except SlideError:
            return self._read(level, box)

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`."""
        return overview_by_blocks(self.info, downsample, self.read)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return the JPEG tiles of a level where OpenSlide reads an ordinary TIFF."""
        if not 0 <= level < len(self.info.levels):
            return None
        ordinary = self._ordinary(level)
        return native_jpeg.open_tiles(self._path, ordinary[0]) if ordinary else None

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            self._slide = None
            self._checks.clear()

    def _all_checks(self) -> CheckedLevels:
        levels = [self._ordinary(level) for level in range(len(self.info.levels))]
        return CheckedLevels(self._path, levels)

    def _ordinary(self, level: int) -> list[tiff.Directory]:
        """Return the directory of a level of an ordinary TIFF, if it is the only one that fits."""
        if self.info.format not in ("aperio", "generic-tiff"):
            return []
        size = self.info.levels[level].size_px
        same = [d for d in self._directories if d.tile_px and d.size_px == size]
        return same if len(same) == 1 else []

    def _read(self, level: int, box: Box) -> NDArray[np.uint8]:
        import openslide

        with self._lock:
            if self._slide is None:
                self._slide = _open_handle(self._path)
            slide = self._slide
        corner = _level0_corner(self.info, level, box)
        try:
            size = (box.w, box.h)
            return on_white(np.asarray(slide.read_region(corner, self._levels[level], size)))
        except (openslide.OpenSlideError, OSError, ValueError) as error:
            with self._lock:
                # Never closed here: another thread may be reading through it. The last
                # reference closes it.
                if self._slide is slide:
                    self._slide = None
            raise damaged(self._path, level, box, error) from error


class OpenSlidePlugin:
    """Opens the scanners' own formats."""

    def probe(self, path: str) -> str | None:
        """Say why OpenSlide should not read `path`; None if it should."""
        if "://" in path:
            return "reads local files only"
        import openslide

        return None if openslide.OpenSlide.detect_format(path) else "not a format that it knows"

    def open(self, path: str) -> OpenSlideReader:
        """Open a slide."""
        return OpenSlideReader(path)


def _decodes(model: colour.Model) -> bool:
    """Tell whether libtiff's RGBA interface, which OpenSlide asks, gives the right colours."""
    return model.plain or model.kind == "ycbcr"


def _open_handle(path: str) -> Any:
    import openslide

    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise slide_error(path, str(error)) from error


def _level0_corner(info: SlideInfo, level: int, box: Box) -> tuple[int, int]:
    """Convert the corner of a box to level-0 pixels, which is what OpenSlide takes.

    At levels whose downsample is no whole number OpenSlide interpolates between pixels by the
    rest, at most half a level-0 pixel when rounded to the nearest.
    """
    downsample = info.levels[level].downsample
    return round(box.x * downsample), round(box.y * downsample)


def _directories(path: str) -> list[tiff.Directory]:
    try:
        return tiff.read_directories(path)
    except SlideError:
        return []  # not a TIFF


def _info(path: str, slide: Any, directories: list[tiff.Directory]) -> SlideInfo:
    properties = dict(slide.properties)
    _verify_dicom(path, properties)
    um = [parse_float(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    mpp, note = mean_mpp(um[0], um[1])
    z_offsets = {d.number(tiff.NDPI_Z_OFFSET) for d in directories if tiff.NDPI_FORMAT in d.tags}
    dicom_planes = parse_float(properties.get("dicom.TotalPixelMatrixFocalPlanes")) or 1
    n_planes = max(1, len(z_offsets), int(dicom_planes))
    notes = [note] if note else []
    if n_planes > 1:
        more = "; cytofm[dicom] reads all" if dicom_planes > 1 else ""
        notes.append(f"Of {n_planes} focal planes OpenSlide reads the one it calls first{more}.")
    return SlideInfo(
        path=path,
        reader=NAME,
        format=properties.get("openslide.vendor", "unknown"),
        levels=tuple(_level(slide, properties, level) for level in range(slide.level_count)),
        mpp=mpp,
        mpp_source="openslide.mpp-x" if mpp else None,
        codec=_codec(properties, directories),
        objective=parse_float(properties.get("openslide.objective-power")),
        n_focal_planes=n_planes,
        has_icc_profile="openslide.icc-size" in properties,
        bounds_px0=_bounds(properties, Size(*slide.dimensions)),
        centre_nm=_centre(properties),
        notes=tuple(notes),
    )


def _bounds(properties: dict[str, str], size: Size) -> Box | None:
    """Return the scanned part of level 0 (MIRAX, SCN and others state it), None for all of it."""
    names = ("x", "y", "width", "height")
    numbers = [parse_float(properties.get(f"openslide.bounds-{name}")) for name in names]
    x, y, w, h = (int(number) if number is not None else -1 for number in numbers)
    inside = x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= size.w and y + h <= size.h
    return Box(x, y, w, h) if inside and (w, h) != size else None


def _centre(properties: dict[str, str]) -> tuple[float, float] | None:
    """Return where the middle of the picture lies on the glass, nm, if Hamamatsu says so."""
    x, y = (parse_float(properties.get(f"hamamatsu.{a}OffsetFromSlideCentre")) for a in "XY")
    return None if x is None or y is None else (x, y)


def _level(slide: Any, properties: dict[str, str], level: int) -> Level:
    width, height = slide.level_dimensions[level]
    tile = [properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")]
    native = Size(int(tile[0]), int(tile[1])) if tile[0] and tile[1] else None
    return Level(
        size_px=Size(width, height),
        downsample=max(1.0, slide.level_downsamples[level]),
        native_tile_px=native,
    )


def _codec(properties: dict[str, str], directories: list[tiff.Directory]) -> str:
    if directories:  # the largest is of level 0; the first may be a label
        return max(directories, key=lambda d: d.size_px.w * d.size_px.h).codec
    if _MIRAX_CODEC in properties:
        return properties[_MIRAX_CODEC].lower()
    return _DICOM_CODECS.get(properties.get("dicom.TransferSyntaxUID", ""), "unknown")


def _verify_dicom(path: str, properties: dict[str, str]) -> None:
    """Refuse a DICOM slide that holds next to none of the frames that its size needs."""
    names = ("TotalPixelMatrixColumns", "TotalPixelMatrixRows", "Columns", "Rows", "NumberOfFrames")
    numbers = [parse_float(properties.get(f"dicom.{name}")) for name in names]
    if any(number is None or number < 1 for number in numbers):
        return
    width, height, columns, rows, frames = (int(number) for number in numbers if number)
    expected = math.ceil(width / columns) * math.ceil(height / rows)
    full = properties.get("dicom.DimensionOrganizationType") == "TILED_FULL"
    if frames * _MIN_STORED < expected or (full and frames < expected):
        raise slide_error(
            path,
            f"claims {width} x {height} px but holds {frames} of {expected} frames.",
            "copy all files of the series again from their source.",
        )


PLUGIN = ReaderPlugin(
    make=OpenSlidePlugin,
    summary="NDPI, MRXS, SCN, BIF, VMS, SVSLIDE, CZI, Philips TIFF, DICOM",
    needs=("openslide",),
    suffixes=(
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".vms",
        ".vmu",
        ".bif",
        ".svslide",
        ".czi",
        ".dcm",
        ".dicom",
    ),
    turn=20,
    sample="cytofm_cli.testing.samples.slides:openslide",
)
