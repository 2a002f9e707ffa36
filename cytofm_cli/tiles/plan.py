"""Which tiles of a slide are taken: overview → foreground → grid → focus → choose."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import NoForegroundError
from cytofm_cli.pictures.files import save_png
from cytofm_cli.slides.base import SlideReader, finest_level_for
from cytofm_cli.slides.blocks import WHITE
from cytofm_cli.tiles import focal, pixels, preview, shown
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.damage import Damage, LenientReader
from cytofm_cli.tiles.finished import read_plan_of, resolution_of
from cytofm_cli.tiles.focal_word import BEST, FUSE
from cytofm_cli.tiles.focus import BAND_PX, FOCUS_MPP, FocusMap, measure, needs_band
from cytofm_cli.tiles.foreground import Foreground, find_foreground, overview_mpp, tile_fraction
from cytofm_cli.tiles.grid import lay_grid
from cytofm_cli.tiles.narrow import Note, in_regions, labelled, wanted_regions, within_limits
from cytofm_cli.tiles.quality import Signs, find_signs
from cytofm_cli.tiles.read import ReadPlan, Resolution, ordered_map
from cytofm_cli.tiles.select import choose
from cytofm_cli.units import Box
from cytofm_cli.work.files import output_errors


@dataclass(frozen=True, eq=False, kw_only=True)
class Overview:
    """A picture of the whole slide, and what in it is foreground.

    Attributes:
        image_HWC: uint8 RGB.
        downsample: level-0 pixels to a pixel of it, along x and y.
        mask_HW: bool, its foreground; all of it with `--foreground none`.
        segmentation: how the foreground was found; None with `--foreground none`.
        signs: where something is wrong with the slide.
    """

    image_HWC: NDArray[np.uint8]
    downsample: tuple[float, float]
    mask_HW: NDArray[np.bool_]
    segmentation: Foreground | None
    signs: Signs


@dataclass(frozen=True, eq=False, kw_only=True)
class TilePlan:
    """Which tiles of a slide are taken, and how they are read.

    Attributes:
        read: level and scale.
        resolution: of the slide, and who states it.
        overview: the slide and its foreground.
        n_grid: tiles of the whole grid.
        n_foreground: those of them that hold foreground.
        n_candidates: those of them that regions and limits of quality leave, before `--select`.
        xy_px0: int32 (n, 2) of the tiles taken, row-major.
        foreground, score: float32 (n,), fraction and focus score of the tiles taken.
        focus: "best", "fuse" or "plane:K" of a slide with several focal planes; None: it has one.
        planes: which plane each tile is of; None where nobody had to choose.
        views: the reader of each tile.
        quality: the other columns of quality, float32 (n,), by name.
        label: int16 (n,), the region that labels each tile; None without regions.
        regions, limits: what the record says of them; None without.
        source: the file's own JPEG tiles, if they will be copied.
        why_not_source: why they will not be, if the file has some.
    """

    read: ReadPlan
    resolution: Resolution
    overview: Overview
    n_grid: int
    n_foreground: int
    n_candidates: int
    xy_px0: NDArray[np.int32]
    foreground: NDArray[np.float32]
    score: NDArray[np.float32]
    focus: str | None
    planes: focal.TilePlanes | None
    views: focal.TileViews
    quality: Mapping[str, NDArray[np.float32]]
    label: NDArray[np.int16] | None
    regions: Mapping[str, Any] | None
    limits: Mapping[str, Any] | None
    source: pixels.SourceTiles | None
    why_not_source: str

    @property
    def fill(self) -> int:
        """Grey level of what lies beyond the slide's edge."""
        segmentation = self.overview.segmentation
        return 0 if segmentation and segmentation.illumination == "dark-field" else 255


def plan_tiles(
    reader: SlideReader,
    job: TileJob,
    focus: str | None = None,
    note: Note = lambda _: None,
) -> TilePlan:
    """Decide which tiles of a slide are taken.

    Args:
        reader: the open slide, at the plane of "plane:K".
        job: what is asked for.
        focus: of a slide with several focal planes; see `focal.focus_of`.
        note: told what is odd about its regions.

    Raises:
        NoForegroundError: none is left.
        InputError: regions that cannot be used.
        MissingMppError, SlideError: see `resolve_mpp` and `plan_reading`.
    """
    config, info = job.config, reader.info
    resolution = resolution_of(info, job)
    read = read_plan_of(info, job, resolution.mpp)
    # The grid follows the file's own tiles whatever becomes of the pixels, so that the bags of
    # a slide do not depend on --pixels.
    source, why_not = pixels.find_source_tiles(reader, read, config, focus)
    align_px0 = source.align_px0 if source else 1
    grid_xy = lay_grid(info.size_px0, read.tile_px0, read.px0(config.step_px), align_px0=align_px0)
    overview = _look(reader, resolution.mpp, config.foreground)
    xy, fraction = _on_foreground(grid_xy, overview, read.tile_px0, config)
    if not len(xy):
        draw_preview(job, overview, xy, read.tile_px0)
        raise _no_foreground(info.path, len(grid_xy), overview, config)
    n_foreground = len(xy)
    wanted = wanted_regions(info, job, resolution.mpp, overview.mask_HW, note)
    inside = in_regions(wanted, xy, read.tile_px0, info.path)
    xy, fraction = xy[inside.rows_M], fraction[inside.rows_M]
    score, planes = _focus_of_tiles(reader, job, focus, overview, read, xy)
    quality = overview.signs.measure(overview.downsample, xy, read.tile_px0)
    good, limits = within_limits({"focus": score, **quality}, config.limits(), info.path)
    taken = good[
        choose(
            fraction[good], score[good], config.max_tiles, config.select, config.seed,
            slide_id=job.slide_id,
        )
    ]  # fmt: skip
    label = None if inside.label_M is None else inside.label_M[taken]
    chosen = None if planes is None else planes.take(taken)
    return TilePlan(
        read=read,
        resolution=resolution,
        overview=overview,
        n_grid=len(grid_xy),
        n_foreground=n_foreground,
        n_candidates=len(good),
        xy_px0=xy[taken],
        foreground=fraction[taken],
        score=score[taken],
        focus=focus,
        planes=chosen,
        views=shown.views_of(shown.as_planned(reader, focus, xy[taken], read, chosen)),
        quality={name: column[taken] for name, column in quality.items()},
        label=label,
        regions=labelled(inside.facts, label),
        limits=limits,
        source=source,
        why_not_source=why_not,
    )


