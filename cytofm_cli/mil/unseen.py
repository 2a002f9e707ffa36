"""Which models of a RUN may judge a slide: those that saw neither it nor its patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from cytofm_cli.errors import LabelError
from cytofm_cli.mil.run_folder import RUN, read_rows
from cytofm_cli.stats.classes import spelling_key
from cytofm_cli.store.records import NEW, OUT_OF_FOLD, TRAINING
from cytofm_cli.tables import GROUP_NAMES, SLIDE_NAMES, match_slide, read_table
from cytofm_cli.words import is_missing


@dataclass(frozen=True)
class Known:
    """The slides of a RUN, and what a table says of patients.

    Attributes:
        tested: for each slide of the RUN, the folds that held it out.
        group_of: patient of each slide of the RUN; the slide itself if it was trained without.
        table: patient of any slide, by a table that the user gives.
    """

    tested: Mapping[str, frozenset[int]]
    group_of: Mapping[str, str]
    table: Mapping[str, str] = field(default_factory=dict)

    @property
    def grouped(self) -> bool:
        """Tell whether the RUN knows patients."""
        return any(slide != group for slide, group in self.group_of.items())

    def with_table(self, path: Path, slide_ids: Iterable[str]) -> Known:
        """Add a table of patients, of the slides of the RUN and of these.

        Raises:
            LabelError: unreadable, a slide with two patients, or a slide of the RUN with another
                patient than the RUN knows.
        """
        ids = {*self.group_of, *slide_ids}
        table: dict[str, str] = {}
        for name, group in read_groups(path):
            slide = match_slide(name, ids) or name
            for where, other in (("table", table), ("RUN", self.group_of if self.grouped else {})):
                if spelling_key(other.get(slide, group)) != spelling_key(group):
                    raise LabelError(
                        f"{path}: slide {slide} is of patient {group!r}, in the {where} also of "
                        f"{other[slide]!r}.",
                        hint="name patients as the RUN's table of labels did",
                    )
            table[slide] = group
        return replace(self, table=table)

    def folds(self, slide_id: str) -> tuple[frozenset[int], str]:
        """Return the folds whose models may judge a slide, and on what ground.

        Returns:
            folds, "new" (folds is empty: any model may), "out-of-fold", or "training" (folds is
            empty: none is left); the last two end in " (patient)" where not the slide itself
            but another one of its patient decides.
        """
        own = self.tested.get(slide_id)
        group = self._group(slide_id)
        folds = own if group is None else self._folds_of_group.get(group, own)
        if folds is None:
            return frozenset(), NEW
        basis = OUT_OF_FOLD if folds else TRAINING
        alone = own is not None and bool(own) == bool(folds)
        return folds, basis if alone else f"{basis} (patient)"

    def lacks(self, slide_id: str) -> bool:
        """Tell whether nothing says whose slide it is."""
        return slide_id not in self.tested and self._group(slide_id) is None

    @cached_property
    def _folds_of_group(self) -> dict[str, frozenset[int]]:
        """Return the folds that held out every slide of a patient."""
        folds_of: dict[str, frozenset[int]] = {}
        for slide, folds in self.tested.items():
            group = self._group(slide)
            if group is not None:
                folds_of[group] = folds_of.get(group, folds) & folds
        return folds_of

    def _group(self, slide_id: str) -> str | None:
        named = self.table.get(slide_id, self.group_of.get(slide_id))
        return None if named is None else spelling_key(named)


def read_splits(path: Path) -> Known:
    """Read the slides of a RUN from its splits.csv.

    Raises:
        InputError: it is not there, or no such table.
    """
    try:
        rows = read_rows(path)
        group_of = {row["slide_id"]: row["group"] for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise RUN.unfinished(path.parent) from error
    tested = {
        row["slide_id"]: frozenset(
            int(key.removeprefix("fold")) for key, part in row.items() if part == "test"
        )
        for row in rows
    }
    return Known(tested, group_of)


def read_groups(path: Path) -> list[tuple[str, str]]:
    """Read slides and their patients from a table with a column for both, as the labels have.

    Raises:
        LabelError: unreadable, no such columns, or a slide without patient.
    """
    table = read_table(path, (*SLIDE_NAMES, *GROUP_NAMES), error=LabelError)
    hint = "the table must have the columns slide_id,group"
    slides = table.columns[table.need(*SLIDE_NAMES, hint=hint)]
    groups = table.columns[table.group_column() or table.need("group", hint=hint)]
    for row, (slide, group) in enumerate(zip(slides, groups, strict=True)):
        if is_missing(group):
            raise LabelError(f"{table.place(row)}: slide {slide} has no patient.")
    return list(zip(slides, groups, strict=True))
