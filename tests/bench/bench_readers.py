"""Tiles a CPU second and overview time of every reader, beside native decoding alone.

Builds a 20 480 x 20 480 JPEG pyramid (256-px tiles, 0.25 µm/px) from Pap fields,
simulated ones or real ones from a folder of pictures:

    python tests/bench/bench_readers.py [--fields FOLDER] [--fill 0.26] [--runs 3] [--side 20480]

`--fill` is the part of the slide that fields cover; 1 is as dense as can be. Medians of
`--runs` runs; CPU seconds of the process, wall seconds for the overview.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import simulated_fields

from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box

TILE_PX = 256
OVERVIEW_DOWNSAMPLE = 32.0


def build(path: Path, fields: Path, side_px: int, fill: float) -> None:
    """Write the slide: fields on a grid of cells, blank glass between."""
    import pyvips

    files = sorted(each for each in fields.rglob("*") if each.suffix in (".jpg", ".jpeg", ".png"))
    if not files:
        sys.exit(f"{fields}: no pictures")
    across, down = -(-side_px // 1280), -(-side_px // 957)
    rng = np.random.default_rng(0)
    filled = rng.permutation(across * down) < round(fill * across * down)
    blank = pyvips.Image.black(1280, 957, bands=3).linear(1, [236, 238, 232], uchar=True)
    cells = [
        pyvips.Image.new_from_file(str(files[i % len(files)])) if here else blank
        for i, here in enumerate(filled)
    ]
    image = pyvips.Image.arrayjoin(cells, across=across, hspacing=1280, vspacing=957)
    noise = pyvips.Image.gaussnoise(image.width, image.height, mean=0, sigma=1.5)
    image = (image.copy(interpretation="srgb") + noise).cast("uchar").crop(0, 0, side_px, side_px)
    image.tiffsave(
        str(path), compression="jpeg", Q=80, tile=True, tile_width=TILE_PX, tile_height=TILE_PX,
        pyramid=True, bigtiff=True, xres=4000, yres=4000,
    )  # fmt: skip


def read_tiles(path: str, reader: str, shift_px: int) -> int:
    """Read every tile of level 0 once, row by row; return how many."""
    slide = open_slide(path, reader=reader)
    width, height = slide.info.size_px0
    count = 0
    for y in range(shift_px, height - TILE_PX + 1, TILE_PX):
        for x in range(shift_px, width - TILE_PX + 1, TILE_PX):
            slide.read(0, Box(x, y, TILE_PX, TILE_PX))
            count += 1
    slide.close()
    return count


def decode_native(path: str) -> int:
    """Decode every native tile of level 0 once: the floor for any reader."""
    slide = open_slide(path)
    tiles = slide.native_jpeg(0)
    if tiles is None:
        sys.exit(f"{path}: no native tiles")
    for row in range(tiles.grid.h):
        for column in range(tiles.grid.w):
            stream = tiles.stream(column, row)
            if stream is not None:
                imagecodecs.jpeg8_decode(stream)
    return tiles.grid.w * tiles.grid.h


def copy_native(path: str) -> int:
    """Fetch every native tile of level 0 as a complete stream, decoding nothing."""
    tiles = open_slide(path).native_jpeg(0)
    if tiles is None:
        sys.exit(f"{path}: no native tiles")
    for row in range(tiles.grid.h):
        for column in range(tiles.grid.w):
            tiles.stream(column, row)
    return tiles.grid.w * tiles.grid.h


def overview(path: str, reader: str) -> int:
    """Make the whole slide's picture once."""
    open_slide(path, reader=reader).overview(OVERVIEW_DOWNSAMPLE)
    return 1


def main() -> None:
    """Build, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=Path, help="folder of pictures of real fields")
    parser.add_argument("--side", type=int, default=20_480)
    parser.add_argument("--fill", type=float, default=0.26)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    fields = simulated_fields.fields_of(options.fields)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "slide.tif")
        build(Path(path), fields, options.side, options.fill)
        jobs: dict[str, Callable[[], int]] = {
            "native tiles, decoded (imagecodecs)": lambda: decode_native(path),
            "native tiles, copied": lambda: copy_native(path),
        }
        for reader in ("vips", "openslide", "tiffslide"):
            jobs[f"{reader}, aligned tiles"] = lambda r=reader: read_tiles(path, r, 0)
        for reader in ("vips", "openslide"):
            jobs[f"{reader}, tiles shifted by 100 px"] = lambda r=reader: read_tiles(path, r, 100)
        for reader in ("vips", "openslide", "tiffslide"):
            jobs[f"{reader}, overview at 1/32"] = lambda r=reader: overview(path, r)
        size_mb = Path(path).stat().st_size / 1e6
        print(
            f"{options.side} px, fill {options.fill}, {size_mb:.0f} MB, median of {options.runs}\n"
        )
        print("| job | CPU s | wall s | tiles a CPU s |\n|---|---|---|---|")
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
        counts: dict[str, int] = {}
        for _ in range(options.runs):  # outermost: what else runs here disturbs all jobs alike
            for name, job in jobs.items():
                cpu, wall = time.process_time(), time.perf_counter()
                counts[name] = job()
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
        for name, pairs in seconds.items():
            cpu, wall = (statistics.median(column) for column in zip(*pairs, strict=True))
            rate = f"{counts[name] / cpu:.0f}" if counts[name] > 1 else "–"
            print(f"| {name} | {cpu:.2f} | {wall:.2f} | {rate} |")


if __name__ == "__main__":
    main()
