"""The kinds of bags that a benchmark learns from: the rows of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytofm_cli.errors import InputError, UsageError
from cytofm_cli.mil.bag import Bag
from cytofm_cli.mil.bags import bag_names, find_bags, load_bags
from cytofm_cli.mil.config import MilSettings
from cytofm_cli.mil.describe import bags_text, describe
from cytofm_cli.mil.labels import Cohort, build_cohort, read_labels
from cytofm_cli.mil.summary import cohort_notes
from cytofm_cli.store.schema import UNITS


@dataclass(frozen=True)
class Source:
    """One kind of bags: a row of the table.

    Attributes:
        bags: folder of stores or bag files.
        encoder: whose embeddings; None if the bags do not say.
        unit: "tile" or "cell".
        folder: name of the folder, where it is needed to tell rows apart; else "".
    """

    bags: Path
    encoder: str | None
    unit: str
    folder: str = ""

    @property
    def name(self) -> str:
        """Return the label of the row."""
        return " ".join(part for part in (self.folder, self.encoder, self.unit) if part)


def make_sources(
    bags: Sequence[Path], encoders: Sequence[str], units: Sequence[str]
) -> list[Source]:
    """List every folder × encoder × unit; without encoders, the one that the bags name.

    Raises:
        UsageError: no such unit, or two rows would have the same name.
    """
    if wrong := [unit for unit in units if unit not in UNITS]:
        raise UsageError(f"--unit {wrong[0]}: choose {', '.join(UNITS)}.")
    sources: list[Source] = []
    for folder in bags:
        kinds: list[tuple[str | None, str]] = [(name, unit) for name in encoders for unit in units]
        for encoder, unit in kinds or [(_only_encoder(folder, unit), unit) for unit in units]:
            shown = folder.absolute().name if len(bags) > 1 or not encoder else ""
            sources.append(Source(folder, encoder, unit, shown))
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(
            f"two kinds of bags have the same name ({twice}).",
            hint="rename a folder of bags, and name encoders and units once",
        )
    return sources


def cohort_of(config: MilSettings, source: Source, labels: Path) -> Cohort:
    """Join the labels and the slides of one kind of bags, without reading features.

    Raises:
        InputError, LabelError: see `build_cohort`.
    """
    nothing = np.zeros((0, 0), np.float32)
    return build_cohort(
        [Bag(name, nothing) for name in bag_names(source.bags, source.encoder, config.bag_table)],
        read_labels(labels, label_column=config.label, group_column=config.group),
        classes=config.classes,
        positive=config.positive,
        allow_missing=config.allow_missing,
    )


def describe_all(
    config: MilSettings, sources: Sequence[Source], labels: Path
) -> tuple[list[str], list[str]]:
    """Say what is learnt from what: lines to read, and what was assumed.

    Raises:
        InputError, LabelError: see `build_cohort`.
    """
    cohort = cohort_of(config, sources[0], labels)
    lines = describe(cohort, config)
    for source in sources:
        first = find_bags(source.bags, source.encoder)[0]
        try:
            (bag,) = load_bags(first, source.encoder, source.unit)
        except InputError:  # the run says so, and the others go on
            continue
        lines.append(f"bags of row {source.name}: {bags_text(bag.origin, source.unit)}")
    return lines, cohort_notes(cohort)


def _only_encoder(folder: Path, unit: str) -> str | None:
    """Read whose embeddings the first bag holds; what is wrong with it, its run will tell."""
    try:
        (bag,) = load_bags(find_bags(folder)[0], None, unit)
    except InputError:
        return None
    return bag.encoder or None
