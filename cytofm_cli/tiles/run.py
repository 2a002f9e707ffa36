"""The tile step for one slide: open → plan → write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import DiskFullError, SlideError, without_secrets
from cytofm_cli.runs import provenance
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import LevelRecord, SlideRecord, TileRecord
from cytofm_cli.tiles import focal, pixels, settings
from cytofm_cli.tiles.announce import Note, announce, announce_damage, announce_loss
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.finished import find_done
from cytofm_cli.tiles.focal_word import FUSE
from cytofm_cli.tiles.origin import refuse_changed
from cytofm_cli.tiles.plan import Overview, TilePlan, draw_preview, plan_tiles
from cytofm_cli.units import human_bytes
from cytofm_cli.urls import is_url
from cytofm_cli.work.batch import Status

# The thumbnail is for people: a 100 000 px slide needs no larger one.
MOST_THUMBNAIL_PX = 4096

Report = Callable[[int, int], None]


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
    if (done := find_done(job, path, mark)) is not None:
        io.tidy(job.stores, job.slide_id, schema.TILE_STEP)
        return "skipped", _facts(done)
    with contextlib.ExitStack() as stack:
        if not job.dry_run:
            stack.enter_context(io.claim_step(job.stores, job.slide_id, schema.TILE_STEP))
            if (done := find_done(job, path, mark)) is not None:  # another did it meanwhile
                return "skipped", _facts(done)
        opened = stack.enter_context(open_slide(job.path, reader=job.config.reader))
        focus = focal.focus_of(opened.info, job.config.focus)
        reader = focal.at_focus(opened, focus)
        plan = plan_tiles(reader, job, focus, note)
        how = _how(job, plan)
        # A fused tile takes as much as one of its planes, and P times the reading.
        seen = focal.TileViews([reader]) if focus == FUSE else plan.views
        n_bytes = pixels.forecast_bytes(seen, plan.read, plan.xy_px0, **how)
        announce(job, reader, plan, n_bytes, note)
        draw_preview(job, plan.overview, plan.xy_px0, plan.read.tile_px0)
        announce_loss(path, note)
        if job.dry_run:
            return "done", {"n_tiles": len(plan.xy_px0), "bytes": n_bytes}
        _check_space(job, n_bytes)
        staged = stack.enter_context(io.staging(job.stores, job.slide_id, schema.TILE_STEP))
        record = _write(job, reader, plan, staged, mark, report)
        announce_damage(job, record, note)
        refuse_changed(job.path, mark)
        commit.commit_store(
            staged, path, slide=_slide_record(job, reader, plan, mark), record=record
        )
    return "done", _facts(io.open_store(path))


def fingerprint_of(path: str) -> str:
    """Identify a slide; a URL is its own name, but for what lets in.

    Raises:
        SlideError: it is not there or cannot be read.
    """
    if is_url(path):
        return without_secrets(path)
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
    job: TileJob, reader: SlideReader, plan: TilePlan, staged: Path, mark: str, report: Report
) -> TileRecord:
    """Write every array of the step; return its provenance record."""
    thumbnail, mask, factor = _thumbnail(plan.overview)
    arrays.write(staged, schema.THUMBNAIL, thumbnail)
    arrays.write(staged, schema.FOREGROUND, mask.astype(np.uint8))
    arrays.write(staged, schema.TILE_XY, plan.xy_px0)
    arrays.write(staged, schema.TILE_FOREGROUND, plan.foreground)
    arrays.write(staged, schema.TILE_FOCUS, plan.score)
    if plan.focus is not None:
        same = np.full(len(plan.xy_px0), reader.info.focal_plane, np.int16)
        arrays.write(staged, schema.TILE_PLANE, plan.planes.plane_N if plan.planes else same)
    if plan.planes is not None:
        arrays.write(staged, schema.TILE_PLANE_FOCUS, plan.planes.focus_NP)
        arrays.write(staged, schema.TILE_PLANE_DETAIL, plan.planes.detail_NP)
    for name, column in plan.quality.items():
        arrays.write(staged, schema.TILE_QUALITY[name], column)
    if plan.label is not None:
        arrays.write(staged, schema.TILE_REGION, plan.label)
    codec, n_bytes, n_damaged = "none", 0, 0
    if job.config.pixels != "none":
        codec, n_bytes, n_damaged = pixels.write_pixels(
            plan.views,
            plan.read,
            plan.xy_px0,
            staged,
            **_how(job, plan),
            threads=job.threads,
            report=report,
        )
    along_x, along_y = plan.overview.downsample
    return _tile_record(
        job,
        reader,
        plan,
        mark,
        thumbnail_downsample=(along_x * factor, along_y * factor),
        store_codec=codec,
        pixel_bytes=n_bytes,
        n_damaged=n_damaged,
    )


def _tile_record(
    job: TileJob, reader: SlideReader, plan: TilePlan, mark: str, **written: Any
) -> TileRecord:
    """Return the provenance record of the step; `written` tells what came of writing."""
    asked = settings.asked_of(job)
    acting = settings.resolved(
        asked,
        mpp=plan.read.mpp,
        slide_mpp=plan.read.slide_mpp,
        reader=reader.info.reader,
        copies_source=plan.source is not None,
        n_foreground=plan.n_candidates,
        focus=plan.focus,
    )
    segmentation = plan.overview.segmentation
    return TileRecord(
        **provenance.stamp(acting, input_fingerprint=mark),
        asked=asked,
        n_tiles=len(plan.xy_px0),
        n_grid=plan.n_grid,
        n_foreground=plan.n_foreground,
        n_candidates=plan.n_candidates if plan.n_candidates != plan.n_foreground else None,
        tile_px=job.config.side_px,
        tile_px0=plan.read.tile_px0,
        mpp=plan.read.mpp,
        level=plan.read.level,
        scale=plan.read.scale,
        fill=plan.fill,
        source_codec=reader.info.codec,
        seed=job.config.seed,
        illumination=segmentation.illumination if segmentation else None,
        background_rgb=segmentation.background_rgb if segmentation else None,
        foreground_unsure=segmentation.unsure if segmentation else None,
        focus=plan.focus,
        regions=plan.regions,
        quality=plan.limits,
        **written,
    )


def _thumbnail(overview: Overview) -> tuple[NDArray[np.uint8], NDArray[np.bool_], int]:
    """Reduce overview and mask by a whole factor until a person's screen suffices."""
    image = overview.image_HWC
    factor = -(-max(image.shape[:2]) // MOST_THUMBNAIL_PX)
    return image[::factor, ::factor], overview.mask_HW[::factor, ::factor], factor


def _slide_record(job: TileJob, reader: SlideReader, plan: TilePlan, mark: str) -> SlideRecord:
    info = reader.info
    return SlideRecord(
        slide_id=job.slide_id,
        path=without_secrets(job.path) if is_url(job.path) else str(Path(job.path).absolute()),
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
        planes_um=info.planes_um,
        has_icc_profile=info.has_icc_profile,
        bounds_px0=info.bounds_px0,
        centre_nm=info.centre_nm,
        notes=info.notes,
        fingerprint=mark,
    )


def _facts(store: io.Store) -> dict[str, Any]:
    record = store.tile
    return {
        "store": str(store.path),
        "n_tiles": record.n_tiles,
        "n_grid": record.n_grid,
        "mpp": record.mpp,
        "store_codec": record.store_codec,
        "pixel_bytes": record.pixel_bytes,
    }
