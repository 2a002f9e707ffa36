"""Settings of `cytofm view`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cytofm_cli.config import Settings, option


@dataclass(frozen=True, kw_only=True)
class ViewConfig(Settings):
    """Where the page is served, and where its files are."""

    SECTION: ClassVar[str] = "view"

    slides: Path | None = option(
        None, "Folder where the slides lie now, if they were moved.", affects_result=False
    )
    marks: Path | None = option(
        None,
        "File of the marks [default: RUN.marks.jsonl beside the RUN or stores].",
        affects_result=False,
    )
    port: int = option(
        0,
        "Port of this machine to listen on; 0: a free one.",
        low=0,
        high=65535,
        affects_result=False,
    )
    open: bool = option(False, "Open the page in a browser.", affects_result=False)
