"""Measure view making against torchvision transforms on PIL images: one machine, one core.

Run: `OMP_NUM_THREADS=1 python tests/bench/bench_views.py [--rounds 7] [--json FILE] [--fields DIR]`

Both sides make the same views of the same 512-px tiles: the same plan (kept nuclei, boxes,
turns), the same bicubic antialiased resize, the same strengths of colour jitter, greyscale,
blur (nine taps, as in DINOv2), solarise and normalisation. The other side is what one writes
with torchvision: a PIL image per tile, `torchvision.transforms` one view after the other, and
NumPy for the perturbation. Rounds alternate between the two; the figure is the median of the
rounds' ratios in CPU seconds, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simulated_fields
import torch
import torchvision.transforms as T
from PIL import Image, ImageFilter
from torchvision.transforms import functional as TF

from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views, pad_nuclei
from cytofm_cli.views.ncp import NcpConfig
from cytofm_cli.views.plan import ViewPlan, draw_plan
from cytofm_cli.views.recipes import Recipe, ncp_of, recipe_of
from cytofm_cli.work.cpus import cpu_count

MPP, TILE_PX = 0.25, 512
_RNG = np.random.default_rng(0)


def load_tiles(n: int, fields: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Cut tiles around marked nuclei of fields."""
    points: dict[str, list[tuple[float, float]]] = {}
    with (fields / "points.csv").open() as handle:
        for row in csv.DictReader(handle):
            points.setdefault(row["image"], []).append((float(row["x"]), float(row["y"])))
    tiles, nuclei = [], []
    for name in sorted(points)[:n]:
        image = np.asarray(Image.open(fields / "images" / name).convert("RGB"))
        xy = np.array(points[name])
        room = np.array(image.shape[1::-1]) - TILE_PX
        x, y = np.clip(xy[len(xy) // 2] - TILE_PX // 2, 0, room).astype(int)
        tiles.append(image[y : y + TILE_PX, x : x + TILE_PX])
        local = xy - [x, y]
        nuclei.append(local[((local >= 0) & (local < TILE_PX)).all(1)])
    return np.stack(tiles), nuclei


class PilViews:
    """The same recipe with torchvision transforms on PIL images."""

    def __init__(self, recipe: Recipe, *, pil_blur: bool, hue: bool) -> None:
        self.transforms = []
        for spec in recipe.views:
            how = spec.augment
            jitter = how.jitter if hue else (*how.jitter[:3], 0.0)
            blur = _PilBlur(how.blur_sigma_px) if pil_blur else T.GaussianBlur(9, how.blur_sigma_px)
            steps = [
                T.RandomHorizontalFlip(how.flip[0]),
                T.RandomVerticalFlip(how.flip[1]),
                T.RandomApply([T.ColorJitter(*jitter)], how.jitter_p),
                T.RandomGrayscale(how.grey_p),
                T.RandomApply([blur], how.blur_p),
                T.RandomSolarize(128, how.solarise_p),
                T.ToTensor(),
                T.Normalize(recipe.mean, recipe.std),
            ]
            self.transforms.append((spec.size_px, T.Compose(steps)))

    def __call__(
        self, tile: np.ndarray, xy: np.ndarray, plan: ViewPlan, b: int, ncp: NcpConfig
    ) -> list[torch.Tensor]:
        clean = Image.fromarray(tile)
        shared, views = None, []
        for v, (size, transform) in enumerate(self.transforms):
            image = clean
            if not plan.clean_BV[b, v]:
                if ncp.redraw != "image" or shared is None:
                    kept = xy[plan.kept_BVM[b, v, : len(xy)]]
                    shared = Image.fromarray(numpy_perturb(tile, kept, 12.5 / MPP))
                image = shared
            x, y, w, h = plan.boxes_BV4[b, v].tolist()
            crop = TF.resized_crop(image, y, x, h, w, [size, size], T.InterpolationMode.BICUBIC)
            views.append(transform(crop))
        return views


class _PilBlur:
    """The blur of the original DINO code: Pillow's, which is approximate and faster."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        radius = float(torch.empty(1).uniform_(*self.sigma))
        return image.filter(ImageFilter.GaussianBlur(radius))


def numpy_perturb(tile: np.ndarray, kept: np.ndarray, radius: float) -> np.ndarray:
    """Shuffle pixels outside disks as one writes it in NumPy, disk by disk, no waste."""
    height, width = tile.shape[:2]
    inside = np.zeros((height, width), bool)
    reach = int(np.ceil(radius))
    for x, y in kept:
        x0, x1 = max(0, int(x) - reach), min(width, int(x) + reach + 2)
        y0, y1 = max(0, int(y) - reach), min(height, int(y) + reach + 2)
        rows, columns = np.ogrid[y0:y1, x0:x1]
        inside[y0:y1, x0:x1] |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    flat = tile.reshape(-1, 3).copy()
    where = np.flatnonzero(~inside.ravel())
    flat[where] = flat[_RNG.permutation(where)]
    return flat.reshape(tile.shape)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Time one call in CPU seconds of this process."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(
    config: ViewsConfig, fields: Path, n_tiles: int, rounds: int, **kinds: bool
) -> dict[str, object]:
    """Measure one configuration: ms a tile on both sides, and the median ratio."""
    tiles, nuclei = load_tiles(n_tiles, fields)
    n_tiles = len(tiles)
    xy, valid = pad_nuclei(nuclei)
    recipe, ncp = recipe_of(config), ncp_of(config)
    keys = sample_keys(0, np.arange(n_tiles))
    tensor = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()
    plan = draw_plan(xy, valid, recipe, ncp, keys, TILE_PX, TILE_PX)
    pil = PilViews(recipe, **kinds)

    def ours() -> None:
        make_views(tensor, xy, valid, recipe=recipe, ncp=ncp, mpp=MPP, keys_B=keys)

    def theirs() -> None:
        for b in range(n_tiles):
            pil(tiles[b], nuclei[b], plan, b, ncp)

    ours(), theirs()
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(rounds)]
    return {
        "recipe": config.recipe,
        "preset": config.preset,
        **kinds,
        "ours_ms": round(statistics.median(a for a, _ in pairs) / n_tiles * 1e3, 2),
        "pil_ms": round(statistics.median(b for _, b in pairs) / n_tiles * 1e3, 2),
        "ratio": round(statistics.median(b / a for a, b in pairs), 1),
    }


def peak_bytes(preset: str, n_tiles: int) -> int:
    """Return the peak memory of a fresh process that makes views of so many tiles."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_views as b;"
        "print(b.peak_of(sys.argv[2], int(sys.argv[3])))"
    )
    folder = str(Path(__file__).parent)
    line = [sys.executable, "-c", code, folder, preset, str(n_tiles)]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def peak_of(preset: str, n_tiles: int) -> int:
    """Make views once and return this process's peak memory."""
    torch.set_num_threads(1)
    config = ViewsConfig(preset=preset, colours="natural")
    xy, valid = pad_nuclei([np.random.default_rng(0).uniform(0, TILE_PX, (15, 2))] * n_tiles)
    tiles = torch.zeros(n_tiles, 3, TILE_PX, TILE_PX, dtype=torch.uint8)
    recipe, ncp, keys = recipe_of(config), ncp_of(config), sample_keys(0, np.arange(n_tiles))
    make_views(tiles, xy, valid, recipe=recipe, ncp=ncp, mpp=MPP, keys_B=keys)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print one line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiles", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    args = parser.parse_args()
    fields = simulated_fields.fields_of(args.fields)
    torch.set_num_threads(1)
    found = []
    for preset in ("none", "paper", "safe"):
        config = ViewsConfig(recipe="dino", preset=preset, colours="natural")
        for kinds in ({"pil_blur": False, "hue": True}, {"pil_blur": True, "hue": False}):
            found.append(compare(config, fields, args.tiles, args.rounds, **kinds))
            print(found[-1], flush=True)
    for preset in ("none", "safe"):
        few, many = (peak_bytes(preset, n) for n in (128, 256))
        each = (many - few) / 128 - 3 * TILE_PX**2  # less the tile itself
        found.append({"preset": preset, "bytes_per_tile": round(each), "peak_bytes_128_tiles": few})
        print(found[-1], flush=True)
    if args.json:
        facts = {"torch": torch.__version__, "cpus": cpu_count(), "results": found}
        args.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
