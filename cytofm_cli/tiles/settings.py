"""The settings of the tile step as they work on one slide, by which a finished step is judged.

What was typed says little: `--mpp 0.25` is the default, a file may state what `--slide-mpp`
repeats, `--seed` moves nothing without `--select random`. So settings are compared as resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytofm_cli.config import as_record, differences
from cytofm_cli.regions import config as region_config
from cytofm_cli.store.records import SlideRecord, TileRecord
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.focal_word import PLANE
from cytofm_cli.tiles.quality_config import LIMITS

COPIED = "source jpeg"  # the codec of pixels that are the file's own JPEG bytes
ABOUT_PIXELS = ("pixels", "jpeg_quality")  # which tiles there are does not depend on them


def asked(
    config: TileConfig, manifest_mpp: float | None, regions: str | None = None
) -> dict[str, Any]:
    """Return the settings as typed; the same words on the same slide need no second look.

    Args:
        config: the settings.
        manifest_mpp: µm/px that a manifest states.
        regions: digest of the file of regions, which stands for its path.
    """
    typed = as_record(config, results_only=True)
    for name in (*region_config.NAMES, *LIMITS.values()):  # older versions had none of them
        if typed[name] is None or name in region_config.NAMES:
            del typed[name]
    typed |= region_config.acting(vars(config), regions)
    return typed | {"tile_px": config.side_px, "manifest_mpp": manifest_mpp}


def asked_of(job: TileJob) -> dict[str, Any]:
    """Return the settings of a job as typed; see `asked`."""
    return asked(job.config, job.mpp, None if job.regions is None else job.regions.sha256)


def resolved(
    settings: Mapping[str, Any],
    *,
    mpp: float,
    slide_mpp: float,
    reader: str,
    copies_source: bool,
    n_foreground: int | None,
    focus: str | None = None,
) -> dict[str, Any]:
    """Return the settings that act on a slide; those that cannot change its tiles are left out.

    Args:
        settings: as typed, or resolved already.
        mpp: µm/px of the tiles as they are.
        slide_mpp: µm/px of level 0.
        reader: name of the reader that opens the slide.
        copies_source: the file's own JPEG tiles can be copied.
        n_foreground: tiles among which `select` chooses; None if nobody knows any more.
        focus: of a slide with several focal planes; see `focal.focus_of`.
    """
    acting = {
        "tile_px": settings["tile_px"],
        "stride_px": settings.get("stride_px") or settings["tile_px"],
        "mpp": _round(mpp),
        "slide_mpp": _round(slide_mpp),
        "reader": reader,
        "foreground": settings["foreground"],
        "select": "all",
        "pixels": settings["pixels"],
    }
    if settings["pixels"] == "source" and not copies_source:
        acting["pixels"] = "lossless"
    if focus is not None:
        acting["focus"] = focus
    if settings["pixels"] == "jpeg":
        acting["jpeg_quality"] = settings["jpeg_quality"]
    if settings["foreground"] == "auto":
        acting["min_foreground"] = settings["min_foreground"]
    kept = (*region_config.NAMES, *LIMITS.values())
    acting |= {name: settings[name] for name in kept if settings.get(name) is not None}
    limit = settings.get("max_tiles")
    if limit is not None and (n_foreground is None or limit < n_foreground):
        acting |= {"select": settings["select"], "max_tiles": limit}
        if settings["select"] == "random":
            acting["seed"] = settings["seed"]
    return acting


def of_record(record: TileRecord, slide: SlideRecord) -> dict[str, Any]:
    """Return the settings that made a step: of its record and the facts of its slide.

    Stores of earlier versions recorded the words, not what they came to.
    """
    return resolved(
        record.config,
        mpp=record.mpp,
        slide_mpp=slide.mpp,
        reader=slide.reader,
        copies_source=record.store_codec == COPIED,
        n_foreground=count_of_foreground(record),
        focus=focus_of_record(record, slide),
    )


def focus_of_record(record: TileRecord, slide: SlideRecord) -> str | None:
    """Return "best", "fuse" or "plane:K" of the tiles; None for a slide of one plane.

    Versions that read one plane said so in the facts of the slide.
    """
    if record.focus is not None or slide.n_focal_planes == 1:
        return record.focus
    return f"{PLANE}{slide.focal_plane}"


def count_of_foreground(record: TileRecord) -> int | None:
    """Return among how many tiles was chosen; None if an old record cannot tell."""
    if record.n_candidates is not None:
        return record.n_candidates
    if record.n_foreground is not None:
        return record.n_foreground
    limit, n = record.config.get("max_tiles"), record.n_tiles
    return n if limit is None or n < limit else None


def same_words(record: TileRecord, slide: SlideRecord, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a step was asked for in the same words."""
    asked = record.config if record.asked is None else record.asked
    if slide.n_focal_planes == 1:  # nothing to focus, whoever asked for what
        asked, wanted = dict(asked) | {"focus": None}, dict(wanted) | {"focus": None}
    return not differences(asked, wanted)


def _round(mpp: float) -> float:
    """Drop what lies below the precision of a division: 10/40 is 0.25 however it was reached."""
    return float(f"{mpp:.6g}")
