"""Compare ways to find the cells of a sparse slide: area kept, marked nuclei kept, CPU time.

    python tests/bench/bench_foreground.py WORK [--glass 0 1 2] [--seed 0] [--fields DIR]

WORK keeps the slides (50 MB and half a minute each to build). Every method gets the same overview
at 4 µm/px; "tiles" counts the tiles of an aligned grid with at least `--min-foreground` of it.
The baselines are the usual ones, each in its usual setting and none tuned to these slides.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from cytofm_cli.tiles import focus, foreground, grid
from cytofm_cli.units import Size

sys.path.insert(0, str(Path(__file__).parent))
import simulated_fields
import sparse_slide

MPP = 0.25
DOWNSAMPLE = round(foreground.OVERVIEW_MPP / MPP)


def otsu(values: NDArray[np.uint8]) -> int:
    """Return Otsu's threshold (1979): the largest variance between the two classes."""
    counts = np.bincount(values.ravel(), minlength=256).astype(float)
    below = np.cumsum(counts)
    total = np.cumsum(counts * np.arange(256))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (total[-1] * below / below[-1] - total) ** 2 / (below * (below[-1] - below))
    return int(np.nanargmax(spread))


def saturation(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    high, low = image.max(2).astype(int), image.min(2)
    blurred = (255 * (high - low) // np.maximum(high, 1)).astype(np.uint8)
    return pyvips.Image.new_from_array(blurred).median(7).numpy()


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return (image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def from_background(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    away = image - np.median(image.reshape(-1, 3)[::97], 0)
    return np.sqrt(np.square(away).sum(2)) > 30


Method = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
METHODS: dict[str, Method] = {
    "cytofm": lambda image: foreground.find_foreground(image, MPP * DOWNSAMPLE).mask_HW,
    "saturation > 8": lambda image: saturation(image) > 8,
    "saturation, Otsu": lambda image: saturation(image) > otsu(saturation(image)),
    "grey, Otsu": lambda image: grey(image) <= otsu(grey(image)),
    "30 from background": from_background,
}


def cpu_s() -> float:
    """Return CPU seconds of this process and its threads so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def overview(path: Path) -> NDArray[np.uint8]:
    """Read the pyramid's level at 4 µm/px."""
    return pyvips.Image.new_from_file(str(path), page=int(np.log2(DOWNSAMPLE))).numpy()


def report(slide: sparse_slide.SparseSlide, name: str, min_foreground: float) -> None:
    """Print one line a method."""
    x, y = (slide.nuclei_px0 / DOWNSAMPLE).astype(int).T
    for method, find in METHODS.items():
        times = []
        for _ in range(3):
            start = cpu_s()
            image = overview(slide.path)
            mask = find(image)
            size = Size(image.shape[1] * DOWNSAMPLE, image.shape[0] * DOWNSAMPLE)
            grids = {tile: grid.lay_grid(size, tile, tile) for tile in (256, 512)}
            shares = {
                tile: foreground.tile_fraction(mask, DOWNSAMPLE, xy, tile)
                for tile, xy in grids.items()
            }
            times.append(cpu_s() - start)
        line = f"{name:9} {method:20} {mask.mean():7.1%} {mask[y, x].mean():8.2%}"
        for tile, share in shares.items():
            chosen = share >= min_foreground
            column, row = (slide.nuclei_px0 // tile).astype(int).T
            held = chosen[row * len(np.unique(grids[tile][:, 0])) + column]
            line += f" {chosen.mean():8.1%} {held.mean():8.2%}"
        print(f"{line} {np.median(times):8.2f}")


def report_focus(slide: sparse_slide.SparseSlide) -> None:
    """Print what the focus score of every tile costs, decoding included."""
    mask = foreground.find_foreground(overview(slide.path), MPP * DOWNSAMPLE).mask_HW
    fine = pyvips.Image.new_from_file(str(slide.path), page=int(np.log2(focus.FOCUS_MPP / MPP)))
    size, step = (fine.width, fine.height), focus.FOCUS_MPP / MPP
    region = pyvips.Region.new(fine)
    start = cpu_s()
    bands = [
        (
            top,
            np.frombuffer(
                region.fetch(0, top, fine.width, min(focus.BAND_PX, fine.height - top)), np.uint8
            ).reshape(-1, fine.width, 3),
        )
        for top in range(0, fine.height, focus.BAND_PX)
        if focus.needs_band(top, size, mask)
    ]
    decoded = cpu_s()
    found = focus.measure(bands, size, (step, step), focus.FOCUS_MPP, mask)
    tiles = grid.lay_grid(Size(*(round(side * step) for side in size)), 256, 256)
    score = found.score(tiles, 256)
    sharp = score[score > 0]
    print(
        f"focus of {len(tiles)} tiles: {decoded - start:.2f} CPU s to decode 1 µm/px, "
        f"{cpu_s() - decoded:.2f} to score; median {np.median(sharp):.2f}"
    )


def main() -> None:
    """Build what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    parser.add_argument("--glass", type=int, nargs="*", default=None, help="-1 is clean glass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-px", type=int, default=20480)
    parser.add_argument("--min-foreground", type=float, default=foreground.MIN_FOREGROUND)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    fields = simulated_fields.fields_of(args.fields)
    kind = "simulated" if args.fields is None else args.fields.resolve().name
    glasses = range(-1, len(sparse_slide.GLASSES)) if args.glass is None else args.glass
    print(f"tiles: at least {args.min_foreground:.0%} foreground")
    print(
        f"{'glass':9} {'method':20} {'mask':>7} {'nuclei':>8} {'256 area':>8} {'nuclei':>8} "
        f"{'512 area':>8} {'nuclei':>8} {'CPU s':>8}"
    )
    for glass in glasses:
        slide = sparse_slide.build(
            fields,
            args.work / f"sparse_{kind}_{args.size_px}_{glass}_{args.seed}.tif",
            size_px=args.size_px,
            glass=sparse_slide.CLEAN if glass < 0 else sparse_slide.GLASSES[glass],
            seed=args.seed,
        )
        report(slide, "clean" if glass < 0 else f"glass {glass}", args.min_foreground)
    report_focus(slide)


if __name__ == "__main__":
    main()
