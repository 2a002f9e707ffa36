"""The files of regions of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cytofm_cli.regions.config import RegionChoice

if TYPE_CHECKING:
    from cytofm_cli.regions.files import RegionFile


def regions_of(
    config: RegionChoice, slide_ids: Sequence[str], warn: Callable[[str], None]
) -> dict[str, RegionFile]:
    """Return the file of regions of each slide that has one, and name what is left over.

    Raises:
        UsageError: one file for several slides, or two files for one.
        InputError: no such file or folder.
    """
    if config.regions is None:
        return {}
    from cytofm_cli.regions.files import region_files

    return region_files(config, slide_ids, warn)
