"""Time embedding of cells and tiles as whole commands, against an earlier version in one call.

    git worktree add ../before 0.2.0
    OMP_NUM_THREADS=1 python tests/bench/bench_cells.py WORK [--before ../before] [--fields CRIC]
    python tests/bench/bench_cells.py WORK --many 500000

The first builds a sparse slide (`sparse_slide.py`), tiles it at 256 and 512 px, detects, and
embeds: an encoder that does nothing, `handcrafted`, `cytofm-tiny`; versions take turns, so that
what else the machine does falls on all alike. It also times the network alone. The second scatters
points over the slide in place of nuclei and tells what memory importing and embedding them takes.

CPU seconds are of the process and its children, start-up included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import simulated_fields
import sparse_slide
from bench_pipeline import NULL_ENCODER

from cytofm_cli.store import io

HERE = Path(__file__).parents[2]
STAGES = {  # which store, what is embedded
    "crops, encoder does nothing": ("512", ["--unit", "cell", "--encoder", "null"]),
    "cells, handcrafted": ("512", ["--unit", "cell", "--encoder", "handcrafted"]),
    "256-px tiles, handcrafted": ("256", ["--encoder", "handcrafted"]),
    "cells, cytofm-tiny": ("512", ["--unit", "cell", "--encoder", "cytofm-tiny"]),
}


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(words: list[object], tree: Path, plugins: Path) -> Cost:
    """Run `cytofm` of a checkout in a process of its own."""
    path = os.pathsep.join(map(str, (tree, tree / "kernels", plugins)))
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *map(str, words), "--quiet"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tree,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, words))}: {status}")
    return Cost(time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)


def build(fields: Path, work: Path, plugins: Path) -> dict[str, Path]:
    """Return stores of the sparse slide by the side of their tiles."""
    slide = work / "sparse.tif"
    sparse_slide.build(fields, slide, glass=sparse_slide.GLASSES[3])
    for side in ("256", "512"):
        if not (work / side).exists():
            words = ["tile", slide, "-o", work / side, "--tile-px", side, "--pixels", "lossless"]
            run(words, HERE, plugins)
    if not io.open_store(work / "512" / "sparse.zarr").steps.keys() - {"tile"}:
        run(["detect", work / "512"], HERE, plugins)
    return {side: work / side for side in ("256", "512")}


def count(stores: Path, unit: str) -> int:
    """Return how many tiles or cells the slide has."""
    store = io.open_store(stores / "sparse.zarr")
    return len(store.nuclei_xy_px0()) if unit == "cell" else store.tile.n_tiles


def compare(stores: dict[str, Path], trees: list[Path], plugins: Path, runs: int) -> None:
    """Print a line a stage: items a CPU second of each version, and the ratio of the last."""
    for stage, (side, words) in STAGES.items():
        n = count(stores[side], "cell" if "cell" in words else "tile")
        costs: dict[Path, list[Cost]] = {tree: [] for tree in trees}
        for _ in range(runs):
            for tree in trees:
                command = ["embed", stores[side], *words, "--device", "cpu", "--overwrite"]
                costs[tree].append(run(command, tree, plugins))
        rates = [n / statistics.median(c.cpu_s for c in costs[tree]) for tree in trees]
        pairs = zip(costs[trees[0]], costs[trees[-1]], strict=True)
        ratio = statistics.median(first.cpu_s / last.cpu_s for first, last in pairs)
        walls = [statistics.median(c.wall_s for c in costs[tree]) for tree in trees]
        peaks = [max(c.peak_mb for c in costs[tree]) for tree in trees]
        print(
            f"{stage}: {n}; a CPU s {_row(rates)}; ratio {ratio:.2f}; wall s {_row(walls, 1)}; "
            f"peak MB {_row(peaks)}",
            flush=True,
        )


def _row(numbers: list[float], digits: int = 0) -> str:
    return " → ".join(f"{number:.{digits}f}" for number in numbers)


def network_alone(stores: Path, n: int = 2048) -> None:
    """Print what the network takes beside embedding, one thread each, taking turns."""
    import torch

    from cytofm_cli.encoders.batches import default_batch, embed_tiles
    from cytofm_cli.encoders.load import load_encoder
    from cytofm_cli.nuclei.crops import CellCrops
    from cytofm_cli.tiles.field import open_field

    torch.set_num_threads(1)
    encoder, store = load_encoder("cytofm-tiny", device="cpu"), io.open_store(stores)
    batch = default_batch("cpu", encoder)
    ratios = []
    with open_field(store) as field:
        side_px = round((encoder.spec.cell_um or 0) / field.mpp)
        xy_px0 = store.nuclei_xy_px0()[:n]
        crops = CellCrops(field, xy_px0, side_px=side_px, fill=store.tile.fill)
        pixels = crops.read_many(np.arange(len(xy_px0)))
        prepared = [encoder.prepare(pixels[at : at + batch]) for at in range(0, len(xy_px0), batch)]
        for _ in range(5):
            before = time.process_time()
            for part in prepared:
                encoder.encode(part)
            between = time.process_time()
            embed_tiles(crops, encoder, batch_size=batch, threads=1, report=lambda *_: None)
            ratios.append((time.process_time() - between) / (between - before))
    print(f"embed against the network alone, one thread: {statistics.median(ratios):.3f}")


def many(stores: Path, work: Path, plugins: Path, n: int) -> None:
    """Print what memory it takes to import and embed so many points."""
    folder = work / "many"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stores, folder)
    tiles = io.open_store(folder / "sparse.zarr")
    rng = np.random.default_rng(0)
    corner = tiles.tile_xy_px0[rng.integers(0, tiles.tile.n_tiles, n)]
    xy = corner + rng.random((n, 2)) * tiles.tile.tile_px0
    points = work / "points"
    points.mkdir(exist_ok=True)
    lines = "\n".join(f"{x:.1f},{y:.1f}" for x, y in xy)
    (points / "sparse.csv").write_text(f"x,y\n{lines}\n")
    embed = ["embed", folder, "--unit", "cell", "--detector", "import", "--device", "cpu"]
    steps = {"import": ["detect", folder, "--detector", "import", "--nuclei", points]}
    steps |= {name: [*embed, "--encoder", name] for name in ("null", "handcrafted")}
    for name, words in steps.items():
        cost = run(words, HERE, plugins)
        print(f"{name}: {n} points, {n / cost.cpu_s:.0f} a CPU s, peak {cost.peak_mb:.0f} MB")


def main() -> None:
    """Build what is missing, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--many", type=int, default=0, help="points in place of nuclei")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    fields = simulated_fields.fields_of(arguments.fields).resolve()
    plugins = work / "plugins"
    encoders = plugins / "cytofm_plugins" / "encoders"
    encoders.mkdir(parents=True, exist_ok=True)
    (encoders / "null.py").write_text(NULL_ENCODER)
    stores = build(fields, work, plugins)
    if arguments.many:
        many(stores["512"], work, plugins, arguments.many)
        return
    before = [arguments.before.resolve()] if arguments.before else []
    compare(stores, [*before, HERE], plugins, arguments.runs)
    network_alone(stores["512"] / "sparse.zarr")


if __name__ == "__main__":
    main()
