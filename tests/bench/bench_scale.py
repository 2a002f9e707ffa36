"""What one slide of a large cohort costs, whatever is in it: two thousand small ones.

    python tests/bench/bench_scale.py WORK [--slides 2000] [--json FILE] [--finished]

Links one small slide (1 024² px, JPEG) under as many names, tiles, detects and embeds them with 1,
2, … workers, and runs the commands again with nothing left to do. CPU seconds are of the processes
and their children, less those of the same command for one slide that is done. Where `strace` is
installed, the calls that a file server has to answer are counted over ten slides.

With `--finished` nothing is computed but one store of six steps, which is linked under as many
names: `status`, `tile`, `detect` and `embed` look at them, in turn, five times (medians).
`plan_scale.py` reckons large cohorts from such figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.work.cpus import cpu_count

SIDE_PX = 1024
TRACED = 10
ROUNDS = 5
BAGS = [(encoder, unit) for encoder in ("handcrafted", "cytofm-tiny") for unit in ("tile", "cell")]
# Calls that ask a file server; reads and writes of open files are bytes, counted elsewhere.
ASKS = "open,openat,stat,lstat,newfstatat,statx,access,faccessat,faccessat2,getdents64,readlink"
CHANGES = "creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,symlink"


@dataclass(frozen=True)
class Cost:
    """What one command took.

    Attributes:
        wall_s: from start to end.
        cpu_s: of the process and its children.
        peak_mb: of the largest process.
    """

    wall_s: float
    cpu_s: float
    peak_mb: float


def main() -> None:
    """Print a table, and the calls a slide."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--slides", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--finished", action="store_true", help="only what finds all done")
    args = parser.parse_args()
    if args.finished:
        result = look_at_finished(args.work, args.slides)
    else:
        result = do_and_do_again(args.work, args.slides)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


def do_and_do_again(work: Path, n: int) -> dict[str, Any]:
    """Tile, detect and embed `n` slides, and again; print and return what it takes."""
    slides = link_slides(work, n)
    start_s = {name: run(words).cpu_s for name, words in one_done(work).items()}
    result = {"slides": n, "cpus": cpu_count(), "costs": {}, **size_of(work, slides)}
    print("| command | workers | wall s | CPU ms a slide | slides a second | peak MB |")
    print("|---|---|---|---|---|---|")
    for workers in range(1, cpu_count() + 1):
        stores = work / f"stores-{workers}"
        shutil.rmtree(stores, ignore_errors=True)
        commands = steps(slides, stores, workers)
        for name in (*commands, *(f"{name} again" for name in commands)):
            words = commands[name.removesuffix(" again")]
            cost = run(words)
            result["costs"][f"{name}, {workers}"] = asdict(cost)
            cpu_ms = (cost.cpu_s - start_s[name.removesuffix(" again")]) / n * 1e3
            print(
                f"| {name} | {workers} | {cost.wall_s:.1f} | {cpu_ms:.2f} | "
                f"{n / cost.wall_s:.0f} | {cost.peak_mb:.0f} |",
                flush=True,
            )
    result["calls a slide"] = calls_a_slide(work)
    for name, calls in result["calls a slide"].items():
        print(f"{name}: {calls} a slide")
    return result


def look_at_finished(work: Path, n: int) -> dict[str, Any]:
    """Run each command that finds `n` finished stores; print and return medians."""
    some = {many: finished(work, many) for many in (1, n)}
    costs: dict[tuple[str, int], list[Cost]] = {}
    for _ in range(ROUNDS):
        for many, commands in some.items():
            for name, words in commands.items():
                costs.setdefault((name, many), []).append(run(words))
    result: dict[str, Any] = {"slides": n, "cpus": cpu_count(), "load": os.getloadavg()}
    print("| command | stores | wall s | CPU s | CPU ms a store beyond start-up | peak MB |")
    print("|---|---|---|---|---|---|")
    for name in some[n]:
        one, many = (middle(costs[name, count]) for count in (1, n))
        more_ms = (many.cpu_s - one.cpu_s) / n * 1e3
        result[name] = {"one": asdict(one), "all": asdict(many)}
        print(
            f"| {name} | {n} | {many.wall_s:.2f} | {many.cpu_s:.2f} | {more_ms:.2f} | "
            f"{many.peak_mb:.0f} |"
        )
    return result


def middle(costs: list[Cost]) -> Cost:
    """Return the medians of several runs."""
    return Cost(*(statistics.median(column) for column in zip(*map(astuple, costs), strict=True)))


