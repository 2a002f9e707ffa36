"""One focal plane, the sharpest of each tile, or all fused: nuclei, classes of cells, and cost.

    python tests/bench/bench_focus.py WORK [--patients 12] [--planes 7] [--plane-um 2]

WORK keeps a simulated cohort whose cells lie in a thick layer (`--depth-um`, the standard deviation
of their heights, where the preset `pap` has 1.2), its stores and RUNs; what is there is not made
again. First, how far cells lie from the plane of their tile. Then for each way to focus recall and
precision of the classical detector against the truth, and AUC of abnormal cells by the linear probe
of frozen features at the true nuclei, whole slides held out; 95 % intervals over slides,
and of differences to the middle plane, paired. The last table is CPU seconds of tiling one slide
beside those of reading its planes alone.

    python tests/bench/bench_focus.py WORK --real tiles_z.czi [FILE ...]

prints, for real stacks without a truth, the detail (mean squared difference of neighbours within
tiles, beside the middle plane's) and the classical detector's nuclei: of each plane, best and fuse.
"""

from __future__ import annotations

import argparse
import csv
import re
import resource
import statistics
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

import cytofm_cli as cytofm
from cytofm_cli.simulate.nuclei import TrueNuclei, points_table, read_nuclei
from cytofm_cli.slides.base import SlideReader, finest_level_for
from cytofm_cli.slides.open import open_slide
from cytofm_cli.stats.matching import match_points
from cytofm_cli.store.io import open_store
from cytofm_cli.tiles import pixels
from cytofm_cli.tiles.config import TileConfig, TileJob
from cytofm_cli.tiles.focal import find_planes
from cytofm_cli.tiles.focus import BAND_PX, FOCUS_MPP
from cytofm_cli.tiles.foreground import find_foreground
from cytofm_cli.tiles.grid import lay_grid
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.plan import measure_focus
from cytofm_cli.tiles.read import read_tile
from cytofm_cli.tiles.run import tile_slide
from cytofm_cli.tiles.source import open_tiles
from cytofm_cli.units import Box

MATCH_UM = 3.75
DRAWS = 2000
ENCODERS = ("handcrafted", "cytofm-tiny")


def ways(planes: int) -> dict[str, dict[str, object]]:
    """Return the settings of `tile` to compare; the first is the one that others differ from."""
    return {
        "middle plane": {"focus": f"plane:{planes // 2}"},
        "best, tiles of 512 px": {"focus": "best"},
        "best, tiles of 256 px": {"focus": "best", "tile_px": 256},
        "fuse": {"focus": "fuse"},
    }


def make_cohort(work: Path, args: argparse.Namespace) -> Path:
    """Simulate the cohort."""
    text = (resources.files("cytofm_cli.simulate") / "presets" / "pap.toml").read_text("utf-8")
    preset, n = re.subn(r"(?m)^depth_um = 1\.2$", f"depth_um = {args.depth_um}", text)
    assert n == 1, "the depth of the layer in the preset"
    work.mkdir(parents=True, exist_ok=True)
    (work / "thick.toml").write_text(preset, encoding="utf-8")
    cytofm.simulate_slides(
        work / "cohort", preset=str(work / "thick.toml"), patients=args.patients,
        slides_per_patient=1, size_px=2048, planes=args.planes, plane_um=args.plane_um,
        abnormal_share=0.3, seed=23,
    )  # fmt: skip
    return work / "cohort"


def nuclei_found(stores: Path, nuclei: dict[str, TrueNuclei]) -> np.ndarray:
    """Return (slides, 4): marked nuclei, those found, detections, those that are nuclei."""
    counts = []
    for slide, truth in nuclei.items():
        store = open_store(stores / f"{slide}.zarr")
        xy = store.nuclei("classical").xy_px0.astype(float)
        pairs = match_points(truth.xy_px0, xy, MATCH_UM / store.slide.mpp)
        hit = truth.marked[pairs[:, 0]].sum()
        counts.append((truth.marked.sum(), hit, len(xy), len(pairs)))
    return np.array(counts, float)


def share(counts: np.ndarray, of: int) -> Callable[[np.ndarray], float]:
    """Return recall (of=0) or precision (of=2) as a function of the weights of slides."""
    return lambda weights: float(weights @ counts[:, of + 1] / (weights @ counts[:, of]))


