"""Settings of `cytofm report` and `cytofm gallery`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cytofm_cli.config import Settings, option


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """What stands in a report."""

    SECTION: ClassVar[str] = "report"

    title: str | None = option(None, "Title of the page [default: the names of the RUNs].")
    cells: int = option(10, "Cells or tiles that are shown of a slide.", low=0, high=200)
    cell_um: float = option(40.0, "Side of the picture of a cell, µm.", low=5.0, high=500.0)
    pictures: int = option(
        200, "Slides with pictures, wrong answers first; the others are rows of numbers.", low=0
    )
    slides: Path | None = option(None, "Where the slides lie now, for stores without pixels.")


@dataclass(frozen=True, kw_only=True)
class GalleryConfig(Settings):
    """Which cells are shown, in which order."""

    SECTION: ClassVar[str] = "gallery"

    by: tuple[str, ...] = option(
        (),
        "Orders, with commas or repeated: area_um2, optical_density or another measure of nuclei, "
        "class, outlier, classes, attention [default: those that the stores have].",
    )
    top: int = option(60, "Cells of each order.", low=1)
    per_slide: int | None = option(None, "At most so many of one slide.", low=1)
    min_probability: float = option(
        0.2, "Least confidence of the detector: others are often no nuclei.", low=0.0, high=1.0
    )
    lowest: bool = option(False, "Begin with the smallest instead of the largest.")
    detector: str | None = option(None, "Whose nuclei [default: the only ones].")
    encoder: str | None = option(None, "Whose embeddings outlier reads [default: the only ones].")
    run: str | None = option(
        None, "RUN of `cells apply` or `mil score`, for classes and attention [default: the only]."
    )
    cell_um: float = option(40.0, "Side of the picture of a cell, µm.", low=5.0, high=500.0)
    slides: Path | None = option(None, "Where the slides lie now, for stores without pixels.")
