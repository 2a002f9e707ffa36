"""Pretrain what is not finished yet, a run a thread, for so many minutes; goes on where it was.

python pretrain.py --jobs 2 --minutes 40
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from arms import Run, all_runs, as_toml, settings
from places import WORK, cytofm


def folder_of(run: Run) -> Path:
    """Return the folder of a run."""
    return WORK / "runs" / run.name


def encoder_of(run: Run) -> Path:
    """Return the file that a finished run leaves."""
    return folder_of(run) / "encoder.safetensors"


def stores() -> list[Path]:
    """Return the stores that are learnt from."""
    return sorted((WORK / "data" / "pretrain").glob("*/*.zarr"))


def go_on(run: Run, until: float) -> None:
    """Begin a run, or go on with it, until it ends or the time is up."""
    left_s = until - time.monotonic()
    if left_s < 60 or encoder_of(run).exists():
        return
    config = WORK / "runs" / f"{run.name}.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(as_toml(settings(run)))
    words = ["pretrain", *stores(), "-o", folder_of(run), "--config", config, "--no-progress"]
    cytofm(words, config.with_suffix(".log"), limit_s=left_s)
    print(f"{run.name}: {'finished' if encoder_of(run).exists() else 'stopped'}", flush=True)


def main() -> None:
    """Go through the runs in their order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--only", nargs="*", help="names of runs")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    runs = [run for run in all_runs() if not asked.only or run.name in asked.only]
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(lambda run: go_on(run, until), runs))


if __name__ == "__main__":
    main()