def _focus_of_tiles(
    reader: SlideReader,
    job: TileJob,
    focus: str | None,
    overview: Overview,
    read: ReadPlan,
    xy_px0: NDArray[np.int32],
) -> tuple[NDArray[np.float32], focal.TilePlanes | None]:
    """Return the focus score of tiles, and their planes where somebody has to choose."""

    def measure_plane(plane: SlideReader) -> FocusMap:
        return measure_focus(plane, read.slide_mpp, overview.mask_HW, job.threads)

    if focus not in (BEST, FUSE):
        return measure_plane(reader).score(xy_px0, read.tile_px0), None
    planes = focal.find_planes(reader, measure_plane, xy_px0, read.tile_px0)
    return planes.scores(), planes


def draw_preview(
    job: TileJob, overview: Overview, xy_px0: NDArray[np.int32], tile_px0: float
) -> None:
    """Write a picture of the choice where the job asks for one."""
    if job.preview is None:
        return
    picture = preview.draw(
        overview.image_HWC, overview.mask_HW, max(overview.downsample), xy_px0, tile_px0
    )
    with output_errors(job.preview):
        job.preview.mkdir(parents=True, exist_ok=True)
        save_png(job.preview / f"{job.slide_id}.png", picture)


def _look(reader: SlideReader, slide_mpp: float, foreground: Literal["auto", "none"]) -> Overview:
    """Read the overview of a slide and find its foreground."""
    size_px0 = reader.info.size_px0
    image_HWC = reader.overview(overview_mpp(size_px0, slide_mpp) / slide_mpp)
    height, width = image_HWC.shape[:2]
    downsample = (size_px0.w / width, size_px0.h / height)
    mpp = slide_mpp * max(downsample)
    seen = find_foreground(image_HWC, mpp)
    wanted = foreground == "auto"
    return Overview(
        image_HWC=image_HWC,
        downsample=downsample,
        mask_HW=seen.mask_HW if wanted else np.ones((height, width), dtype=bool),
        segmentation=seen if wanted else None,
        signs=find_signs(image_HWC, seen, mpp),
    )


def _on_foreground(
    xy_px0: NDArray[np.int32], overview: Overview, tile_px0: float, config: TileConfig
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the tiles with enough foreground, and how much each has; all without a mask."""
    if overview.segmentation is None:
        return xy_px0, np.ones(len(xy_px0), dtype=np.float32)
    fraction = tile_fraction(overview.mask_HW, overview.downsample, xy_px0, tile_px0)
    kept = np.flatnonzero(fraction >= max(config.min_foreground, 1e-9))
    return xy_px0[kept], fraction[kept]


def _no_foreground(
    path: str, n_grid: int, overview: Overview, config: TileConfig
) -> NoForegroundError:
    unsure = overview.segmentation.unsure if overview.segmentation else None
    return NoForegroundError(
        f"{path}: none of {n_grid} tiles holds {config.min_foreground:.1%} foreground"
        f"{'; ' + unsure if unsure else ''}.",
        hint="look at it with `cytofm tile --preview DIR`; "
        "lower --min-foreground, or --foreground none.",
    )


def measure_focus(
    reader: SlideReader, slide_mpp: float, mask_HW: NDArray[np.bool_], threads: int
) -> FocusMap:
    """Measure how sharp the slide is, from bands of the level that the score needs."""
    info = reader.info
    level = finest_level_for(info.levels, max(1.0, FOCUS_MPP * 1.05 / slide_mpp))
    size = info.levels[level].size_px

    lenient = LenientReader(reader, Damage(), None, WHITE)

    def read_band(top: int) -> tuple[int, NDArray[np.uint8]]:
        return top, lenient.read(level, Box(0, top, size.w, min(BAND_PX, size.h - top)))

    tops = [top for top in range(0, size.h, BAND_PX) if needs_band(top, size, mask_HW)]
    downsample = (info.size_px0.w / size.w, info.size_px0.h / size.h)
    with ThreadPoolExecutor(threads) as pool:
        bands = ordered_map(pool, read_band, tops, window=2 * threads)
        return measure(bands, size, downsample, slide_mpp * max(downsample), mask_HW)
