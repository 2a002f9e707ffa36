"""Which file of nuclei belongs to which slide, and which rows of a table."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.tables import SLIDE_NAMES, Table, match_slide, read_table

GEOJSON: Final = (".geojson", ".json")
LABELS: Final = (".png", ".tif", ".tiff")
TABLES: Final = (".csv", ".tsv", ".txt")
SUFFIXES: Final = (*GEOJSON, *TABLES, *LABELS)
# Columns that tell a table of nuclei from its other lines and separators.
EXPECTED: Final = (*SLIDE_NAMES, "x", "y", "centroid x µm", "centroid x px", "classification")
_FIELD: Final = "{slide_id}"
# QuPath calls the pictures of one file `slide.scn - image 2`; scripts call files
# `slide_detections`.
_SERIES: Final = re.compile(r"^(.*\.\w+) - .*$")
_KIND: Final = re.compile(
    r"[ _.-](detections?|cells|nuclei|objects|measurements|labels?|mask)$", re.I
)


@dataclass(frozen=True)
class NucleiFiles:
    """Files of nuclei by slide.

    Attributes:
        of_slide: the file of each slide that has one.
        unmatched: what belongs to no slide: files, or names in the slide column of a table.
    """

    of_slide: dict[str, Path]
    unmatched: list[str] = field(default_factory=list)


def match_files(source: Path, slide_ids: Sequence[str]) -> NucleiFiles:
    """Find the file of each slide.

    Args:
        source: a folder or glob, whose files are named after slides; a pattern with `{slide_id}`;
            or one file, for one slide or with a column that names the slide.
        slide_ids: all slides, also those of other parts of the job.

    Raises:
        UsageError: one file that does not tell slides apart for several of them, a table of other
            slides, two files for one slide, or a pattern with another field.
        InputError: no such file or folder, or an unreadable table.
    """
    text = str(source)
    if _FIELD in text:
        of_slide = {i: Path(text.replace(_FIELD, i)) for i in slide_ids}
        of_slide = {i: path for i, path in of_slide.items() if path.is_file()}
        every = glob.glob(glob.escape(text).replace(glob.escape(_FIELD), "*"))
        return NucleiFiles(of_slide, sorted(set(every) - {str(p) for p in of_slide.values()}))
    if source.is_dir():
        found = [path for path in source.iterdir() if path.suffix.lower() in SUFFIXES]
        return _by_name(source, [p for p in found if not p.name.startswith(".")], slide_ids)
    if source.is_file():
        return _one_file(source, slide_ids)
    if glob.has_magic(text):
        return _by_name(source, [Path(path) for path in glob.glob(text)], slide_ids)
    hint = "in a pattern write {slide_id}" if "{" in text else "check --nuclei"
    raise InputError(f"{source}: no such file or folder.", hint=hint)


def slide_of(name: str, slide_ids: Collection[str]) -> str | None:
    """Find the slide that a cell, or a file without its last suffix, names."""
    series = _SERIES.match(name)
    names = [name, *([series[1]] if series else [])]
    names += [_KIND.sub("", word) for word in names]
    return next((found for word in names if (found := match_slide(word, slide_ids))), None)


def slide_column(table: Table) -> str | None:
    """Return the column that names the slide of each row, if there is one."""
    found = table.find(*SLIDE_NAMES)
    return found[0] if found else None


def _by_name(source: Path, files: Sequence[Path], slide_ids: Sequence[str]) -> NucleiFiles:
    of_slide: dict[str, Path] = {}
    unmatched = []
    for path in sorted(files):
        slide = slide_of(path.name[: -len(path.suffix)], slide_ids)
        if slide is None:
            unmatched.append(str(path))
        elif slide in of_slide:
            raise UsageError(
                f"{source}: two files are of slide {slide}: {of_slide[slide].name} and "
                f"{path.name}.",
                hint=f"name the kind: --nuclei '{path.parent / (_FIELD + path.suffix)}'",
            )
        else:
            of_slide[slide] = path
    return NucleiFiles(of_slide, unmatched)


def _one_file(path: Path, slide_ids: Sequence[str]) -> NucleiFiles:
    names = _slides_in(path)
    if names is None:
        if len(slide_ids) > 1:
            raise UsageError(
                f"{path}: does not say which slide its nuclei are of, and {len(slide_ids)} slides "
                "are given.",
                hint="--nuclei FOLDER with a file for each slide, named after it, or a table with "
                "a column slide_id",
            )
        return NucleiFiles({slide_ids[0]: path})
    slides = {name: slide_of(name, slide_ids) for name in names}
    of_slide = {slide: path for slide in slides.values() if slide is not None}
    if not of_slide:
        raise UsageError(
            f"{path}: is of {_some(names)} and of none of the slides given ({_some(slide_ids)}).",
            hint="names must agree; a file for one slide needs no such column",
        )
    return NucleiFiles(of_slide, [f"{name} (in {path})" for name, s in slides.items() if s is None])


def _slides_in(path: Path) -> list[str] | None:
    """Return the names in the slide column of a table; None for other files and tables."""
    if path.suffix.lower() not in TABLES:
        return None
    table = read_table(path, EXPECTED, allow_empty=True)
    column = slide_column(table)
    return sorted(set(table.columns[column])) if column and len(table) else None


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + more
