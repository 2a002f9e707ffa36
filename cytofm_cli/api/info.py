"""What slides hold, asked in a child process: codecs crash and hang, and files lie."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cytofm_cli.api.cohort import Listen, Manner, run_cohort
from cytofm_cli.api.outcomes import Outcomes
from cytofm_cli.work.batch import Reporter, Status, Task
from cytofm_cli.work.memory import limit_memory

# Opening a slide takes tens of megabytes; a field that is unpacked for it, one or two thousand.
MOST_BYTES: Final = 4 << 30


@dataclass(frozen=True)
class InfoJob:
    """A slide to open."""

    slide_id: str
    path: str


def describe_slides(paths: Sequence[str], listen: Listen) -> Outcomes:
    """Open slides one after the other, in a child process of at most 4 GiB.

    Args:
        paths: as the user named them.
        listen: called with what becomes of each, in their order; the facts of an outcome are those
            of `facts_of`.
    """
    jobs = [InfoJob(path, path) for path in dict.fromkeys(paths)]
    manner = Manner(only_reads=True, workers=1, fork=True, listen=listen)
    return run_cohort("info", jobs, describe, Path(), manner, workers=1)


def describe(task: Task, _report: Reporter) -> tuple[Status, dict[str, Any]]:
    """Open one slide."""
    if multiprocessing.parent_process() is not None:  # not where the caller has other work
        limit_memory(MOST_BYTES)
    return "done", facts_of(task.path)


def facts_of(path: str) -> dict[str, Any]:
    """Return what a slide says of itself, as JSON values.

    Raises:
        SlideError: it cannot be opened.
    """
    from cytofm_cli.slides.open import open_slide

    with open_slide(path) as reader:
        facts = reader.info
    return {
        "path": path,
        "reader": facts.reader,
        "format": facts.format,
        "size_px0": list(facts.size_px0),
        "mpp": facts.mpp,
        "mpp_source": facts.mpp_source,
        "codec": facts.codec,
        "objective": facts.objective,
        "levels": [
            {"size_px": list(level.size_px), "downsample": level.downsample}
            for level in facts.levels
        ],
        "n_focal_planes": facts.n_focal_planes,
        "planes_um": facts.planes_um,
        "notes": list(facts.notes),
    }
