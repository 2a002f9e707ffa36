"""The tile step for one slide: open → overview → foreground → grid → choose → write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import DiskFullError, NoForegroundError, SlideError, StoreError
from cytofm_cli.runs import provenance
from cytofm_cli.slides.base import NO_MICROSCOPE, SlideReader, finest_level_for
from cytofm_cli.slides.blocks import WHITE
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import LevelRecord, SlideRecord, TileRecord
from cytofm_cli.tiles import pixels, preview, settings
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.damage import Damage, LenientReader
from cytofm_cli.tiles.finished import is_done, read_plan_of, resolution_of
from cytofm_cli.tiles.focus import BAND_PX, FOCUS_MPP, FocusMap, measure, needs_band
from cytofm_cli.tiles.foreground import Foreground, find_foreground, overview_mpp, tile_fraction
from cytofm_cli.tiles.grid import lay_grid
from cytofm_cli.tiles.read import ReadPlan, Resolution, ordered_map
from cytofm_cli.tiles.select import choose
from cytofm_cli.units import Box, human_bytes
from cytofm_cli.work.batch import Status
from cytofm_cli.work.files import output_errors

# The thumbnail is for people: a 100 000 px slide needs no larger one.
MOST_THUMBNAIL_PX = 4096

Report = Callable[[int, int], None]
Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """Which tiles of a slide are taken, and how they are read.

    Attributes:
        read: level and scale.
        resolution: of the slide, and who states it.
        overview_HWC: picture of the slide.
        mask_HW: its foreground; all of it with `--foreground none`.
        downsample: level-0 pixels to a pixel of the overview, along x and y.
        found: what was found out about the foreground; None with `--foreground none`.
        n_grid: tiles of the whole grid.
        n_foreground: those of them that hold foreground, before `--select`.
        xy_px0: int32 (n, 2) of the tiles taken, row-major.
        foreground, focus: float32 (n,) of the tiles taken.
        source: the file's own JPEG tiles, if they will be copied.
        why_not_source: why they will not be, if the file has some.
    """

    read: ReadPlan
    resolution: Resolution
    overview_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.bool_]
    downsample: tuple[float, float]
    found: Foreground | None
    n_grid: int
    n_foreground: int
    xy_px0: NDArray[np.int32]
    foreground: NDArray[np.float32]
    focus: NDArray[np.float32]
    source: pixels.SourceTiles | None
    why_not_source: str

    @property
    def fill(self) -> int:
        """Grey level of what lies beyond the slide's edge."""
        return 0 if self.found and self.found.illumination == "dark-field" else 255


def tile_slide(job: TileJob, report: Report, note: Note) -> tuple[Status, dict[str, Any]]:
    """Tile one slide into its store.

    Returns:
        ("done" or "skipped", facts of the store).

    Raises:
        CytofmError: the slide cannot be tiled; no part of a store is left.
    """
    io.check_slide_id(job.stores, job.slide_id)
    path = io.store_path(job.stores, job.slide_id)
    mark = fingerprint_of(job.path)
    if is_done(job, path, mark):
        io.tidy(job.stores, job.slide_id, schema.TILE_STEP)
        return "skipped", _facts(path)
    with contextlib.ExitStack() as stack:
        if not job.dry_run:
            stack.enter_context(io.claim_step(job.stores, job.slide_id, schema.TILE_STEP))
            if is_done(job, path, mark):  # another process did it meanwhile
                return "skipped", _facts(path)
        reader = stack.enter_context(open_slide(job.path, reader=job.config.reader))
        plan = plan_tiles(reader, job)
        how = _how(job, plan)
        n_bytes = pixels.forecast_bytes(reader, plan.read, plan.xy_px0, **how)
        _announce(job, reader, plan, n_bytes, note)
        if job.preview is not None:
            mask = plan.mask_HW
            _draw(job, plan.overview_HWC, mask, plan.downsample, plan.xy_px0, plan.read.tile_px0)
        _announce_loss(path, note)
        if job.dry_run:
            return "done", {"n_tiles": len(plan.xy_px0), "bytes": n_bytes}
        _check_space(job, n_bytes)
        staged = stack.enter_context(io.staging(job.stores, job.slide_id, schema.TILE_STEP))
        record = _write(job, reader, plan, staged, mark, report)
        _announce_damage(job, record, note)
        commit.commit_store(
            staged, path, slide=_slide_record(job, reader, plan, mark), record=record
        )
    return "done", _facts(path)


