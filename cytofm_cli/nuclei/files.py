"""Which file of nuclei belongs to which slide, and which rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cytofm_cli.errors import UsageError
from cytofm_cli.slide_files import SlideFiles, match_several, slide_of
from cytofm_cli.tables import SLIDE_NAMES, Table, read_pieces

GEOJSON: Final = (".geojson", ".json")
LABELS: Final = (".png", ".tif", ".tiff")
TABLES: Final = (".csv", ".tsv", ".txt")
SUFFIXES: Final = (*GEOJSON, *TABLES, *LABELS)
# Columns that tell a table of nuclei from its other lines and separators.
EXPECTED: Final = (*SLIDE_NAMES, "x", "y", "centroid x µm", "centroid x px", "classification")


def match_files(source: Path, slide_ids: Sequence[str]) -> SlideFiles:
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
    if source.is_file():
        return _one_file(source, slide_ids)
    return match_several(source, slide_ids, SUFFIXES, "--nuclei")


def slide_column(table: Table) -> str | None:
    """Return the column that names the slide of each row, if there is one."""
    found = table.find(*SLIDE_NAMES)
    return found[0] if found else None


def _one_file(path: Path, slide_ids: Sequence[str]) -> SlideFiles:
    names = _slides_in(path)
    if names is None:
        if len(slide_ids) > 1:
            raise UsageError(
                f"{path}: does not say which slide its nuclei are of, and {len(slide_ids)} slides "
                "are given.",
                hint="--nuclei FOLDER with a file for each slide, named after it, or a table with "
                "a column slide_id",
            )
        return SlideFiles({slide_ids[0]: path})
    slides = {name: slide_of(name, slide_ids) for name in names}
    of_slide = {slide: path for slide in slides.values() if slide is not None}
    if not of_slide:
        raise UsageError(
            f"{path}: is of {_some(names)} and of none of the slides given ({_some(slide_ids)}).",
            hint="names must agree; a file for one slide needs no such column",
        )
    return SlideFiles(of_slide, [f"{name} (in {path})" for name, s in slides.items() if s is None])


def _slides_in(path: Path) -> list[str] | None:
    """Return the names in the slide column of a table; None for other files and tables."""
    if path.suffix.lower() not in TABLES:
        return None
    names: set[str] = set()
    for piece in read_pieces(path, EXPECTED, allow_empty=True):
        column = slide_column(piece)
        if column is None:
            return None
        names.update(piece.columns[column])
    return sorted(names) or None


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(repr(name) for name in names[:shown]) + more
