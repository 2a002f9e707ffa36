"""Time the commands as whole processes, beside the work that cannot be avoided.

    python tests/bench/bench_pipeline.py WORK [--size-px 20480] [--runs 3] [--fields DIR]

WORK keeps the slide (43 MB, half a minute to build). CPU seconds are of the process and its
children; wall seconds depend on what else the machine does; medians of the runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import sparse_slide

from cytofm_cli.slides.open import open_slide
from cytofm_cli.store.zarr3 import zstd_encode
from cytofm_cli.units import Box
from cytofm_cli.work.cpus import cpu_count

TILE_PX = 256
NULL_ENCODER = """
import numpy as np
from cytofm_cli.encoders.base import EncoderSpec
from cytofm_cli.registry import EncoderPlugin, samples

class Null:
    spec = EncoderSpec(name="null", dim=1, input_px=None)
    def __init__(self, request): pass
    def prepare(self, pixels): return pixels
    def encode(self, batch): return np.zeros((len(batch), 1), np.float32)

PLUGIN = EncoderPlugin(
    make=Null, summary="does nothing", needs_weights=False, expects={"dim": 1}, sample=samples()
)
"""


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def measure(command: list[str], runs: int, before: Callable[[], None]) -> Cost:
    """Run a command several times; return medians (peak memory: the largest process)."""
    costs = []
    for _ in range(runs + 1):
        before()
        start, used = time.monotonic(), _children()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
        now = _children()
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        costs.append(Cost(time.monotonic() - start, cpu, now.ru_maxrss / 1000))
    costs = costs[1:]  # the first one warms the caches
    return Cost(
        statistics.median(c.wall_s for c in costs),
        statistics.median(c.cpu_s for c in costs),
        max(c.peak_mb for c in costs),
    )


def in_process(work: Callable[[], None], runs: int) -> Cost:
    """Time a function of this process: no start-up, no store."""
    costs = []
    for _ in range(runs):
        start, used = time.monotonic(), time.process_time()
        work()
        costs.append((time.monotonic() - start, time.process_time() - used))
    return Cost(
        statistics.median(c[0] for c in costs), statistics.median(c[1] for c in costs), float("nan")
    )


def _children() -> resource.struct_rusage:
    return resource.getrusage(resource.RUSAGE_CHILDREN)


def read_tiles(slide: Path, xy: np.ndarray, *, compress: bool) -> Callable[[], None]:
    """Return the bare work: decode the tiles, and compress them if asked, on all processors."""

    def work() -> None:
        reader = open_slide(str(slide))

        def one(corner: np.ndarray) -> int:
            pixels = reader.read(0, Box(int(corner[0]), int(corner[1]), TILE_PX, TILE_PX))
            return len(zstd_encode(pixels.tobytes())) if compress else pixels.nbytes

        with ThreadPoolExecutor(cpu_count()) as pool:
            sum(pool.map(one, xy))
        reader.close()

    return work


def copy_streams(slide: Path, xy: np.ndarray, target: Path) -> Callable[[], None]:
    """Return the bare work of copying the tiles' JPEG streams into one file."""

    def work() -> None:
        reader = open_slide(str(slide))
        jpeg = reader.native_jpeg(0)
        assert jpeg is not None
        with target.open("wb") as file:
            for x, y in xy:
                file.write(jpeg.stream(int(x) // TILE_PX, int(y) // TILE_PX) or b"")
        reader.close()

    return work


def install_null_encoder(folder: Path) -> None:
    """Put an encoder that does nothing where Python finds it, with its entry point."""
    entry = folder / "nullencoder-1.0.dist-info"
    entry.mkdir(parents=True, exist_ok=True)
    (folder / "nullencoder.py").write_text(NULL_ENCODER)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: nullencoder\nVersion: 1.0\n")
    (entry / "entry_points.txt").write_text("[cytofm.encoders]\nnull = nullencoder:PLUGIN\n")
    os.environ["PYTHONPATH"] = str(folder)


def main() -> None:
    """Build the slide, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    parser.add_argument("--size-px", type=int, default=20480)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    kind = "simulated" if arguments.fields is None else arguments.fields.resolve().name
    slide = work / f"sparse-{kind}-{arguments.size_px}.tif"
    if not slide.exists():
        builder = [sys.executable, sparse_slide.__file__, str(slide)]
        if arguments.fields is not None:
            builder += ["--fields", str(arguments.fields)]
        subprocess.run([*builder, "--size-px", str(arguments.size_px)], check=True)
    install_null_encoder(work / "plugins")
    stores = work / "stores"

    def fresh() -> None:
        shutil.rmtree(stores, ignore_errors=True)

    cytofm = [sys.executable, "-m", "cytofm_cli"]
    tile = [*cytofm, "tile", str(slide), "-o", str(stores), "--tile-px", str(TILE_PX), "-q"]
    embed = [*cytofm, "embed", "--encoder", "null", "-q"]
    rows: dict[str, Cost] = {"`cytofm --help`": measure([*cytofm, "--help"], arguments.runs, fresh)}
    sizes = {}
    for pixels in ("none", "source", "lossless"):
        name = f"`tile --pixels {pixels}`"
        rows[name] = measure([*tile, "--pixels", pixels], arguments.runs, fresh)
        files = [path for path in stores.rglob("*") if path.is_file()]
        sizes[name] = (len(files), sum(path.stat().st_size for path in files) / 1e6)

    def forget() -> None:
        for group in stores.glob("*.zarr/embeddings"):
            shutil.rmtree(group)

    words = [*embed, str(stores), "--overwrite"]
    rows["`embed` from the lossless store, encoder does nothing"] = measure(
        words, arguments.runs, forget
    )
    one_pass = [*embed, str(slide), "-o", str(stores), "--tile-px", str(TILE_PX)]
    rows["`embed` from the slide in one pass, encoder does nothing"] = measure(
        one_pass, arguments.runs, fresh
    )
    from cytofm_cli.store import io

    xy = io.open_store(next(stores.glob("*.zarr"))).read("tiles/xy_px0")
    rows["bare: decode these tiles"] = in_process(
        read_tiles(slide, xy, compress=False), arguments.runs
    )
    rows["bare: decode and compress them"] = in_process(
        read_tiles(slide, xy, compress=True), arguments.runs
    )
    rows["bare: copy their JPEG bytes"] = in_process(
        copy_streams(slide, xy, work / "bytes"), arguments.runs
    )
    print(f"{arguments.size_px}² px, {len(xy)} tiles of {TILE_PX} px, {cpu_count()} processors")
    print("\n| job | wall s | CPU s | peak MB | files | MB |\n|---|---|---|---|---|---|")
    for name, cost in rows.items():
        files, size = sizes.get(name, ("", float("nan")))
        mb = "" if size != size else f"{size:.0f}"
        peak = "" if cost.peak_mb != cost.peak_mb else f"{cost.peak_mb:.0f}"
        print(f"| {name} | {cost.wall_s:.2f} | {cost.cpu_s:.2f} | {peak} | {files} | {mb} |")


if __name__ == "__main__":
    main()
