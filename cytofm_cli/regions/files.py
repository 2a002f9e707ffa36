"""The file of regions of each slide, and whether the classes that are named are anywhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.regions.base import Note
from cytofm_cli.regions.config import RegionChoice
from cytofm_cli.regions.read import GEOJSON, MASKS, XML
from cytofm_cli.runs.provenance import sha256_file
from cytofm_cli.slide_files import SlideFiles, match_several


@dataclass(frozen=True)
class RegionFile:
    """The file of regions of one slide.

    Attributes:
        path: where it lies.
        sha256: digest of its content.
        alone: it is of the only slide that is given: a class that it lacks is nowhere.
    """

    path: Path
    sha256: str
    alone: bool = True


def region_files(
    config: RegionChoice, slide_ids: Sequence[str], warn: Note
) -> dict[str, RegionFile]:
    """Return the file of regions of each slide that has one, and name what is left over.

    Args:
        config: the settings.
        slide_ids: all slides, also those of other parts of the job.
        warn: told which files are of no slide.

    Raises:
        UsageError: one file for several slides, or two files for one.
        InputError: no such file or folder.
    """
    if config.regions is None:
        return {}
    files = _match(config.regions, slide_ids)
    if told := files.leftover(len(slide_ids)):
        warn(told)
    digest = functools.cache(sha256_file)
    alone = len(slide_ids) == 1
    return {
        name: RegionFile(path, digest(path)[:16], alone) for name, path in files.of_slide.items()
    }


def _match(source: Path, slide_ids: Sequence[str]) -> SlideFiles:
    if source.is_dir():
        return _in_folder(source, slide_ids)
    if not source.is_file():
        return match_several(source, slide_ids, (), "--regions")
    if len(slide_ids) > 1:
        raise UsageError(
            f"{source}: does not say which slide its regions are of, and {len(slide_ids)} slides "
            "are given.",
            hint="--regions FOLDER with a file for each slide, named after it, or a pattern with "
            "{slide_id}",
        )
    return SlideFiles({slide_ids[0]: source})


def _in_folder(source: Path, slide_ids: Sequence[str]) -> SlideFiles:
    """Match files that hold drawings; pictures are masks of the slides that have none.

    A folder of slides may hold the regions too: `a.png` beside `a.geojson` is the slide.
    """
    drawn = match_several(source, slide_ids, (*GEOJSON, *XML), "--regions")
    others = [name for name in slide_ids if name not in drawn.of_slide]
    if not others:
        return drawn
    masks = match_several(source, slide_ids, MASKS, "--regions")
    of_slide = {name: path for name, path in masks.of_slide.items() if name in others}
    return SlideFiles({**drawn.of_slide, **of_slide}, drawn.unmatched + masks.unmatched)


def check_there(file: RegionFile | None, slide_id: str, config: RegionChoice) -> None:
    """Refuse a slide without regions where regions are asked for.

    Raises:
        InputError: it has none.
    """
    if config.regions is not None and file is None:
        raise InputError(
            f"{slide_id}: {config.regions} holds no regions of this slide.",
            hint=f"name the file after the slide, e.g. {slide_id}.geojson",
        )
