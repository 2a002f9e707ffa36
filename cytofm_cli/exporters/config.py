"""Settings of `cytofm export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from cytofm_cli.config import Settings, option
from cytofm_cli.registry import exporters


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """What of a store is written, and how. None: as the exporter has it."""

    SECTION: ClassVar[str] = "export"

    to: tuple[str, ...] = option(
        ("h5",), f"Kinds of files, with commas or repeated: {', '.join(exporters.words())}."
    )
    layout: Literal["trident", "clam"] | None = option(None, "Whose h5 layout [default: trident].")
    pool: tuple[Literal["mean", "max", "counts"], ...] | None = option(
        None,
        "One AnnData file with a row a slide, pooled over its tiles or cells, instead: mean, max, "
        "counts (shares of classes of cells); -o names the file.",
    )
    encoder: str | None = option(None, "Which embeddings [default: the only ones].")
    unit: Literal["tile", "cell"] | None = option(
        None, "Bags of what [default: tile; of h5ad: cell]; nuclei are cells."
    )
    detector: str | None = option(None, "Whose nuclei [default: the only ones].")
    run: str | None = option(
        None, "RUN whose attention of cells goes with the nuclei [default: the only]."
    )
    classes: str | None = option(
        None,
        "RUN of `cells apply` whose classes the nuclei get [default: the only]; detector: those "
        "that it found.",
    )
    measure: bool | None = option(
        None,
        "Measure nuclei on pixels [default: where the store keeps no measurements].",
    )
    origin: Literal["bounds", "slide"] | None = option(
        None,
        "Where GeoJSON counts from: the scanned part, as QuPath [default], or the slide.",
    )
    slides: Path | None = option(None, "Where the slides lie now, for stores without pixels.")