def interval(value: Callable[[np.ndarray], float], n: int, minus: object = None) -> str:
    """Return a share and its interval; with `minus` that of the paired difference."""
    other = minus if callable(minus) else lambda _: 0.0
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float)
    drawn = np.array([value(w) - other(w) for w in draws])
    low, high = np.percentile(drawn, (2.5, 97.5))
    point = value(np.ones(n)) - other(np.ones(n))
    sign = "+" if callable(minus) else ""
    return f"{point:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def judge(work: Path, cohort: Path, args: argparse.Namespace) -> None:
    """Print recall, precision and AUC of each way."""
    points = work / "points.csv"
    nuclei = dict(list(read_nuclei(cohort).items())[: args.slides])
    slides = [cohort / "slides" / f"{slide}.ome.tiff" for slide in nuclei]
    points.write_text(points_table(nuclei), encoding="utf-8")
    found: dict[str, np.ndarray] = {}
    aucs: dict[str, list[str]] = {}
    for name, settings in ways(args.planes).items():
        folder = work / re.sub(r"\W+", "-", name)
        cytofm.tile(slides, folder / "stores", workers=1, **settings)
        stores = [folder / "stores" / f"{slide}.zarr" for slide in nuclei]
        cytofm.detect(stores, detector="classical", workers=1)
        found[name] = nuclei_found(folder / "stores", nuclei)
        run = cytofm.probe(
            stores,
            points,
            folder / f"probe-{len(stores)}",
            encoders=list(ENCODERS),
            task=("abnormal",),
        )
        aucs[name] = [auc_of(run.metrics, encoder) for encoder in ENCODERS]
    first = next(iter(found))
    print("| focus | recall of nuclei | beside the middle | precision | beside the middle |")
    print("|---|---|---|---|---|")
    for name, counts in found.items():
        cells = []
        for of in (0, 2):
            value, base = share(counts, of), share(found[first], of)
            cells += [interval(value, len(counts))]
            cells += ["" if name == first else interval(value, len(counts), base)]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n| focus | {' | '.join(f'AUC of abnormal cells, {e}' for e in ENCODERS)} |")
    print("|---|" + "---|" * len(ENCODERS))
    for name, cells in aucs.items():
        print(f"| {name} | {' | '.join(cells)} |")


def auc_of(metrics: dict, encoder: str) -> str:
    """Return the AUC of the linear probe and its interval."""
    encoders = metrics["tasks"]["abnormal"]["encoders"]
    score = encoders[encoder]["probes"]["linear"]["auc"]
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def criterion(cohort: Path) -> None:
    """Print how far cells lie from the plane that is chosen for their tile, µm."""
    with (cohort / "cells.csv").open(encoding="utf-8", newline="") as stream:
        cells = [(row["slide_id"], *(float(row[k]) for k in ("x", "y", "z_um")))
                 for row in csv.DictReader(stream)]  # fmt: skip
    print("\n| side of a tile | middle plane | by the score | by the energy | nearest possible |")
    print("|---|---|---|---|---|")
    for side in (128, 256, 512):
        away: list[list[float]] = []
        for path in sorted((cohort / "slides").iterdir()):
            slide_id = path.name.removesuffix(".ome.tiff")
            mine = np.array([cell[1:] for cell in cells if cell[0] == slide_id])
            with open_slide(str(path)) as slide:
                away += distances(slide, mine, side)
        means = " | ".join(f"{value:.2f}" for value in np.mean(away, 0))
        print(f"| {side} px, {len(away)} tiles | {means} |")


