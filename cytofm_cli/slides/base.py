"""What a slide is, and what every reader of slides can do.

Coordinates: boxes are (x, y, w, h) in pixels of the level that is read; arrays are
(H, W, 3) uint8 RGB. Level 0 is the finest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.units import Box, Size, is_plausible_mpp
from cytofm_cli.work.closing import Closes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Pixels whose width and height differ by more than this are not square: a single
# resolution in µm/px would be wrong for one of the two axes.
MAX_MPP_ANISOTROPY = 0.05
# Two statements of one scale may differ by this much and still mean the same.
SCALE_TOLERANCE = 0.1
DAMAGED_HINT = "copy the file again from its source."

# How the note on a print resolution ends: it is no news to who states the right one.
NO_MICROSCOPE = "is not a microscope's"


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of a pyramid.

    Attributes:
        size_px: width and height of the level.
        downsample: pixels of level 0 to a pixel of this level, ≥ 1.
        native_tile_px: size of the file's own tiles; None for strips and unknown layouts.
    """

    size_px: Size
    downsample: float
    native_tile_px: Size | None = None


@dataclass(frozen=True, kw_only=True)
class SlideInfo:
    """The facts of a slide that do not need its pixels.

    Attributes:
        path: the path or URL as it was given.
        reader: name of the reader plug-in.
        format: "aperio", "hamamatsu", "dicom", "generic-tiff", "ome-tiff", "jpeg", ...
        levels: finest first, at least one.
        mpp: µm/px of level 0 from the file, mean of x and y; None if the file has none
            that is plausible for a microscope.
        mpp_source: the property that `mpp` was read from.
        codec: how the pixels of level 0 are compressed in the file: "jpeg", "jpeg2000",
            "lzw", "deflate", "zstd", "png", "none", "unknown", ...
        objective: magnification of the objective, if the file tells.
        n_focal_planes: planes in z; 1 for a plain slide.
        focal_plane: index of the plane that is read.
        planes_um: height of each plane, µm, as the file states it; None where it does not.
        reads_planes: `SlideReader.at_plane` gives every plane, not only `focal_plane`.
        has_icc_profile: the file holds a colour profile. Pixels are never converted.
        bounds_px0: the scanned part of level 0, if the file states it and it is not all of it;
            QuPath crops to it, so its (0, 0) is that corner.
        centre_nm: how far the middle of level 0 lies from that of the glass, (x, y) in
            nanometres, as Hamamatsu's files state it: their annotations count from there.
        notes: what a user should know about how this file is read, one sentence each.
    """

    path: str
    reader: str
    format: str
    levels: tuple[Level, ...]
    mpp: float | None = None
    mpp_source: str | None = None
    codec: str = "unknown"
    objective: float | None = None
    n_focal_planes: int = 1
    focal_plane: int = 0
    planes_um: tuple[float, ...] | None = None
    reads_planes: bool = False
    has_icc_profile: bool = False
    bounds_px0: Box | None = None
    centre_nm: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def size_px0(self) -> Size:
        """Width and height of level 0."""
        return self.levels[0].size_px


@runtime_checkable
class NativeJpeg(Protocol):
    """The JPEG tiles of one level as they lie in the file.

    Attributes:
        tile_px: width and height of every tile; those at the right and the bottom edge
            are padded to it by the scanner.
        grid: columns and rows of tiles.
    """

    tile_px: Size
    grid: Size

    def stream(self, column: int, row: int) -> bytes | None:
        """Return a complete JPEG stream that any decoder shows in the right colours.

        None for a tile that the file leaves out.
        """
        ...


@runtime_checkable
class SlideReader(Closes, Protocol):
    """An open slide: `with open_slide(path) as slide`. Any thread may call its methods.

    A reader subclasses this, which makes it a context manager.
    """

    info: SlideInfo

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level as (box.h, box.w, 3) uint8 RGB.

        Transparent and missing pixels are white.

        Raises:
            UsageError: the box does not lie inside the level.
            SlideError: the file is damaged there; the next read works again.
        """
        ...

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample` of level 0, antialiased.

        The shape is (max(1, round(h / downsample)), max(1, round(w / downsample)), 3). Memory
        does not grow with the slide beyond the picture itself.

        Raises:
            UsageError: `downsample` is below 1.
            SlideError: the file is damaged.
        """
        ...

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return access to the file's own JPEG tiles of a level, if it has them."""
        ...

    def at_plane(self, plane: int) -> SlideReader:
        """Return the slide at another focal plane: same levels, `info.focal_plane` = `plane`.

        It may be this reader itself, and lives no longer than this one, which closes it. A reader
        of several planes overrides `_open_plane` and states `info.reads_planes`.

        Raises:
            UsageError: the slide has no such plane.
            SlideError: this reader cannot show it.
        """
        if plane == self.info.focal_plane:
            return self
        check_plane(self.info, plane)
        return self._open_plane(plane)

    def _open_plane(self, plane: int) -> SlideReader:
        """Return the slide at a plane that exists and is not this reader's own."""
        raise slide_error(
            self.info.path,
            f"of its {self.info.n_focal_planes} focal planes {self.info.reader} reads only "
            f"number {self.info.focal_plane}.",
            f"--focus plane:{self.info.focal_plane}, or convert it to OME-TIFF.",
        )

    def close(self) -> None:
        """Release the file. Closing twice is allowed."""
        ...


