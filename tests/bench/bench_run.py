"""Compare `cytofm run` with its steps as single commands, and count how often tiles are decoded.

    python tests/bench/bench_run.py WORK [--size-px 10240] [--groups 2] [--fields DIR]

CPU seconds are of the processes and their children; ratios are within one call. WORK keeps the
slide. The decodes are counted in this process, with the tiles that are kept and without.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
import simulated_fields
import sparse_slide

import cytofm_cli as cytofm
from cytofm_cli.tiles import kept
from cytofm_cli.tiles.source import StoredTiles

UNITS = ("tile", "cell")
ENCODER = "handcrafted"


def cost(commands: Sequence[Sequence[object]]) -> tuple[float, float]:
    """Run commands one after the other; return wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    for words in commands:
        command = [sys.executable, "-m", "cytofm_cli", *map(str, words), "-q"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu_s


def decodes(work: Callable[[], object]) -> tuple[int, float, float]:
    """Do some work here; return how many tiles it decoded, in what time, and its CPU seconds."""
    seconds: list[float] = []
    plain = StoredTiles.read

    def read(tiles: StoredTiles, index: int) -> NDArray[np.uint8]:
        start = time.thread_time()
        pixels = plain(tiles, index)
        seconds.append(time.thread_time() - start)
        return pixels

    start = time.process_time()
    try:
        StoredTiles.read = read  # type: ignore[method-assign]
        work()
    finally:
        StoredTiles.read = plain  # type: ignore[method-assign]
    return len(seconds), sum(seconds), time.process_time() - start


def main() -> None:
    """Build the slide, run both ways, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    parser.add_argument("--size-px", type=int, default=10240)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    fields = simulated_fields.fields_of(arguments.fields)
    with (fields / "images.csv").open(newline="") as handle:
        groups = sorted({row["group"] for row in csv.DictReader(handle)})[: arguments.groups]
    kind = "simulated" if arguments.fields is None else arguments.fields.resolve().name
    slide = work / f"sparse-{kind}-{arguments.size_px}-{len(groups)}.tif"
    sparse_slide.build(fields, slide, size_px=arguments.size_px, groups=groups)
    stores, together = work / "stores", work / "out"
    singly: list[Sequence[object]] = [("tile", slide, "-o", stores), ("detect", stores)]
    singly += [("embed", stores, "--encoder", ENCODER, "--unit", unit) for unit in UNITS]
    whole = ("run", slide, "-o", together, "--unit", "both", "--encoder", ENCODER)
    costs: dict[str, list[tuple[float, float]]] = {"single commands": [], "run": []}
    for _ in range(arguments.runs):
        for name, commands in (("single commands", singly), ("run", [whole])):
            for folder in (stores, together):
                shutil.rmtree(folder, ignore_errors=True)
            costs[name].append(cost(commands))
    for name, several in costs.items():
        wall_s, cpu_s = (statistics.median(values) for values in zip(*several, strict=True))
        print(f"{name}: {wall_s:.1f} s, {cpu_s:.1f} CPU s")
    ratios = [
        one[1] / other[1] for one, other in zip(costs["run"], costs["single commands"], strict=True)
    ]
    print(f"run / single commands, CPU: {statistics.median(ratios):.2f}")
    bags = [{"unit": unit, "encoder": ENCODER} for unit in UNITS]
    for name, most_bytes in (("nothing kept", 0), ("tiles kept", kept.MOST_BYTES)):
        shutil.rmtree(together, ignore_errors=True)
        with mock.patch.object(kept, "MOST_BYTES", most_bytes):
            n, decode_s, cpu_s = decodes(lambda: cytofm.run(slide, together, embed=bags))
        (store,) = (together / "stores").iterdir()
        n_tiles = cytofm.open_store(store).tile.n_tiles
        print(f"{name}: {n} decodes of {n_tiles} tiles, {decode_s:.2f} of {cpu_s:.1f} CPU s")


if __name__ == "__main__":
    main()
