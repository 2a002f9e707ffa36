"""What of a slide lies in the regions that are wanted, and the label of each tile.

Legend: N tiles or points.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import InputError
from cytofm_cli.regions.base import Note, Place
from cytofm_cli.regions.chosen import RegionSet
from cytofm_cli.regions.config import CENTRE, RegionChoice, rule_of
from cytofm_cli.regions.files import RegionFile
from cytofm_cli.regions.read import read_regions, refuse_um
from cytofm_cli.words import named

NO_LABEL = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Wanted:
    """The regions of a slide, and what is wanted of them.

    Attributes:
        there: all regions of the file.
        path: the file.
        digest: of its content.
        include: classes that are kept; None: everything.
        exclude: classes that are left out.
        label: classes that label tiles.
        share: of its area that a tile needs in a region; None: its centre.
    """

    there: RegionSet
    path: Path
    digest: str
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    label: tuple[str, ...]
    share: float | None

    @property
    def rule(self) -> str:
        """The rule as it is recorded."""
        return CENTRE if self.share is None else f"fraction>={self.share:g}"

    def facts(self) -> dict[str, Any]:
        """Return what a record says of the regions."""
        return {
            "file": self.path.name,
            "sha256": self.digest,
            "rule": self.rule,
            "classes": self.there.counts,
            "include": None if self.include is None else list(self.include),
            "exclude": list(self.exclude),
            "label": list(self.label),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What lies in the wanted regions.

    Attributes:
        kept_N: bool; inside of what is included, outside of what is excluded.
        n_outside: those outside of what is included.
        n_excluded: others, that lie in what is excluded.
    """

    kept_N: NDArray[np.bool_]
    n_outside: int
    n_excluded: int

    def facts(self) -> dict[str, int]:
        """Return the counts for a record."""
        return {"n_outside": self.n_outside, "n_excluded": self.n_excluded}


def open_regions(
    file: RegionFile,
    config: RegionChoice,
    place: Place,
    note: Note,
    *,
    foreground_HW: NDArray[np.bool_] | None = None,
) -> Wanted:
    """Read the regions of a slide, and check what is wanted of them.

    Args:
        file: their file.
        config: the settings.
        place: the slide.
        note: told what was left out or assumed.
        foreground_HW: mask of the whole slide, by which micrometres are recognised.

    Raises:
        InputError: see `read_regions`; or it holds none of the classes that are wanted.
    """
    path, unit, origin = file.path, config.region_unit, config.region_origin
    there = read_regions(path, place, note, unit=unit, origin=origin)
    include, exclude, label = config.region_include, config.region_exclude, config.region_label
    if not include and not exclude and not label:
        include = there.classes
    include = _of_file(include, there, path, "--region-include", note)
    label = _of_file(label or include, there, path, "--region-label", note)
    if exclude and (file.alone or set(exclude) & set(there.classes)):
        exclude = _of_file(exclude, there, path, "--region-exclude", note)
    elif exclude:
        note(f"{path}: holds no region of class {named(exclude)} (--region-exclude)")
        exclude = ()
    wanted = Wanted(
        there=there,
        path=path,
        digest=file.sha256,
        include=include,
        exclude=exclude or (),
        label=label or (),
        share=rule_of(getattr(config, "region_rule", CENTRE), "region_rule"),
    )
    if foreground_HW is not None and unit == "auto":
        refuse_um(there, label or there.classes, path, place, foreground_HW)
    return wanted


def _of_file(
    names: Sequence[str] | None, there: RegionSet, path: Path, option: str, note: Note
) -> tuple[str, ...] | None:
    """Return the classes that a file has of those that are named.

    Raises:
        InputError: it has none of them.
    """
    if not names:
        return None
    absent = [name for name in names if name not in there.classes]
    if len(absent) == len(names):
        raise InputError(
            f"{path}: holds no region of class {named(absent)} ({option}); "
            f"its classes are {named(there.classes)}.",
            hint=_closest(absent, there.classes),
        )
    if absent:
        note(f"{path}: holds no region of class {named(absent)} ({option})")
    return tuple(dict.fromkeys(name for name in names if name in there.classes))


def _closest(absent: Sequence[str], classes: Sequence[str]) -> str:
    folded = {name.casefold(): name for name in classes}
    close = difflib.get_close_matches(absent[0].casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else "name one of these"


def judge_points(wanted: Wanted, xy_N2: NDArray[np.floating]) -> Judged:
    """Tell which points lie in the wanted regions."""
    if wanted.include is None:
        included_N = np.ones(len(xy_N2), bool)
    else:
        included_N = wanted.there.inside(wanted.include, xy_N2)
    excluded_N = included_N & wanted.there.inside(wanted.exclude, xy_N2)
    return _judged(included_N, included_N & ~excluded_N)


def judge_tiles(wanted: Wanted, xy_N2: NDArray[np.integer], side: float) -> Judged:
    """Tell which tiles lie in the wanted regions, by the rule.

    Args:
        wanted: the regions.
        xy_N2: top-left corners, level-0 pixels.
        side: of a tile, level-0 pixels.
    """
    if wanted.share is None:
        return judge_points(wanted, xy_N2 + side / 2)
    least = wanted.share - 1e-9
    whole_N = wanted.there.shares(wanted.include, (), xy_N2, side)
    kept_N = wanted.there.shares(wanted.include, wanted.exclude, xy_N2, side)
    return _judged(whole_N >= least, kept_N >= least)


def _judged(included_N: NDArray[np.bool_], kept_N: NDArray[np.bool_]) -> Judged:
    return Judged(
        kept_N=kept_N,
        n_outside=int((~included_N).sum()),
        n_excluded=int((included_N & ~kept_N).sum()),
    )


def label_tiles(wanted: Wanted, xy_N2: NDArray[np.integer], side: float) -> NDArray[np.int16]:
    """Return the label of each tile: index into `wanted.label`, or `NO_LABEL`.

    By centre: the class of the smallest region around it. By share: the class that covers the
    most of it, at least the share that is asked for; of equal ones the first that is named.
    """
    if not wanted.label:
        return np.full(len(xy_N2), NO_LABEL, np.int16)
    if wanted.share is None:
        return wanted.there.smallest(wanted.label, xy_N2 + side / 2)
    shares_CN = np.stack(
        [wanted.there.shares([name], wanted.exclude, xy_N2, side) for name in wanted.label]
    )
    best_N = shares_CN.argmax(0)
    enough_N = shares_CN.max(0) >= wanted.share - 1e-9
    return np.where(enough_N, best_N, NO_LABEL).astype(np.int16)