class ReaderOpener(Protocol):
    """What the `make` of a reader's plug-in makes."""

    def probe(self, path: str) -> str | None:
        """Say cheaply why this reader does not want `path`; None if it does."""
        ...

    def open(self, path: str) -> SlideReader:
        """Open a slide.

        Raises:
            SlideError: the file cannot be read; the message names the path.
        """
        ...


def check_box(info: SlideInfo, level: int, box: Box) -> None:
    """Refuse a box that does not lie inside its level.

    Raises:
        UsageError: no such level, an empty box, or a box that leaves the level.
    """
    if not 0 <= level < len(info.levels):
        raise UsageError(f"{info.path}: no level {level}; it has {len(info.levels)}.")
    width, height = info.levels[level].size_px
    inside = box.x >= 0 and box.y >= 0 and box.x + box.w <= width and box.y + box.h <= height
    if box.w < 1 or box.h < 1 or not inside:
        raise UsageError(
            f"{info.path}: box x={box.x} y={box.y} w={box.w} h={box.h} is not inside "
            f"level {level} ({width} x {height} px)."
        )


def check_plane(info: SlideInfo, plane: int) -> None:
    """Refuse a focal plane that a slide does not have.

    Raises:
        UsageError: it has none of this number.
    """
    if not 0 <= plane < info.n_focal_planes:
        raise UsageError(
            f"{info.path}: no focal plane {plane}; it has {info.n_focal_planes}.",
            hint=f"planes count from 0 to {info.n_focal_planes - 1}.",
        )


def overview_size(info: SlideInfo, downsample: float) -> Size:
    """Return the size of the slide's picture at 1/`downsample`.

    Raises:
        UsageError: `downsample` is below 1.
    """
    if not downsample >= 1:
        raise UsageError(f"{info.path}: an overview needs a downsample of 1 or more.")
    width, height = info.size_px0
    return Size(max(1, round(width / downsample)), max(1, round(height / downsample)))


def finest_level_for(levels: Sequence[Level], downsample: float) -> int:
    """Return the coarsest level that is at least as fine as 1/`downsample`.

    Half a percent of slack: 3.998 serves 4, as levels are rounded to whole pixels.
    """
    fine = [i for i, level in enumerate(levels) if level.downsample <= downsample * 1.005]
    return max(fine, key=lambda i: levels[i].downsample) if fine else 0


def mean_mpp(x: float | None, y: float | None) -> tuple[float | None, str | None]:
    """Reduce the resolutions of both axes to one, and say why if that cannot be.

    Args:
        x: µm/px along x, or None.
        y: µm/px along y, or None.

    Returns:
        (the mean, None), or (None, a note) for implausible or non-square pixels, or
        (None, None) where the file says nothing.
    """
    if x is None and y is None:
        return None, None
    x = y if x is None else x
    y = x if y is None else y
    if x is None or y is None or not (is_plausible_mpp(x) and is_plausible_mpp(y)):
        return None, f"The resolution in the file ({x:g} x {y:g} µm/px) {NO_MICROSCOPE}."
    if abs(x - y) > MAX_MPP_ANISOTROPY * min(x, y):
        return None, f"The pixels are not square ({x:g} x {y:g} µm/px): pass the resolution."
    return (x + y) / 2, None


def parse_float(text: object) -> float | None:
    """Parse a number of a slide's properties; None for anything else."""
    try:
        number = float(str(text).replace(",", "."))
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


class PlanesError(SlideError):
    """The focal planes of a slide do not fit together; a reader of one plane would hide it."""


def slide_error(path: str, what: object, hint: str = DAMAGED_HINT) -> SlideError:
    """Make a SlideError of one line that starts with the path."""
    reason = " ".join(str(what).split()) or "cannot be read"
    return SlideError(f"{path}: {reason}", hint=hint)
