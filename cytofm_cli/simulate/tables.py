"""The folder of a cohort: what makes two the same, and its tables once all slides are done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from cytofm_cli import __version__
from cytofm_cli.config import as_record, digest
from cytofm_cli.errors import DiskFullError
from cytofm_cli.runs.folder import Kind
from cytofm_cli.runs.record import Record
from cytofm_cli.simulate.cohort import log_posterior, positive_posterior
from cytofm_cli.simulate.config import VERSION, SimulateConfig
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.simulate.run import SLIDES, TRUTH, SimulateJob, done
from cytofm_cli.simulate.space import forecast_bytes
from cytofm_cli.simulate.truth import COLUMNS
from cytofm_cli.stats.metrics import auc
from cytofm_cli.units import human_bytes
from cytofm_cli.work.files import replacing, write_json, write_text

LABELS_CSV: Final = "labels.csv"
CELLS_CSV: Final = "cells.csv"
POSTERIOR_CSV: Final = "posterior.csv"
SUMMARY: Final = "simulate.json"
RUN: Final = Kind(
    "cytofm simulate",
    frozenset({"simulate"}),
    frozenset({SLIDES, TRUTH}),
    frozenset({LABELS_CSV, CELLS_CSV, POSTERIOR_CSV, SUMMARY, "failures*.jsonl"}),
)


def record_of(config: SimulateConfig, preset: Preset) -> Record:
    """Return what makes two cohorts the same: settings, and what the preset says."""
    settings = as_record(config, results_only=True)
    settings["preset"] = Path(config.preset).stem
    return {"simulate": {**settings, "preset_digest": digest(asdict(preset)), "version": VERSION}}


def check_space(folder: Path, jobs: Sequence[SimulateJob]) -> int:
    """Return about how many bytes are still to be written.

    Raises:
        DiskFullError: they do not fit.
    """
    if not jobs:
        return 0
    wanted = sum(done(job) is None for job in jobs) * forecast_bytes(jobs[0].config, jobs[0].preset)
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise DiskFullError(
            f"{folder}: {len(jobs)} slides need about {human_bytes(wanted)}, "
            f"{human_bytes(free)} are free.",
            hint="make room, or simulate fewer or smaller slides.",
        )
    return wanted


def finish(folder: Path, jobs: Sequence[SimulateJob]) -> dict[str, Any] | None:
    """Write labels.csv, cells.csv, posterior.csv and simulate.json of a whole cohort.

    Args:
        folder: of the cohort.
        jobs: all slides of the cohort, in its order.

    Returns:
        Content of simulate.json; None: some slides are missing, nothing is written.
    """
    facts = [done(job) for job in jobs]
    known = [one for one in facts if one is not None]
    if len(known) < len(jobs):
        return None
    config, preset = jobs[0].config, jobs[0].preset
    log_SD = log_posterior(
        preset, config, [one["sheets"] for one in known], [one["expected_marked"] for one in known]
    )
    p_S = positive_posterior(preset, log_SD)
    is_positive = np.array([one["label"] != preset.negative for one in known])
    rows = [f"{one['slide_id']},{one['label']},{one['group']}\n" for one in known]
    write_text(folder / LABELS_CSV, "slide_id,label,group\n" + "".join(rows))
    diagnoses = list(preset.diagnoses)
    head = ",".join(["slide_id", "label", "p_positive", *(f"p_{name}" for name in diagnoses)])
    lines = [
        ",".join([one["slide_id"], one["label"], *(f"{value:.6g}" for value in values)])
        for one, values in zip(known, np.column_stack([p_S, np.exp(log_SD)]), strict=True)
    ]
    write_text(folder / POSTERIOR_CSV, "\n".join([head, *lines]) + "\n")
    with replacing(folder / CELLS_CSV) as partial, partial.open("wb") as out:
        out.write(f"{','.join(COLUMNS)}\n".encode())
        for job in jobs:
            with job.truth(".csv").open("rb") as own:
                shutil.copyfileobj(own, out)
    both = 0 < is_positive.sum() < len(known)
    summary = {
        "tool": f"cytofm {__version__}",
        **record_of(config, preset)["simulate"],
        "preset_summary": preset.summary,
        "mpp": preset.mpp,
        "negative": preset.negative,
        "n_slides": len(known),
        "n_positive": int(is_positive.sum()),
        "n_cells": sum(one["n_cells"] for one in known),
        "bayes_auc": float(auc(is_positive.astype(np.int64), p_S)) if both else None,
        "slides": known,
    }
    write_json(folder / SUMMARY, summary, indent=1)
    return summary


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return simulate.json of a cohort; None: it is not complete."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None
