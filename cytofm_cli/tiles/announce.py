"""What the user is told about the tiles of a slide, a line at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import StoreError
from cytofm_cli.slides.base import NO_MICROSCOPE, SlideReader
from cytofm_cli.store import io, schema
from cytofm_cli.store.records import TileRecord
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.focal_word import BEST, FUSE, number_of
from cytofm_cli.tiles.plan import TilePlan
from cytofm_cli.tiles.read import Resolution
from cytofm_cli.tiles.told import limits_line, regions_line
from cytofm_cli.units import human_bytes

# Notes of readers on the focal plane that they take; here `_about_focus` speaks.
_ABOUT_PLANES = ("where none is chosen", "focal planes OpenSlide reads")
Note = Callable[[str], None]


def announce(job: TileJob, reader: SlideReader, plan: TilePlan, n_bytes: int, note: Note) -> None:
    """Say what will be stored, and what is odd about the slide or the choice."""
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
        f"{job.slide_id}: {n} of {plan.n_grid} tiles of {job.config.side_px} px at "
        f"{plan.read.mpp:.4g} µm/px{_by_whom(reader, plan.resolution)} "
        f"({share:.1%} of the slide), {how}{_of_planes(plan)}"
        f"{f', about {human_bytes(n_bytes)}' if n_bytes else ''}"
    )
    for line in _narrowed(plan):
        note(f"{job.slide_id}: {line}")
    for remark in [*_remarks(reader, plan), *_about_focus(job, reader, plan)]:
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
    segmentation = plan.overview.segmentation
    if segmentation is not None and segmentation.unsure:
        note(f"warning: {job.slide_id}: unsure of the foreground: {segmentation.unsure}")


def _of_planes(plan: TilePlan) -> str:
    """Say which focal planes are stored."""
    if plan.planes is None:
        return "" if plan.focus is None else f", focal {plan.focus.replace(':', ' ')}"
    n_planes = plan.planes.focus_NP.shape[1]
    if plan.focus == FUSE:
        return f", {n_planes} focal planes fused"
    counts = np.bincount(plan.planes.plane_N, minlength=n_planes).tolist()
    return f", the sharpest of {n_planes} focal planes ({' + '.join(map(str, counts))} tiles)"


def _about_focus(job: TileJob, reader: SlideReader, plan: TilePlan) -> list[str]:
    """Say where `--focus` could not do what it says."""
    wanted = job.config.focus
    if plan.focus is None and wanted != BEST:
        return [f"has one focal plane: --focus {wanted} changes nothing"]
    if plan.focus not in (None, wanted) and number_of(wanted) is None:
        n_planes = reader.info.n_focal_planes
        return [
            f"of {n_planes} focal planes {reader.info.reader} reads only number "
            f"{reader.info.focal_plane}: --focus {wanted} takes that one"
        ]
    return []


def _narrowed(plan: TilePlan) -> list[str]:
    """Say what regions and limits of quality did, if there are some."""
    lines = [] if plan.regions is None else [regions_line(plan.regions, plan.n_foreground)]
    return lines + ([] if plan.limits is None else [limits_line(plan.limits, plan.n_candidates)])


def _remarks(reader: SlideReader, plan: TilePlan) -> list[str]:
    """Return what is odd about the file: another page, plane or channel could have been meant."""
    resolution = plan.resolution
    corrected = resolution.source in ("manifest", "--slide-mpp")
    return [
        remark
        for remark in reader.info.notes
        if not any(words in remark for words in _ABOUT_PLANES)
        and remark not in resolution.warning
        and not (corrected and NO_MICROSCOPE in remark)
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


def announce_loss(path: Path, note: Note) -> None:
    """Say which later steps go with a store that is made anew: they saw other tiles."""
    with contextlib.suppress(StoreError):
        later = sorted(set(io.open_store(path).steps) - {schema.TILE_STEP})
        if later:
            note(f"warning: {path.name} is replaced; it drops {', '.join(later)}")


def announce_damage(job: TileJob, record: TileRecord, note: Note) -> None:
    """Say how many tiles could not be read whole."""
    if record.n_damaged:
        note(
            f"warning: {job.slide_id}: {record.n_damaged} of {record.n_tiles} tiles are "
            "damaged in the file; what is lost of them is stored blank"
        )
