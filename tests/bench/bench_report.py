"""Time `cytofm report` and `cytofm gallery` as whole commands, from finished stores.

    python tests/bench/bench_report.py WORK [--slides 100] [--cells 10000] [--rows 10000]

Simulates 48 fields once, copies their stores to as many slides as are asked for, trains and scores.
`--rows` slides without stores show what a long table costs. CPU seconds are of the process and its
children, start-up included.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FIELDS = 48


def cytofm(*words: object) -> tuple[float, float]:
    """Run a command; return wall and CPU seconds."""
    command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "-q", "--no-progress"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, words))}: {status}")
    return time.monotonic() - start, used.ru_utime + used.ru_stime


def prepare(work: Path, n_slides: int) -> tuple[Path, Path]:
    """Make stores and a RUN on them, scored; return both."""
    cohort, fields, stores = work / "cohort", work / "fields", work / f"stores-{n_slides}"
    labels, run = work / f"labels-{n_slides}.csv", work / f"run-{n_slides}"
    if not cohort.exists():
        cytofm("simulate", "-o", cohort, "--patients", 24, "--slides-per-patient", 2,
               "--size-px", 1024, "--abnormal-share", 0.4)  # fmt: skip
    cytofm("tile", cohort / "slides", "-o", fields, "--tile-px", 256)
    cytofm("detect", fields)
    cytofm("embed", fields, "--unit", "cell")
    told = list(csv.DictReader((cohort / "labels.csv").read_text().splitlines()))
    lines = ["slide_id,label,group"]
    for n in range(n_slides):
        row, copy = told[n % FIELDS], n // FIELDS
        name = f"{row['slide_id']}-{copy}"
        lines.append(f"{name},{row['label']},{row['group']}")
        if not (stores / f"{name}.zarr").exists():
            shutil.copytree(fields / f"{row['slide_id']}.zarr", stores / f"{name}.zarr")
    labels.write_text("\n".join(lines) + "\n")
    cytofm("mil", "train", "--bags", stores, "--labels", labels, "--unit", "cell", "--seeds", 1,
           "--epochs", 5, "-o", run)  # fmt: skip
    cytofm("mil", "score", run, stores, "-o", work / f"scores-{n_slides}.csv")
    return stores, run


def long_table(run: Path, work: Path, n_rows: int) -> Path:
    """Write a RUN of many slides: copies of the predictions of another."""
    long = work / f"long-{n_rows}"
    shutil.rmtree(long, ignore_errors=True)
    shutil.copytree(run, long)
    (long / "models" / "manifest.json").unlink()
    for name in ("predictions.csv", "splits.csv"):
        rows = list(csv.reader((run / name).read_text().splitlines()))
        n = len(rows) - 1
        copied = [
            [f"{row[0]}.{copy}", *row[1:]] for copy in range(-(-n_rows // n)) for row in rows[1:]
        ]
        with (long / name).open("w", newline="") as file:
            csv.writer(file).writerows([rows[0], *copied[:n_rows]])
    return long


def tell(what: str, cost: tuple[float, float], size: int) -> None:
    """Print a row of the table."""
    print(f"| {what} | {cost[0]:.1f} | {cost[1]:.1f} | {size / 1e6:.1f} |", flush=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file or folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=10_000)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    stores, run = prepare(asked.work, asked.slides)
    page, folder = asked.work / "report.html", asked.work / "gallery"
    print("| job | wall s | CPU s | MB |\n|---|---|---|---|")
    cost = cytofm("report", run, stores, "-o", page, "--overwrite")
    beside = page.with_name("report_files")
    tell(f"report of {asked.slides} slides", cost, size_of(page) + size_of(beside))
    words = ["gallery", stores, "-o", folder, "--overwrite", "--min-probability", 0]
    cost = cytofm(*words, "--by", "area_um2", "--top", asked.cells)
    n = len((folder / "cells.csv").read_text().splitlines()) - 1
    tell(f"gallery of {n} cells", cost, size_of(folder))
    tell("gallery, 60 cells of each order", cytofm(*words), size_of(folder))
    long = long_table(run, asked.work, asked.rows)
    cost = cytofm("report", long, "-o", page, "--overwrite")
    tell(f"report of {asked.rows} slides without stores", cost, size_of(page))
    print(f"numpy {np.__version__}, {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
