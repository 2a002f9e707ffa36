"""Heat maps of a slide of 100 000 x 100 000 px: CPU seconds, peak memory, size of the file.

    python tests/bench/bench_heatmap.py WORK [--side 100000] [--cells 200000] [--mpp 1.0]

Draws the map of made-up cells (12-gons, 4 µm in radius, at 0.25 µm/px) as `cytofm heatmap` does.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from cytofm_cli.maps.heat import Painter, Places
from cytofm_cli.maps.ome_tiff import Plane, write_ome_tiff
from cytofm_cli.maps.picture import table_of
from cytofm_cli.nuclei.base import make_table

MPP0 = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--mpp", type=float, default=1.0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centre = rng.uniform(100, args.side - 100, (args.cells, 2))
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = 4 / MPP0 * np.stack([np.cos(turn), np.sin(turn)], 1)
    table = make_table(centre, np.full(args.cells, 50.0), polygons=list(centre[:, None] + ring))
    places = Places(np.round(centre).astype(np.int32), None, table, 16.0)
    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun = time.process_time()
    step = round(args.mpp / MPP0)
    side = -(-args.side // step)
    painter, colours = Painter(places, rng.random(args.cells), step), table_of("viridis")
    path = args.work / "map.ome.tiff"
    plane = Plane(side, side, step * MPP0, "map", "map")
    write_ome_tiff(path, plane, lambda top, rows: colours[painter.paint(top, rows, side)])
    cpu_s = time.process_time() - begun
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{args.side} px, {args.cells} cells, map of {side} px: {cpu_s:.1f} CPU s, peak "
        f"{peak_mb:.0f} MB ({before_mb:.0f} before), {path.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