def finished(work: Path, n: int) -> dict[str, list[str]]:
    """Make `n` stores of six steps; return the commands that find nothing left to do there."""
    slides, stores = link_slides(work, n), work / f"finished-{n}"
    first = steps(link_slides(work, 1), work / "finished-1", 1)
    made = work / "finished-1" / "s000000.zarr"
    if not made.exists():
        run(first["tile"])
        run(first["detect"])
        for encoder, unit in BAGS:
            run([*first["embed"], "--encoder", encoder, "--unit", unit])
    for number in range(n):
        path = stores / f"s{number:06d}.zarr"
        if not path.exists():
            shutil.copytree(made, path, copy_function=os.link)
    return {"status": ["status", str(stores)], **steps(slides, stores, 1)}


def link_slides(work: Path, n: int) -> Path:
    """Make one slide with cells, and link it under `n` names; return the folder."""
    folder, one = work / f"slides-{n}", work / "one.tif"
    folder.mkdir(parents=True, exist_ok=True)
    if not one.exists():  # in another process: memory that this one holds would be the children's
        spawned = multiprocessing.get_context("spawn").Process(target=draw_slide, args=(one,))
        spawned.start()
        spawned.join()
    for number in range(n):
        path = folder / f"s{number:06d}.tif"
        if not path.exists():
            os.link(one, path)
    return folder


def draw_slide(path: Path) -> None:
    """Write a tiled JPEG TIFF of thirty cells at 0.25 µm/px."""
    import numpy as np
    import pyvips

    rng = np.random.default_rng(0)
    image = np.full((SIDE_PX, SIDE_PX, 3), 245, np.uint8)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    for column, row in rng.integers(50, SIDE_PX - 50, (30, 2)):
        away = np.hypot(x - column, y - row)
        image[away < 45] = (200, 220, 215)
        image[away < 15] = (80, 60, 130)
    pyvips.Image.new_from_array(image).tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, compression="jpeg", Q=90,
        xres=4000, yres=4000,
    )  # fmt: skip


def steps(slides: Path, stores: Path, workers: int) -> dict[str, list[str]]:
    """Return the commands that are timed."""
    lazy = ["--workers", str(workers), "--quiet", "--no-progress"]
    return {
        "tile": ["tile", str(slides), "-o", str(stores), "--tile-px", "256", *lazy],
        "detect": ["detect", str(stores), *lazy],
        "embed": ["embed", str(stores), "--encoder", "handcrafted", *lazy],
    }


def run(words: list[str]) -> Cost:
    """Run a command in a process of its own."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "cytofm_cli", *words], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)}: exit {process.returncode}")
    return Cost(time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)


def one_done(work: Path) -> dict[str, list[str]]:
    """Take one slide through the steps; return the commands, which have nothing left to do."""
    commands = steps(link_slides(work, 1), work / "stores-of-one", 1)
    for words in commands.values():
        run(words)
    return commands


def size_of(work: Path, slides: Path) -> dict[str, float]:
    """Return bytes and files of one slide's finished store."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        some = Path(folder) / "slides"
        some.mkdir()
        os.link(next(iter(sorted(slides.iterdir()))), some / "s.tif")
        for words in steps(some, Path(folder) / "stores", 1).values():
            run(words)
        files = [path for path in (Path(folder) / "stores").rglob("*") if path.is_file()]
        return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def calls_a_slide(work: Path) -> dict[str, dict[str, float]]:
    """Count calls that a file server answers, a slide: those for twenty less those for ten."""
    if not shutil.which("strace"):
        return {}
    counts = {}
    for n in (TRACED, 2 * TRACED):
        slides = link_slides(work, n)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            for name, words in steps(slides, Path(folder) / "stores", 1).items():
                for word in (name, f"{name} again"):
                    counts[word, n] = trace(words)
    return {
        name: {
            kind: round((counts[name, 2 * TRACED][kind] - few[kind]) / TRACED, 1) for kind in few
        }
        for (name, n), few in counts.items()
        if n == TRACED
    }


def trace(words: list[str]) -> dict[str, int]:
    """Count the calls of one command, all its processes together: that ask, that change."""
    with tempfile.NamedTemporaryFile("r") as report:
        line = ["strace", "-f", "-qq", "-c", "-o", report.name, "-e", f"trace={ASKS},{CHANGES}"]
        subprocess.run(
            [*line, sys.executable, "-m", "cytofm_cli", *words],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        rows = re.findall(
            r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", report.read(), re.M
        )
    called = {name: int(count) for count, name in rows if name != "total"}
    changes = sum(called.get(name, 0) for name in CHANGES.split(","))
    return {"asks": sum(called.values()) - changes, "changes": changes}


if __name__ == "__main__":
    main()