def plan_tiles(reader: SlideReader, job: TileJob) -> TilePlan:
    """Decide which tiles of a slide are taken.

    Raises:
        NoForegroundError: none is left.
        MissingMppError, SlideError: see `resolve_mpp` and `plan_reading`.
    """
    config, info = job.config, reader.info
    resolution = resolution_of(reader.info, job)
    read = read_plan_of(reader.info, job, resolution.mpp)
    # The grid follows the file's own tiles whatever becomes of the pixels, so that the bags of
    # a slide do not depend on --pixels.
    source, why_not = pixels.find_source_tiles(reader, read, config)
    xy = lay_grid(
        info.size_px0,
        read.tile_px0,
        read.px0(config.step_px),
        align_px0=source.align_px0 if source else 1,
    )
    n_grid = len(xy)
    overview = reader.overview(overview_mpp(info.size_px0, resolution.mpp) / resolution.mpp)
    height, width = overview.shape[:2]
    downsample = (info.size_px0.w / width, info.size_px0.h / height)
    found, mask = None, np.ones((height, width), dtype=bool)
    fraction = np.ones(n_grid, dtype=np.float32)
    if config.foreground == "auto":
        found = find_foreground(overview, resolution.mpp * max(downsample))
        mask = found.mask_HW
        fraction = tile_fraction(mask, downsample, xy, read.tile_px0)
        kept = np.flatnonzero(fraction >= max(config.min_foreground, 1e-9))
        xy, fraction = xy[kept], fraction[kept]
    if not len(xy):
        if job.preview is not None:
            _draw(job, overview, mask, downsample, xy, read.tile_px0)
        raise NoForegroundError(
            f"{info.path}: none of {n_grid} tiles holds {config.min_foreground:.1%} foreground"
            f"{'; ' + found.unsure if found and found.unsure else ''}.",
            hint="look at it with `cytofm tile --preview DIR`; "
            "lower --min-foreground, or --foreground none.",
        )
    focus = measure_focus(reader, resolution.mpp, mask, job.threads).score(xy, read.tile_px0)
    taken = choose(
        fraction, focus, config.max_tiles, config.select, config.seed, slide_id=job.slide_id
    )
    return TilePlan(
        read=read,
        resolution=resolution,
        overview_HWC=overview,
        mask_HW=mask,
        downsample=downsample,
        found=found,
        n_grid=n_grid,
        n_foreground=len(xy),
        xy_px0=xy[taken],
        foreground=fraction[taken],
        focus=focus[taken],
        source=source,
        why_not_source=why_not,
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


def fingerprint_of(path: str) -> str:
    """Identify a slide; a URL is its own name.

    Raises:
        SlideError: it is not there or cannot be read.
    """
    if "://" in path:
        return path
    if not Path(path).exists():
        raise SlideError(f"{path}: no such file.", hint="check the path.")
    try:
        return provenance.fingerprint(Path(path))
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror}).") from error


def _how(job: TileJob, plan: TilePlan) -> dict[str, Any]:
    """Return how pixels are encoded."""
    source = plan.source if job.config.pixels == "source" else None
    return {"config": job.config, "source": source, "fill": plan.fill}


