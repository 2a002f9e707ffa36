"""Settings of the detect step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cytofm_cli.config import option


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
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
