"""Which file belongs to which slide, where each slide has one of its own."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.named_files import absent
from cytofm_cli.tables import match_slide

FIELDS: Final = ("{slide_id}", "{slide}")
# QuPath calls the pictures of one file `slide.scn - image 2`; scripts call files
# `slide_detections`.
_SERIES: Final = re.compile(r"^(.*\.\w+) - .*$")
_KIND: Final = re.compile(
    r"[ _.-](detections?|cells|nuclei|objects|measurements|labels?|masks?|annotations?|regions?)$",
    re.I,
)


@dataclass(frozen=True)
class SlideFiles:
    """Files by slide.

    Attributes:
        of_slide: the file of each slide that has one.
        unmatched: what belongs to no slide: files, or names in the slide column of a table.
    """

    of_slide: dict[str, Path]
    unmatched: list[str] = field(default_factory=list)

    def leftover(self, n_slides: int) -> str | None:
        """Say what belongs to no slide; None if nothing does."""
        if not self.unmatched:
            return None
        more = f" and {len(self.unmatched) - 5} more" if len(self.unmatched) > 5 else ""
        return (
            f"{len(self.unmatched)} belong to none of the {n_slides} slides: "
            f"{', '.join(self.unmatched[:5])}{more}"
        )


def match_several(
    source: Path, slide_ids: Sequence[str], suffixes: Collection[str], option: str
) -> SlideFiles:
    """Find the file of each slide in a folder, by a glob or by a pattern.

    Args:
        source: a folder or glob, whose files are named after slides; or a pattern with
            `{slide_id}`.
        slide_ids: all slides, also those of other parts of the job.
        suffixes: of the files that count in a folder, with their dot, lower case.
        option: what names `source` on the command line.

    Raises:
        UsageError: two files for one slide.
        InputError: no such file or folder, or a pattern with another field.
    """
    text = str(source)
    if place := next((word for word in FIELDS if word in text), None):
        of_slide = {i: Path(text.replace(place, i)) for i in slide_ids}
        of_slide = {i: path for i, path in of_slide.items() if path.is_file()}
        every = glob.glob(glob.escape(text).replace(glob.escape(place), "*"))
        return SlideFiles(of_slide, sorted(set(every) - {str(p) for p in of_slide.values()}))
    if source.is_dir():
        there = [path for path in source.iterdir() if path.suffix.lower() in suffixes]
        plain = [path for path in there if not path.name.startswith(".")]
        return _by_name(source, plain, slide_ids, option)
    if glob.has_magic(text):
        return _by_name(source, [Path(path) for path in glob.glob(text)], slide_ids, option)
    hint = "in a pattern write {slide_id}" if "{" in text else f"check {option}"
    raise InputError(f"{source}: {absent(source, 'file or folder')}.", hint=hint)


def slide_of(name: str, slide_ids: Collection[str]) -> str | None:
    """Find the slide that a cell, or a file without its last suffix, names."""
    series = _SERIES.match(name)
    names = [name, *([series[1]] if series else [])]
    names += [_KIND.sub("", word) for word in names]
    return next((slide for word in names if (slide := match_slide(word, slide_ids))), None)


def _by_name(
    source: Path, files: Sequence[Path], slide_ids: Sequence[str], option: str
) -> SlideFiles:
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
                hint=f"name the kind: {option} '{path.parent / (FIELDS[0] + path.suffix)}'",
            )
        else:
            of_slide[slide] = path
    return SlideFiles(of_slide, unmatched)