def _announce(job: TileJob, reader: SlideReader, plan: TilePlan, n_bytes: int, note: Note) -> None:
    n, side0 = len(plan.xy_px0), plan.read.tile_px0
    width, height = reader.info.size_px0
    share = _covered(plan.xy_px0, side0, width, height)
    how = {
        "source": "the slide's own JPEG" if plan.source else "lossless",
        "lossless": "lossless",
        "jpeg": f"JPEG quality {job.config.jpeg_quality}",
        "none": "no pixels",
    }[job.config.pixels]
    note(
        f"{job.slide_id}: {n} of {plan.n_grid} tiles of {job.config.tile_px} px at "
        f"{plan.read.mpp:.4g} µm/px{_by_whom(reader, plan.resolution)} "
        f"({share:.1%} of the slide), {how}{f', about {human_bytes(n_bytes)}' if n_bytes else ''}"
    )
    for remark in _remarks(reader, plan.resolution):
        note(f"{job.slide_id}: {remark}")
    if plan.resolution.warning:
        note(f"warning: {job.slide_id}: {plan.resolution.warning}")
    if job.config.pixels == "source" and plan.why_not_source:
        note(f"{job.slide_id}: stored lossless, because {plan.why_not_source}")
    if plan.source is not None:
        rest = [side % plan.source.align_px0 for side in reader.info.size_px0]
        if any(rest):
            note(
                f"{job.slide_id}: the grid follows the file's own tiles; {rest[0]} px at the right "
                f"and {rest[1]} px at the bottom are left out"
            )
    if plan.found is not None and plan.found.unsure:
        note(f"warning: {job.slide_id}: unsure of the foreground: {plan.found.unsure}")


def _remarks(reader: SlideReader, resolution: Resolution) -> list[str]:
    """Return what is odd about the file: another page, plane or channel could have been meant."""
    corrected = resolution.source in ("manifest", "--slide-mpp")
    return [
        remark
        for remark in reader.info.notes
        if remark not in resolution.warning and not (corrected and NO_MICROSCOPE in remark)
    ]


def _by_whom(reader: SlideReader, resolution: Resolution) -> str:
    """Say who states the resolution where it is not the file."""
    if resolution.source == "objective":
        objective = f"{reader.info.objective:g}× objective: the file states no µm/px"
        return f", the slide's {resolution.mpp:.4g} by its {objective}"
    if resolution.source in ("--slide-mpp", "--mpp"):
        return f", the slide's {resolution.mpp:.4g} by {resolution.source}"
    return ""


def _covered(xy_px0: NDArray[np.int32], side_px0: float, width: int, height: int) -> float:
    """Return the share of the slide that tiles cover, on a coarse raster; overlaps count once."""
    cells = 512
    raster = np.zeros((cells, cells), dtype=bool)
    low = np.floor(xy_px0 * cells / (width, height)).astype(int)
    high = np.ceil((xy_px0 + side_px0) * cells / (width, height)).astype(int)
    for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True):
        raster[y0:y1, x0:x1] = True
    return float(raster.mean())


def _announce_loss(path: Path, note: Note) -> None:
    """Say which later steps go with a store that is made anew: they saw other tiles."""
    with contextlib.suppress(StoreError):
        later = sorted(set(io.open_store(path).steps) - {schema.TILE_STEP})
        if later:
            note(f"warning: {path.name} is replaced; it drops {', '.join(later)}")


def _announce_damage(job: TileJob, record: TileRecord, note: Note) -> None:
    if record.n_damaged:
        note(
            f"warning: {job.slide_id}: {record.n_damaged} of {record.n_tiles} tiles are "
            "damaged in the file; what is lost of them is stored blank"
        )


def _check_space(job: TileJob, wanted: int) -> None:
    import shutil

    free = shutil.disk_usage(job.stores).free
    if wanted > 2 * free:  # the forecast is rough: refuse only what cannot fit
        raise DiskFullError(
            f"{job.stores}: {job.slide_id} needs about {human_bytes(wanted)}, "
            f"{human_bytes(free)} are free.",
            hint="make room, or --pixels none.",
        )


