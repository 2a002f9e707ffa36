"""Is a slide tiled already as it is asked for now? Told by what the settings come to."""

from __future__ import annotations

from pathlib import Path

from cytofm_cli.config import differences
from cytofm_cli.errors import ConfigMismatchError, MissingMppError, SlideError
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store import io, schema
from cytofm_cli.tiles import focal, pixels, settings
from cytofm_cli.tiles.config import TileJob
from cytofm_cli.tiles.read import ReadPlan, Resolution, plan_reading, resolve_mpp


def resolution_of(info: SlideInfo, job: TileJob) -> Resolution:
    """Return the resolution of a job's slide; see `resolve_mpp`."""
    config = job.config
    return resolve_mpp(info, manifest_mpp=job.mpp, slide_mpp=config.slide_mpp, tile_mpp=config.mpp)


def read_plan_of(info: SlideInfo, job: TileJob, slide_mpp: float) -> ReadPlan:
    """Return which level a job reads, at which scale; see `plan_reading`."""
    return plan_reading(
        info,
        slide_mpp=slide_mpp,
        target_mpp=job.config.target_mpp,
        tile_px=job.config.side_px,
        tolerance=job.config.mpp_tolerance,
    )


def find_done(job: TileJob, path: Path, mark: str, *, pixels_count: bool = True) -> io.Store | None:
    """Open the store of a slide that is tiled as the job asks for it; None: it is not.

    Args:
        job: what is asked for.
        path: where the store of the slide lies.
        mark: fingerprint of the slide.
        pixels_count: False where a store will do whatever pixels it keeps.

    Raises:
        ConfigMismatchError: it is tiled with settings that come to something else, or from
            another file; names them.
    """
    if job.overwrite or not path.exists():
        return None
    store = io.open_store(path)
    if schema.TILE_STEP not in store.steps:
        return None
    differing = _differing(job, store, pixels_count=pixels_count)
    if store.tile.input_fingerprint != mark:
        differing.append("the input itself has changed")
    if differing:
        raise ConfigMismatchError(
            f"{path}: was tiled with other settings: {'; '.join(differing)}.",
            hint="it is kept as it is; --overwrite tiles it anew, another -o keeps both.",
        )
    return store


def _differing(job: TileJob, store: io.Store, *, pixels_count: bool) -> list[str]:
    """Name the settings that would make other tiles than the store holds."""
    record, slide = store.tile, store.slide
    # Before objectives counted, --mpp stood in for the resolution of files that state one.
    guessed = slide.mpp_source == "--mpp" and slide.objective
    if settings.same_words(record, slide, settings.asked_of(job)) and not guessed:
        return []
    with open_slide(job.path, reader=job.config.reader) as opened:
        focus = focal.focus_of(opened.info, job.config.focus)
        reader = focal.at_focus(opened, focus)
        try:
            resolution = resolution_of(reader.info, job)
        except MissingMppError:  # nobody contradicts what the store knows
            resolution = Resolution(mpp=slide.mpp, source=slide.mpp_source)
        try:
            read = read_plan_of(reader.info, job, resolution.mpp)
        except SlideError:
            scales = {"mpp": (record.mpp, job.config.target_mpp)}
            scales["slide_mpp"] = (slide.mpp, resolution.mpp)
            return [f"{k}: {a:.4g} → {b:.4g}" for k, (a, b) in scales.items() if a != b]
        wanted = settings.resolved(
            settings.asked_of(job),
            mpp=read.mpp,
            slide_mpp=read.slide_mpp,
            reader=reader.info.reader,
            copies_source=pixels.find_source_tiles(reader, read, job.config, focus)[0] is not None,
            focus=focus,
            n_foreground=settings.count_of_foreground(record),
        )
    former = settings.of_record(record, slide)
    if not pixels_count:
        former |= dict.fromkeys(settings.ABOUT_PIXELS)
        wanted |= dict.fromkeys(settings.ABOUT_PIXELS)
    differing = differences(former, wanted)
    if former["slide_mpp"] != wanted["slide_mpp"]:
        differing.append(
            f"the slide's µm/px now by {resolution.source}, then by {slide.mpp_source}"
        )
    return differing
