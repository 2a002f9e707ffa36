"""Settings of the detect step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cytofm_cli.config import option
from cytofm_cli.errors import UsageError
from cytofm_cli.regions.config import RegionChoice
from cytofm_cli.registry import detectors


@dataclass(frozen=True, kw_only=True)
class DetectConfig(RegionChoice):
    """Which nuclei detector runs, and on what."""

    SECTION: ClassVar[str] = "detect"

    detector: str = option("classical", "Name (see `cytofm detectors`).")
    weights: Path | None = option(None, "Weight file of the detector.")
    nuclei: Path | None = option(
        None,
        "What `import` reads: a file, a folder of files named after the slides, or a pattern with "
        "{slide_id}.",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", affects_result=False)
    slides: Path | None = option(
        None, "Folder where the slides lie now, for stores without pixels.", affects_result=False
    )

    def check(self) -> None:
        """Refuse a file of nuclei without the detector that reads it, and that one without."""
        super().check()
        if not detectors.find(self.detector).from_files:
            if self.nuclei is not None:
                raise UsageError(
                    f"{self.said('nuclei')} is for the detector import, not for {self.detector!r}.",
                    hint="add --detector import",
                )
        elif self.nuclei is not None and self.weights is not None:
            raise UsageError(
                f"{self.said('nuclei')} and {self.said('weights')}: {self.detector} reads one of "
                "them.",
                hint="--nuclei",
            )
        elif self.nuclei is None and self.weights is None:
            raise UsageError(
                f"detector {self.detector!r} needs a file or folder with nuclei.",
                hint="--nuclei nuclei.geojson, or a folder with a file for each slide",
            )