def distances(slide: SlideReader, cells: np.ndarray, side: int) -> list[list[float]]:
    """Return for each tile with cells their mean distance from four choices of a plane."""
    xy = lay_grid(slide.info.size_px0, side, side)
    mpp = slide.info.mpp
    mask = find_foreground(slide.overview(16), mpp * 16).mask_HW
    planes = find_planes(slide, lambda plane: measure_focus(plane, mpp, mask, 1), xy, side)
    heights = np.array(slide.info.planes_um) - np.mean(slide.info.planes_um)
    away = []
    for row, corner in enumerate(xy):
        inside = ((cells[:, :2] >= corner) & (cells[:, :2] < corner + side)).all(1)
        if inside.any():
            far = np.abs(cells[inside, 2:] - heights).mean(0)
            chosen = (len(heights) // 2, planes.focus_NP[row].argmax(), planes.plane_N[row])
            away.append([*far[list(chosen)], far.min()])
    return away


def cpu_s(do: Callable[[], object]) -> float:
    """Return CPU seconds of a function: the median of three."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF)
        do()
        after = resource.getrusage(resource.RUSAGE_SELF)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return float(np.median(taken))


def cost(work: Path, cohort: Path, args: argparse.Namespace) -> None:
    """Print what each way costs beside reading the planes that it needs, medians of paired runs."""
    slide = str(sorted((cohort / "slides").iterdir())[0])
    out = work / "cost"
    out.mkdir(exist_ok=True)
    pixels._SAMPLE = 1  # the forecast of twelve tiles is most of so small a slide
    runs = [_cost_once(slide, out, args.planes) for _ in range(args.runs)]
    seconds = {name: statistics.median(run[name][0] for run in runs) for name in runs[0]}
    print(f"\nOne slide, {args.planes} planes, CPU s, medians of {len(runs)} runs:\n")
    print("| | CPU s | planes read + one plane tiled | ratio | from | to |")
    print("|---|---|---|---|---|---|")
    for name in ("best", "fuse"):
        bare = statistics.median(run[name][1] for run in runs)
        ratios = sorted(run[name][0] / run[name][1] for run in runs)
        told = f"{statistics.median(ratios):.2f} | {ratios[0]:.2f} | {ratios[-1]:.2f}"
        print(f"| {name} | {seconds[name]:.2f} | {bare:.2f} | {told} |")


def _cost_once(slide: str, out: Path, n_planes: int) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of each way, and of what it needs at least."""

    def tile(focus: str) -> float:
        config = TileConfig(focus=focus, pixels="lossless")
        job = TileJob(slide_id="a", path=slide, mpp=None, stores=out, config=config, overwrite=True)
        return cpu_s(lambda: tile_slide(job, lambda *_: None, lambda _: None))

    middle = n_planes // 2
    plain, best, fused = (tile(focus) for focus in (f"plane:{middle}", "best", "fuse"))
    store = open_store(out / "a.zarr")

    def read(planes: list[int], *, whole: bool) -> float:
        def do() -> None:
            with open_slide(slide) as opened:
                for plane in planes:
                    reader = opened.at_plane(plane)
                    if not whole:
                        bands(reader, store.slide.mpp)
                        continue
                    for x, y in store.tile_xy_px0.tolist():
                        read_tile(reader, plan_of(store), x, y)

        return cpu_s(do)

    others = [plane for plane in range(n_planes) if plane != middle]
    coarse, fine = read(others, whole=False), read(others, whole=True)
    return {"best": (best, plain + coarse), "fuse": (fused, plain + coarse + fine)}


def real(path: Path, work: Path) -> None:
    """Print detail and nuclei of each plane of a real stack, of best and of fuse."""
    with open_slide(str(path)) as slide:
        info = slide.info
    names = [f"plane:{plane}" for plane in range(info.n_focal_planes)]
    energy, nuclei = {}, {}
    for name in (*names, "best", "fuse"):
        stores = work / f"real-{path.name}" / name.replace(":", "-")
        words = {"focus": name, "tile_px": 64, "foreground": "none", "workers": 1}
        cytofm.tile([path], stores, mpp=info.mpp, **words)
        folder = next(stores.glob("*.zarr"))
        cytofm.detect([folder], detector="classical", workers=1)
        store = open_store(folder)
        nuclei[name] = len(store.nuclei("classical").xy_px0)
        with open_tiles(store) as tiles:
            tiles_N = np.stack([tiles.read(row) for row in range(len(tiles.xy_px0))]).astype(float)
        energy[name] = sum(np.square(np.diff(tiles_N, axis=axis)).mean() for axis in (1, 2))
    middle = energy[names[info.focal_plane]]
    size = " x ".join(map(str, info.size_px0))
    print(f"\n{path.name}, {size} px, {info.mpp:.3g} µm/px, {len(names)} planes\n")
    print("| focus | detail beside the middle plane | nuclei |\n|---|---|---|")
    for name, of in energy.items():
        print(f"| {name} | {of / middle:.3f} | {nuclei[name]} |")


def bands(reader: SlideReader, mpp: float) -> None:
    """Read what the focus score reads of a plane, and do nothing with it."""
    info = reader.info
    level = finest_level_for(info.levels, FOCUS_MPP * 1.05 / mpp)
    size = info.levels[level].size_px
    for top in range(0, size.h, BAND_PX):
        reader.read(level, Box(0, top, size.w, min(BAND_PX, size.h - top)))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--planes", type=int, default=7)
    parser.add_argument("--runs", type=int, default=9, help="of the cost")
    parser.add_argument("--slides", type=int, help="judge the first so many alone")
    parser.add_argument("--plane-um", type=float, default=2.0)
    parser.add_argument("--depth-um", type=float, default=4.0)
    parser.add_argument("--real", type=Path, nargs="+", help="measure these stacks alone")
    args = parser.parse_args()
    if args.real:
        for path in args.real:
            real(path, args.work)
        return
    cohort = make_cohort(args.work, args)
    criterion(cohort)
    judge(args.work, cohort, args)
    cost(args.work, cohort, args)


if __name__ == "__main__":
    main()
