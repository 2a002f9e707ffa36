"""Time `cytofm export` of nuclei as whole processes, and what memory they take at most.

    python tests/bench/bench_export.py WORK [--counts 20000,500000] [--old TREE] [--runs 3]

WORK keeps the stores, which are made here: random outlines of 16 to 48 points, a class, two stored
columns, an embedding of `--dim` numbers a nucleus, one tile without nuclei. TREE is a checkout
of another commit, measured in turn with this one; kinds of files that it does not have are left
out. Old commits measure nuclei on pixels, of which these stores have none: only their writing is
seen. CPU seconds are of the process and its children, start-up included; medians of the runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytofm_cli.nuclei.run import write_nuclei
from cytofm_cli.runs import provenance
from cytofm_cli.store import arrays, commit, io, schema
from cytofm_cli.store.records import (
    EmbeddingRecord,
    LevelRecord,
    NucleiRecord,
    SlideRecord,
    TileRecord,
)
from cytofm_cli.store.tables import NucleusTable
from cytofm_cli.store.zarr3 import BYTES, ZSTD, write_array, zstd_encode

SIDE_PX = 200_000
KINDS = ("geojson", "csv", "h5ad", "h5")
HERE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cost:
    """What one run took; `cpu_s` NaN for what a commit cannot do."""

    cpu_s: float
    peak_mb: float
    mb: float


def main() -> None:
    """Print a table: nuclei a CPU second and peak memory, of each kind, size and commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--counts", default="20000,500000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--old", type=Path)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    trees = {"old": arguments.old, "new": HERE} if arguments.old else {"new": HERE}
    print("| nuclei | files | commit | CPU s | nuclei a CPU s | peak MB | MB written |")
    print("|---|---|---|---|---|---|---|")
    for count in map(int, arguments.counts.split(",")):
        # A child starts with the peak of its parent, so what takes memory is done in another.
        maker = multiprocessing.Process(
            target=make_store, args=(arguments.work, count, arguments.dim)
        )
        maker.start()
        maker.join()
        store = path_of(arguments.work, count, arguments.dim)
        for kind in arguments.kinds.split(","):
            costs: dict[str, list[Cost]] = {name: [] for name in trees}
            for _ in range(arguments.runs):  # in turn, as other work on the machine comes and goes
                for name, tree in trees.items():
                    costs[name].append(export(tree, store, arguments.work / "out", kind))
            for name, runs in costs.items():
                cpu = statistics.median(run.cpu_s for run in runs)
                peak, size = max(run.peak_mb for run in runs), runs[0].mb
                if cpu == cpu:
                    told = f"{cpu:.2f} | {count / cpu:,.0f} | {peak:.0f} | {size:.0f}"
                    print(f"| {count:,} | {kind} | {name} | {told} |", flush=True)


def export(tree: Path, store: Path, out: Path, kind: str) -> Cost:
    """Export a store with the code of a checkout."""
    shutil.rmtree(out, ignore_errors=True)
    unit = ["--unit", "cell"] if kind.startswith("h5") else []
    command = [sys.executable, "-m", "cytofm_cli", "export", store, "-o", out, "--to", kind, *unit]
    path = os.pathsep.join((str(tree), str(tree / "kernels")))
    process = subprocess.Popen(
        [str(word) for word in command], env=os.environ | {"PYTHONPATH": path},
        cwd=tree, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if "choose csv" in said:
        return Cost(float("nan"), 0, 0)
    if process.returncode:
        sys.exit(f"{command}: exit {process.returncode}\n{said}")
    mb = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, mb)


def path_of(work: Path, count: int, dim: int) -> Path:
    """Return where a store lies."""
    return io.store_path(work, f"nuclei-{count}-{dim}")


def make_store(work: Path, count: int, dim: int) -> None:
    """Make a store of random nuclei, unless it is there."""
    path = path_of(work, count, dim)
    if path.exists():
        return
    name = path.stem
    work.mkdir(parents=True, exist_ok=True)
    slide = SlideRecord(
        slide_id=name, path="none.svs", size_px0=(SIDE_PX, SIDE_PX), mpp=0.25,
        levels=(LevelRecord(size_px=(SIDE_PX, SIDE_PX), downsample=1.0),),
    )  # fmt: skip
    stamp = provenance.stamp({"stride_px": None}, input_fingerprint="bench")
    tile = TileRecord(**stamp, n_tiles=1, tile_px=64, tile_px0=64.0, mpp=0.25, level=0)
    with io.staging(work, name, "tile") as staged:
        arrays.write(staged, schema.TILE_XY, np.zeros((1, 2), np.int32))
        writer = arrays.open_shards(
            staged, schema.TILE_PIXELS, shape=(1, 64, 64, 3), rows_per_shard=1,
            chunk=(1, 64, 64, 3), codecs=[BYTES, ZSTD],
        )  # fmt: skip
        writer.write_shard(0, [zstd_encode(bytes(64 * 64 * 3))])
        commit.commit_store(staged, path, slide=slide, record=tile)
    table = random_nuclei(count)
    with io.staging(work, name, "nuclei") as staged:
        write_nuclei(staged, table)
        record = NucleiRecord(**stamp, n=count, classes=table.classes)
        commit.commit_group(staged, path, "nuclei/classical", record)
    rng = np.random.default_rng(1)
    for column in ("optical_density", "texture"):
        values = rng.random(count, np.float32)
        write_array(path / "nuclei/classical" / column, values, axes=("nucleus",))
    with io.staging(work, name, "cells") as staged:
        arrays.write_rows(staged, schema.EMBEDDINGS, rng.random((count, dim), np.float32))
        cells = np.round(table.xy_px0).astype(np.int32)
        arrays.write(staged, schema.CELL_EMBEDDINGS_XY, cells)
        bag = EmbeddingRecord(**stamp, n=count, dim=dim, unit="cell", cell_um=20.0)
        commit.commit_group(staged, path, "embeddings/random/cell", bag)


def random_nuclei(count: int) -> NucleusTable:
    """Draw wavy outlines, none of them in the corner where the tile is."""
    rng = np.random.default_rng(0)
    length = rng.integers(16, 49, count)
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    xy = rng.uniform(200, SIDE_PX - 200, (count, 2)).astype(np.float32)
    radius = rng.uniform(8, 24, count).astype(np.float32)
    outline = np.empty((start[-1], 2), np.float32)
    for first in range(0, count, 100_000):
        row = np.repeat(np.arange(first, min(first + 100_000, count)), length[first:][:100_000])
        points = np.arange(start[row[0]], start[row[-1] + 1])
        angle = (points - start[row]) * (2 * np.pi / length)[row]
        reach = radius[row] * (1 + 0.15 * np.sin(3 * angle + row))
        wave = np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1)
        outline[points[0] : points[-1] + 1] = wave + xy[row]
    return NucleusTable(
        xy_px0=xy,
        area_um2=(np.pi * (radius * 0.25) ** 2).astype(np.float32),
        probability=rng.random(count, np.float32),
        class_id=rng.integers(0, 2, count).astype(np.uint8),
        contour_px0=outline,
        contour_start=start,
        classes=("NILM", "HSIL"),
    )


if __name__ == "__main__":
    main()
