"""A slide that a package of others reads: what such readers have in common.

The package gives pixels of a box; boxes are checked, threads take turns, failures are told with
their place, and what the package leaves out is white, here.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.base import (
    Level,
    NativeJpeg,
    SlideInfo,
    SlideReader,
    check_box,
    slide_error,
)
from cytofm_cli.slides.blocks import damaged, on_white, overview_by_blocks
from cytofm_cli.slides.pyramid import downsample
from cytofm_cli.units import Box, Size

# (level, box, focal plane) → (box.h, box.w), or with 1, 3 or 4 samples, uint8.
ReadBox = Callable[[int, Box, int], Any]
# A level of another shape than the slide's is no copy of it.
_SHAPE: Final = 0.02


class ForeignReader(SlideReader):
    """A slide behind a function that reads boxes.

    Args:
        info: its facts.
        read: reads a box of a level at a focal plane, any of them if `info.reads_planes`.
        close: releases the file.
    """

    def __init__(self, info: SlideInfo, read: ReadBox, close: Callable[[], object]) -> None:
        self.info = info
        self._read = read
        self._close: Callable[[], object] | None = close
        self._lock = threading.RLock()

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box of a level; see `SlideReader.read`."""
        check_box(self.info, level, box)
        try:
            with self._lock:
                pixels = as_rgb(self._read(level, box, self.info.focal_plane))
        except SlideError:
            raise
        except Exception as error:  # packages of others fail in ways of their own
            raise damaged(self.info.path, level, box, error or type(error).__name__) from error
        if pixels.shape[:2] != (box.h, box.w):
            got = f"{pixels.shape[1]} x {pixels.shape[0]} px came"
            raise damaged(self.info.path, level, box, got)
        return pixels

    def overview(self, downsample: float) -> NDArray[np.uint8]:
        """Return the whole slide at 1/`downsample`; see `SlideReader.overview`."""
        return overview_by_blocks(self.info, downsample, self.read)

    def native_jpeg(self, level: int) -> NativeJpeg | None:
        """Return None: packages of others give pixels."""
        return None

    def _open_plane(self, plane: int) -> SlideReader:
        """Return the slide at another focal plane: the same file, which this reader closes."""
        other = ForeignReader(replace(self.info, focal_plane=plane), self._read, lambda: None)
        other._lock = self._lock
        return other

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            close, self._close = self._close, None
        if close is not None:
            close()


def as_rgb(pixels: Any) -> NDArray[np.uint8]:
    """Return pixels as (H, W, 3): grey three times, transparent ones on white.

    Args:
        pixels: uint8, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a picture of Pillow.
    """
    array = np.asarray(pixels)
    if array.dtype != np.uint8:
        raise ValueError(f"{array.dtype} pixels came")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 4:
        return on_white(array)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def levels_of(
    sizes: Iterable[tuple[int, int]], tile_px: Size | None = None
) -> tuple[tuple[Level, ...], tuple[int, ...]]:
    """Make levels of a package's sizes, without those that do not fall or have another shape.

    Returns:
        the levels, and for each which of `sizes` it is.
    """
    known = [Size(*size) for size in sizes]
    levels: list[Level] = []
    places: list[int] = []
    for place, size in enumerate(known):
        if min(size) < 1:
            continue
        by = downsample(known[0], size)
        rounded = all(
            abs(size[axis] - known[0][axis] / by) <= 1 + _SHAPE * known[0][axis] / by
            for axis in (0, 1)
        )
        if rounded and (not levels or by > levels[-1].downsample):
            levels.append(Level(size_px=size, downsample=by, native_tile_px=tile_px))
            places.append(place)
    return tuple(levels), tuple(places)


def corner_px0(x: int, y: int, by: float) -> tuple[int, int]:
    """Return the level-0 pixel that a package rounds down to pixel (x, y) of a level."""
    return math.ceil(x * by), math.ceil(y * by)


def open_with(path: str, opener: Callable[[str], Any]) -> Any:
    """Call what opens a slide in a package; its failures become one line.

    Raises:
        SlideError: the package cannot open the file.
    """
    try:
        return opener(path)
    except Exception as error:  # packages of others fail in ways of their own
        why = str(error).replace(f"{path}: ", "").splitlines() or [type(error).__name__]
        raise slide_error(path, f"{why[0][:200] or type(error).__name__}") from error


def refuse_wide(path: str, dtype: object) -> None:
    """Refuse samples other than 8-bit ones.

    Raises:
        SlideError: they are.
    """
    if np.dtype(str(dtype)) != np.uint8:
        kind = np.dtype(str(dtype))
        name = f"{8 * kind.itemsize}-bit" if kind.kind in "iu" else str(kind)
        raise slide_error(
            path, f"has {name} samples; only 8-bit ones are read.", "scale it to 8 bits."
        )


def shown_channels(names: list[str]) -> tuple[list[int], str | None]:
    """Choose the channels that are shown as red, green and blue, and say which.

    Args:
        names: of all channels; empty where they have none.

    Returns:
        up to three channels: those called so, else the first; and a note where there are several.
    """
    lower = [name.strip().lower() for name in names]
    channels = list(range(min(3, len(names))))
    for wanted in (("red", "green", "blue"), ("r", "g", "b")):
        if set(wanted) <= set(lower):
            channels = [lower.index(name) for name in wanted]
    if len(names) < 2:
        return channels, None
    pairs = zip(("red", "green", "blue"), channels, strict=False)
    told = ", ".join(f"{band} = {names[channel] or channel}" for band, channel in pairs)
    return channels, f"Of {len(names)} channels these are read: {told}."


def as_bands(pictures: list[Any]) -> NDArray[np.uint8]:
    """Lay up to three channels, (H, W) each, on red, green and blue; one is grey."""
    first = np.asarray(pictures[0])
    if len(pictures) == 1:
        return first
    out = np.zeros((*first.shape[:2], 3), np.uint8)
    for band, picture in enumerate(pictures):
        out[..., band] = picture
    return out


def with_notes(info: SlideInfo, notes: Iterable[str | None]) -> SlideInfo:
    """Add the notes that there are."""
    return replace(info, notes=(*info.notes, *(note for note in notes if note)))


def heights_um(n_planes: int, step_um: float | None) -> tuple[float, ...] | None:
    """Return the height of each plane above the first; None where there is no distance, or one."""
    if n_planes < 2 or not step_um:
        return None
    return tuple(plane * abs(step_um) for plane in range(n_planes))


def planes_note(n_planes: int, plane: int) -> str | None:
    """Say which focal plane is read where there are several and none is chosen."""
    if n_planes < 2:
        return None
    return (
        f"It has {n_planes} focal planes; where none is chosen the middle one (number {plane}) "
        "is read."
    )
