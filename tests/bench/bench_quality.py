"""How often each column of quality fires on good fields and on dirty glass, and what it costs.

    python tests/bench/bench_quality.py --fields CRIC/images        # good fields
    python tests/bench/bench_quality.py --slide sparse.tif           # of sparse_slide.py

Prints, for the tiles of 256 px that `cytofm tile` would keep, the share of tiles above each of
some limits; and the CPU seconds of looking for foreground and focus, and of the five columns beside
them, as paired medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles import plan as planning
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.quality import COLUMNS, Signs, find_signs

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
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