def _write(
    job: TileJob,
    reader: SlideReader,
    plan: TilePlan,
    staged: Path,
    mark: str,
    report: Report,
) -> TileRecord:
    """Write every array of the step; return its provenance record."""
    thumbnail, mask, factor = _thumbnail(plan)
    arrays.write(staged, schema.THUMBNAIL, thumbnail)
    arrays.write(staged, schema.FOREGROUND, mask.astype(np.uint8))
    arrays.write(staged, schema.TILE_XY, plan.xy_px0)
    arrays.write(staged, schema.TILE_FOREGROUND, plan.foreground)
    arrays.write(staged, schema.TILE_FOCUS, plan.focus)
    codec, n_bytes, n_damaged = "none", 0, 0
    if job.config.pixels != "none":
        codec, n_bytes, n_damaged = pixels.write_pixels(
            reader,
            plan.read,
            plan.xy_px0,
            staged,
            **_how(job, plan),
            threads=job.threads,
            report=report,
        )
    found = plan.found
    asked = settings.asked(job.config, job.mpp)
    acting = settings.resolved(
        asked,
        mpp=plan.read.mpp,
        slide_mpp=plan.read.slide_mpp,
        reader=reader.info.reader,
        copies_source=plan.source is not None,
        n_foreground=plan.n_foreground,
    )
    return TileRecord(
        **provenance.stamp(acting, input_fingerprint=mark),
        asked=asked,
        n_tiles=len(plan.xy_px0),
        n_grid=plan.n_grid,
        n_foreground=plan.n_foreground,
        tile_px=job.config.tile_px,
        tile_px0=plan.read.tile_px0,
        mpp=plan.read.mpp,
        level=plan.read.level,
        scale=plan.read.scale,
        thumbnail_downsample=(plan.downsample[0] * factor, plan.downsample[1] * factor),
        fill=plan.fill,
        source_codec=reader.info.codec,
        store_codec=codec,
        pixel_bytes=n_bytes,
        n_damaged=n_damaged,
        seed=job.config.seed,
        illumination=found.illumination if found else None,
        background_rgb=found.background_rgb if found else None,
        foreground_unsure=found.unsure if found else None,
    )


def _thumbnail(plan: TilePlan) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
    """Reduce overview and mask by a whole factor until a person's screen suffices."""
    image = plan.overview_HWC
    factor = -(-max(image.shape[:2]) // MOST_THUMBNAIL_PX)
    return image[::factor, ::factor], plan.mask_HW[::factor, ::factor], factor


def _slide_record(job: TileJob, reader: SlideReader, plan: TilePlan, mark: str) -> SlideRecord:
    info = reader.info
    return SlideRecord(
        slide_id=job.slide_id,
        path=job.path if "://" in job.path else str(Path(job.path).absolute()),
        reader=info.reader,
        format=info.format,
        size_px0=info.size_px0,
        levels=tuple(
            LevelRecord(size_px=level.size_px, downsample=level.downsample) for level in info.levels
        ),
        mpp=plan.read.slide_mpp,
        mpp_source=plan.resolution.source,
        codec=info.codec,
        objective=info.objective,
        n_focal_planes=info.n_focal_planes,
        focal_plane=info.focal_plane,
        has_icc_profile=info.has_icc_profile,
        bounds_px0=info.bounds_px0,
        notes=info.notes,
        fingerprint=mark,
    )


def _facts(path: Path) -> dict[str, Any]:
    record = io.open_store(path).tile
    return {
        "store": str(path),
        "n_tiles": record.n_tiles,
        "n_grid": record.n_grid,
        "mpp": record.mpp,
        "store_codec": record.store_codec,
        "pixel_bytes": record.pixel_bytes,
    }


def _draw(
    job: TileJob,
    overview_HWC: NDArray[np.uint8],
    mask_HW: NDArray[np.bool_],
    downsample: tuple[float, float],
    xy_px0: NDArray[np.int32],
    tile_px0: float,
) -> None:
    assert job.preview is not None
    picture = preview.draw(overview_HWC, mask_HW, max(downsample), xy_px0, tile_px0)
    with output_errors(job.preview):
        job.preview.mkdir(parents=True, exist_ok=True)
        preview.save_png(job.preview / f"{job.slide_id}.png", picture)
