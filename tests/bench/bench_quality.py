"""How often each column of quality fires on good fields and on dirty glass, and what it costs.

    python tests/bench/bench_quality.py --fields CRIC/images        # good fields
    python tests/bench/bench_quality.py --slide sparse.tif           # of sparse_slide.py
    python tests/bench/bench_quality.py --fields CRIC --dirty WORK   # recall on glass of known dirt

Prints, for the tiles of 256 px that `cytofm tile` would keep, the share of tiles above each of
some limits; and the CPU seconds of looking for foreground and focus, and of the five columns beside
them, as paired medians. `--dirty` pastes fields on the glasses of `sparse_slide.py`, and prints
how many tiles with a pen's stroke, the rim of a bubble or the coverslip's edge `pen` and `edge`
take at the limits that docs/quality.md names, and how many tiles of fields.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import simulated_fields
import sparse_slide

from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles import plan as planning
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.foreground import find_foreground
from cytofm_cli.tiles.quality import COLUMNS, Signs, find_signs

TAKES = {"pen": 0.1, "edge": 0.25}  # the limits of docs/quality.md
SIDE, DIRTY_PX, FEW = 256, 6144, 4
LIMITS = (0.01, 0.05, 0.1, 0.25, 0.5)


class Clock:
    """Adds up the CPU seconds of a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        return timed


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--fields", type=Path, help="folder of images")
    parser.add_argument("--slide", type=Path, action="append", default=[])
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dirty", type=Path, help="folder for slides with known dirt")
    args = parser.parse_args()
    if args.dirty:
        dirty(simulated_fields.fields_of(args.fields), args.dirty)
        return
    paths = [*args.slide, *(sorted(args.fields.glob("*.jpg")) if args.fields else [])]
    runs = [measure(paths, args.mpp) for _ in range(args.runs)]
    columns = runs[0][0]
    n = len(columns["blank"])
    print(f"{len(paths)} slides, {n} tiles of 256 px with foreground; share of tiles above")
    print("| column | largest | " + " | ".join(f"> {limit:g}" for limit in LIMITS) + " |")
    for name in COLUMNS:
        told = " | ".join(f"{(columns[name] > limit).mean():.1%}" for limit in LIMITS)
        print(f"| {name} | {columns[name].max():.2f} | {told} |")
    quality = statistics.median(of for _, of, _ in runs)
    share = statistics.median(of / total for _, of, total in runs)
    print(f"{quality:.2f} CPU s, {share:.1%} of planning (open, overview, foreground, focus)")


def measure(paths: Sequence[Path], mpp: float) -> tuple[dict[str, Any], float, float]:
    """Return the columns of all tiles, and the CPU seconds of quality and of planning."""
    clock, columns = Clock(), {name: [] for name in COLUMNS}
    planning.find_signs = clock.of(find_signs)  # type: ignore[assignment]
    Signs.measure, former = clock.of(Signs.measure), Signs.measure  # type: ignore[method-assign]
    start = time.process_time()
    for path in paths:
        config = TileConfig(tile_px=256, slide_mpp=mpp)
        job = TileJob(slide_id="s", path=str(path), mpp=None, stores=Path(), config=config)
        with open_slide(str(path)) as reader:
            plan = planning.plan_tiles(reader, job)
        for name, column in plan.quality.items():
            columns[name].append(column)
    total = time.process_time() - start
    planning.find_signs, Signs.measure = find_signs, former  # type: ignore[method-assign]
    return {name: np.concatenate(of) for name, of in columns.items()}, clock.seconds, total


def dirty(fields: Path, work: Path) -> None:
    """Print recall and false alarms on each glass."""
    work.mkdir(parents=True, exist_ok=True)
    with (fields / "images.csv").open(newline="") as handle:
        counts = Counter(row["group"] for row in csv.DictReader(handle))
    group = min((name for name, n in counts.items() if n >= FEW), key=lambda name: counts[name])
    print("| glass | pen | edge: rims | edge: coverslip | pen on fields | edge on fields |")
    print("|---|---|---|---|---|---|")
    for number, glass in enumerate(sparse_slide.GLASSES):
        path = work / f"glass{number}.tif"
        slide = sparse_slide.build(
            fields,
            path,
            size_px=DIRTY_PX,
            glass=replace(glass, one_stroke=True),
            seed=number,
            groups=[group],
        )
        print(f"| {number} | " + " | ".join(judge(slide)) + " |", flush=True)


def judge(slide: sparse_slide.SparseSlide) -> list[str]:
    """Return "taken of there are" for each kind of dirt, then for tiles of fields."""
    config = TileConfig(tile_px=SIDE, slide_mpp=0.25, foreground="none")
    job = TileJob(slide_id="s", path=str(slide.path), mpp=None, stores=Path(), config=config)
    with open_slide(str(slide.path)) as reader:
        plan = planning.plan_tiles(reader, job)
        signs = find_signs(
            plan.overview.image_HWC,
            find_foreground(plan.overview.image_HWC, 0.25 * max(plan.overview.downsample)),
            0.25 * max(plan.overview.downsample),
        )
        columns = signs.measure(plan.overview.downsample, plan.xy_px0, SIDE)
    taken = {name: columns[name] > limit for name, limit in TAKES.items()}
    grid = np.mgrid[0:DIRTY_PX:16, 0:DIRTY_PX:16][::-1] + 8.0
    fields = np.zeros(grid.shape[1:], bool)
    for x, y, w, h in slide.boxes_px0.tolist():
        fields[y // 16 : -(-(y + h) // 16), x // 16 : -(-(x + w) // 16)] = True
    share = {name: of_tiles(mask & ~fields, plan.xy_px0) for name, mask in drawn(slide, grid)}
    told = []
    for name, column, least in (
        ("pen", "pen", 0.25),
        ("rim", "edge", 0.06),
        ("edge", "edge", 0.06),
    ):
        there = share[name] >= least
        told.append(f"{(taken[column] & there).sum()} of {there.sum()}")
    on_fields = of_tiles(fields, plan.xy_px0) == 1
    return told + [f"{(taken[name] & on_fields).sum()} of {on_fields.sum()}" for name in TAKES]


def drawn(slide: sparse_slide.SparseSlide, grid: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield where the pen, rims of bubbles and the coverslip's edge lie on a grid of points."""
    masks = {name: np.zeros(grid.shape[1:], bool) for name in ("pen", "edge", "rim")}
    for name in ("pen", "edge"):
        for x0, y0, x1, y1, width in slide.dirt[name]:
            along = np.array([x1 - x0, y1 - y0])
            rel = grid - np.array([x0, y0])[:, None, None]
            t = np.clip(np.tensordot(along, rel, 1) / (along @ along), 0, 1)
            away = np.hypot(*(rel - t * along[:, None, None]))
            masks[name] |= away < max(width / 2, 12)
    for x, y, radius in slide.dirt["bubbles"]:
        masks["rim"] |= np.abs(np.hypot(grid[0] - x, grid[1] - y) - radius) < 12
    yield from masks.items()


def of_tiles(mask: np.ndarray, xy_px0: np.ndarray) -> np.ndarray:
    """Return the share of each tile that a mask of 16 px a pixel covers."""
    per = SIDE // 16
    shares = mask.reshape(mask.shape[0] // per, per, -1, per).mean((1, 3))
    return shares[xy_px0[:, 1] // SIDE, xy_px0[:, 0] // SIDE]


if __name__ == "__main__":
    main()
