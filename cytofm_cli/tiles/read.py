"""Read tiles at a wanted resolution: choose the level, read, resample with antialiasing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import MissingMppError, SlideError
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.units import UM_PX_AT_1X, Box, Size, is_plausible_mpp

A = TypeVar("A")
B = TypeVar("B")

_CONTRADICTION = 0.01  # relative; two ways to write one resolution differ by less
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """The resolution of a slide, and who states it.

    Attributes:
        mpp: µm/px of level 0.
        source: "manifest", "file (<property>)", "objective", "--slide-mpp" or "--mpp".
        warning: what the user should look at; empty if there is nothing.
    """

    mpp: float
    source: str
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadPlan:
    """How tiles of `tile_px` are cut from one level.

    Attributes:
        level: the level that is read.
        downsample: pixels of level 0 to a pixel of that level.
        scale: pixels of that level to a pixel of the tile; 1 means no resampling.
        tile_px: side of a tile.
        mpp: µm/px of the tiles as they are.
        slide_mpp: µm/px of level 0.
    """

    level: int
    downsample: float
    scale: float
    tile_px: int
    mpp: float
    slide_mpp: float

    @property
    def tile_px0(self) -> float:
        """Side of a tile in level-0 pixels."""
        return self.tile_px * self.scale * self.downsample

    def px0(self, length_px: float) -> float:
        """Convert a length in tile pixels to level-0 pixels."""
        return length_px * self.scale * self.downsample


def plan_reading(
    info: SlideInfo, *, slide_mpp: float, target_mpp: float, tile_px: int, tolerance: float
) -> ReadPlan:
    """Choose the level for a wanted resolution.

    A level within `tolerance` of the target is read as it is; else the next finer level is
    resampled. Nothing is ever enlarged.

    Args:
        info: facts of the slide.
        slide_mpp: µm/px of level 0.
        target_mpp: wanted µm/px.
        tile_px: side of a tile at the target.
        tolerance: relative difference that counts as equal.

    Raises:
        SlideError: the slide is coarser than the target.
    """
    mpps = [slide_mpp * level.downsample for level in info.levels]
    excess = [mpp / target_mpp - 1 for mpp in mpps]
    usable = [i for i, by in enumerate(excess) if by <= tolerance + _ROUNDING]
    if not usable:
        raise SlideError(
            f"{info.path}: has {slide_mpp:.4g} µm/px, coarser than the wanted {target_mpp:.4g}.",
            hint=f"--mpp {slide_mpp:.4g} for all slides makes them alike, finer ones are reduced "
            "(nothing is ever enlarged); if it is not the slide's, state its own in the column "
            "mpp of a --manifest.",
        )
    level = max(usable, key=lambda i: mpps[i])
    equal = abs(excess[level]) <= tolerance + _ROUNDING
    return ReadPlan(
        level=level,
        downsample=info.levels[level].downsample,
        scale=1.0 if equal else target_mpp / mpps[level],
        tile_px=tile_px,
        mpp=mpps[level] if equal else target_mpp,
        slide_mpp=slide_mpp,
    )


def resolve_mpp(
    info: SlideInfo,
    *,
    manifest_mpp: float | None,
    slide_mpp: float | None,
    tile_mpp: float | None = None,
) -> Resolution:
    """Return the resolution of level 0: of manifest, file, objective, or the command line.

    The manifest wins over the file: a user who writes it knows that the file is wrong. The
    command line speaks to files that say nothing, so it loses to whatever a file says.

    Args:
        info: facts of the slide.
        manifest_mpp: µm/px of this slide in the manifest.
        slide_mpp: --slide-mpp, for files that state nothing.
        tile_mpp: --mpp if it was given: the last resort, for scripts from before --slide-mpp.

    Raises:
        MissingMppError: nobody states it.
    """
    if manifest_mpp is not None:
        return Resolution(mpp=manifest_mpp, source="manifest")
    if info.mpp is not None:
        return Resolution(mpp=info.mpp, source=f"file ({info.mpp_source})")
    unusable = [note for note in info.notes if "µm/px" in note]
    by_objective = UM_PX_AT_1X / info.objective if info.objective else None
    if by_objective is not None and is_plausible_mpp(by_objective):
        warning = " ".join(unusable)
        if slide_mpp is not None and abs(slide_mpp / by_objective - 1) > _CONTRADICTION:
            warning = (
                f"--slide-mpp {slide_mpp:g} is not used: the file states an objective of "
                f"{info.objective:g}×, {by_objective:.4g} µm/px; a --manifest with a column mpp "
                "wins over it"
            )
        return Resolution(mpp=by_objective, source="objective", warning=warning)
    if slide_mpp is not None:
        return Resolution(mpp=slide_mpp, source="--slide-mpp")
    if tile_mpp is not None:
        warning = (
            f"the file states no resolution and is taken at --mpp {tile_mpp:g}; say --slide-mpp "
            f"{tile_mpp:g} if that is what it has"
        )
        return Resolution(mpp=tile_mpp, source="--mpp", warning=warning)
    why = "".join(f" {note}" for note in unusable)
    raise MissingMppError(
        f"{info.path}: the file states no resolution.{why}",
        hint="--slide-mpp 0.25 if all such slides were taken at 40×, 0.5 at 20×; where they "
        "differ, a --manifest with the columns slide_id,path,mpp.",
    )


class Readable(Protocol):
    """The part of a `SlideReader` that cuts tiles."""

    info: SlideInfo

    def read(self, level: int, box: Box) -> NDArray[np.uint8]:
        """Read a box; see `SlideReader.read`."""
        ...


def read_tile(
    reader: Readable, plan: ReadPlan, x_px0: int, y_px0: int, *, fill: int = 255
) -> NDArray[np.uint8]:
    """Read one tile as (tile_px, tile_px, 3) uint8 RGB.

    Args:
        reader: the open slide.
        plan: level and scale.
        x_px0: left edge, level-0 pixels.
        y_px0: top edge, level-0 pixels.
        fill: grey level beyond the edge of the slide (255 bright-field, 0 dark-field).
    """
    size = reader.info.levels[plan.level].size_px
    side = max(1, round(plan.tile_px * plan.scale))
    x, y = round(x_px0 / plan.downsample), round(y_px0 / plan.downsample)
    box = _clip(Box(x, y, side, side), size)
    pixels = reader.read(plan.level, box)
    if (box.w, box.h) != (side, side):
        padded = np.full((side, side, 3), fill, dtype=np.uint8)
        padded[box.y - y : box.y - y + box.h, box.x - x : box.x - x + box.w] = pixels
        pixels = padded
    return resample(pixels, plan.tile_px)


def resample(
    pixels_HWC: NDArray[np.uint8], side_px: int, height_px: int | None = None
) -> NDArray[np.uint8]:
    """Shrink a picture with an antialiasing (Lanczos 3) filter.

    Args:
        pixels_HWC: the picture.
        side_px: width of the result.
        height_px: its height; None: the same.
    """
    wanted = (side_px if height_px is None else height_px, side_px)
    height, width = pixels_HWC.shape[:2]
    if (height, width) == wanted:
        return pixels_HWC
    import pyvips

    image = pyvips.Image.new_from_memory(
        np.ascontiguousarray(pixels_HWC), width, height, 3, "uchar"
    ).copy(interpretation="srgb")
    small = image.resize(wanted[1] / width, vscale=wanted[0] / height, kernel="lanczos3")
    shrunk: NDArray[np.uint8] = np.asarray(small.numpy(), dtype=np.uint8)
    return shrunk[: wanted[0], : wanted[1]]


def ordered_map(
    pool: Executor, function: Callable[[A], B], items: Iterable[A], *, window: int
) -> Generator[B, None, None]:
    """Map in threads, in order, with at most `window` results waiting: memory stays flat."""
    running: deque[Future[B]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= window:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _clip(box: Box, size: Size) -> Box:
    left, top = min(max(box.x, 0), size.w - 1), min(max(box.y, 0), size.h - 1)
    right = min(max(box.x + box.w, left + 1), size.w)
    bottom = min(max(box.y + box.h, top + 1), size.h)
    return Box(left, top, right - left, bottom - top)
