"""Build a sparse cytology slide: Pap fields scattered on glass that is not clean.

The glass carries what real glass carries: an illumination gradient, sensor noise, dust, a pen
stroke, air bubbles and the coverslip's edge. The result is a pyramidal JPEG TIFF (256-px tiles),
and the marked nuclei of the fields in the slide's own pixels.

    python tests/bench/sparse_slide.py out.tif --size-px 20480 --glass 3 [--fields DIR]

The fields are simulated (`simulated_fields.py`); DIR is a folder of real ones, with `images/`,
`images.csv` and `points.csv`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips
import simulated_fields
from numpy.typing import NDArray

STRIP_PX = 1024
MARGIN_PX = 64  # between fields, and between a field and the slide's edge


@dataclass(frozen=True, kw_only=True)
class Glass:
    """What the glass under the cells looks like.

    Attributes:
        tint: RGB of clean glass, 0-255.
        gradient: fraction of the light lost from the brightest to the darkest corner.
        noise: standard deviation of the sensor's noise, grey levels.
        n_dust: specks, 1-8 µm in radius at 0.25 µm/px, dark and grey.
        pen_px: width of the pen's stroke; 0 for none.
        n_bubbles: air bubbles with a dark rim, 60-250 µm in radius.
        edge: draw the coverslip's edge, a dark line across the slide.
        light_on_fields: the gradient also falls on the pasted fields.
        one_stroke: the pen is not darker where the parts of its stroke meet.
        jpeg_quality: of the pyramid.
    """

    tint: tuple[int, int, int] = (242, 241, 243)
    gradient: float = 0.08
    noise: float = 2.0
    n_dust: int = 1500
    pen_px: int = 240
    pen_rgb: tuple[int, int, int] = (30, 50, 140)
    n_bubbles: int = 2
    edge: bool = True
    light_on_fields: bool = True
    one_stroke: bool = False
    jpeg_quality: int = 85


# Different on purpose: a method tuned to one of them should fail on another.
GLASSES: tuple[Glass, ...] = (
    Glass(),
    Glass(tint=(236, 228, 205), gradient=0.15, noise=3, pen_rgb=(20, 20, 24), n_bubbles=3),
    Glass(tint=(222, 228, 240), gradient=0.25, noise=4, n_dust=4000, pen_rgb=(170, 30, 40)),
    Glass(tint=(250, 250, 250), gradient=0.04, noise=1, n_dust=400, pen_px=60, edge=False),
    Glass(tint=(205, 208, 200), gradient=0.2, noise=6, n_dust=2500, pen_rgb=(20, 110, 60)),
    Glass(tint=(244, 232, 238), gradient=0.12, noise=2.5, pen_px=900, light_on_fields=False),
    # Added when the method was done; glass 6 then moved one of its constants (INK_DARKNESS).
    Glass(tint=(182, 176, 160), gradient=0.35, noise=10, n_dust=6000, pen_px=30, jpeg_quality=75),
    Glass(tint=(233, 240, 232), gradient=0.1, noise=5, pen_px=400, pen_rgb=(200, 190, 60)),
)
CLEAN = Glass(gradient=0, noise=0, n_dust=0, pen_px=0, n_bubbles=0, edge=False)


@dataclass(frozen=True)
class SparseSlide:
    """A slide that was built.

    Attributes:
        path: the pyramidal TIFF.
        nuclei_px0: (m, 2) marked nuclei, level-0 pixels.
        field_of: (m,) index of each nucleus' field.
        boxes_px0: (f, 4) x, y, w, h of the fields.
        groups: the staining group of each field.
        dirt: what was drawn on the glass, level-0 pixels: "pen" and "edge", the ends and width of
            lines (x0, y0, x1, y1, width); "bubbles", (x, y, radius). Empty in old files.
    """

    path: Path
    nuclei_px0: NDArray[np.float64]
    field_of: NDArray[np.int64]
    boxes_px0: NDArray[np.int64]
    groups: tuple[str, ...]
    dirt: dict[str, list[list[float]]]


def build(
    fields: Path,
    path: Path,
    *,
    size_px: int = 20480,
    glass: Glass = CLEAN,
    seed: int = 0,
    groups: Sequence[str] | None = None,
    mpp: float = 0.25,
) -> SparseSlide:
    """Scatter the fields of `groups` (None for all) on `glass` and write the pyramid.

    A slide that is there already, with its `.json` beside it, is used as it is.
    """
    facts = path.with_suffix(".json")
    if path.exists() and facts.exists():
        return _load(path, facts)
    rng = np.random.default_rng(seed)
    with (fields / "images.csv").open(newline="") as handle:
        rows = [r for r in csv.DictReader(handle) if groups is None or r["group"] in groups]
    boxes = _scatter(rng, [(int(r["width"]), int(r["height"])) for r in rows], size_px)
    raw = path.with_suffix(".raw")
    canvas = np.memmap(raw, np.uint8, "w+", shape=(size_px, size_px, 3))
    try:
        dirt = _paint(canvas, rng, glass, boxes, [fields / "images" / r["image"] for r in rows])
        flat = pyvips.Image.new_from_memory(canvas, size_px, size_px, 3, "uchar")
        flat.copy(interpretation="srgb", xres=1000 / mpp, yres=1000 / mpp).tiffsave(
            str(path),
            tile=True,
            tile_width=256,
            tile_height=256,
            pyramid=True,
            compression="jpeg",
            Q=glass.jpeg_quality,
            bigtiff=True,
            resunit="cm",
        )
    finally:
        del canvas
        raw.unlink()
    index = {r["image"]: i for i, r in enumerate(rows)}
    with (fields / "points.csv").open(newline="") as handle:
        marks = [
            (index[r["image"]], float(r["x"]), float(r["y"]))
            for r in csv.DictReader(handle)
            if r["image"] in index
        ]
    nuclei = [[i, x + float(boxes[i, 0]), y + float(boxes[i, 1])] for i, x, y in marks]
    record = {
        "nuclei": nuclei,
        "boxes": boxes.tolist(),
        "groups": [r["group"] for r in rows],
        "dirt": dirt,
    }
    facts.write_text(json.dumps(record))
    return _load(path, facts)


def _load(path: Path, facts: Path) -> SparseSlide:
    record = json.loads(facts.read_text())
    nuclei = np.array(record["nuclei"], np.float64).reshape(-1, 3)
    boxes = np.array(record["boxes"], np.int64).reshape(-1, 4)
    fields = nuclei[:, 0].astype(np.int64)
    dirt = record.get("dirt", {})
    return SparseSlide(path, nuclei[:, 1:], fields, boxes, tuple(record["groups"]), dirt)


def _scatter(
    rng: np.random.Generator, sizes: list[tuple[int, int]], size_px: int
) -> NDArray[np.int64]:
    """Place rectangles at random without overlap."""
    placed: list[tuple[int, int, int, int]] = []
    for w, h in sizes:
        for _ in range(20_000):
            x = int(rng.integers(MARGIN_PX, size_px - w - MARGIN_PX))
            y = int(rng.integers(MARGIN_PX, size_px - h - MARGIN_PX))
            if all(
                x >= a + c + MARGIN_PX
                or a >= x + w + MARGIN_PX
                or y >= b + d + MARGIN_PX
                or b >= y + h + MARGIN_PX
                for a, b, c, d in placed
            ):
                placed.append((x, y, w, h))
                break
        else:
            raise ValueError(f"no room for {len(sizes)} fields on {size_px} px")
    return np.array(placed, np.int64)


def _paint(
    canvas: NDArray[np.uint8],
    rng: np.random.Generator,
    glass: Glass,
    boxes: NDArray[np.int64],
    paths: list[Path],
) -> dict[str, list[list[float]]]:
    """Draw glass, dirt and fields, then light and noise, strip by strip; return the dirt."""
    size = canvas.shape[0]
    dirt: dict[str, list[list[float]]] = {"pen": [], "edge": [], "bubbles": []}
    canvas[:] = np.array(glass.tint, np.uint8)
    if glass.edge:
        ends = (0.04 * size, -10), (0.05 * size, size + 10)
        _line(canvas, *ends, 24, (150, 152, 150), 0.8)
        dirt["edge"].append([*ends[0], *ends[1], 24])
    if glass.pen_px:
        knots = np.stack([np.linspace(0.1, 0.45, 9), 0.5 + rng.normal(0, 0.03, 9)], 1) * size
        if glass.one_stroke:
            _stroke(canvas, knots, glass.pen_px, glass.pen_rgb, 0.85)
        for a, b in itertools.pairwise(knots):
            if not glass.one_stroke:
                _line(canvas, tuple(a), tuple(b), glass.pen_px, glass.pen_rgb, 0.85)
            dirt["pen"].append([*a.tolist(), *b.tolist(), glass.pen_px])
    for _ in range(glass.n_bubbles):
        dirt["bubbles"].append(_bubble(canvas, rng))
    for _ in range(glass.n_dust):
        radius = 4 + 28 * rng.random() ** 6  # most specks are small
        level = int(rng.integers(40, 190))
        aspect = float(rng.uniform(1, 3))
        _disc(canvas, *(rng.random(2) * size), radius, (level,) * 3, 0.8, aspect)
    for (x, y, w, h), path in zip(boxes.tolist(), paths, strict=True):
        canvas[y : y + h, x : x + w] = pyvips.Image.new_from_file(str(path)).numpy()[..., :3]
    pool = rng.normal(0, glass.noise, (1024, 4096, 3)).astype(np.float32)
    slope = rng.normal(size=2)
    slope /= np.abs(slope).sum()
    x_W = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    for top in range(0, size, STRIP_PX):
        rows = canvas[top : top + STRIP_PX]
        y_H = x_W[top : top + STRIP_PX, None]
        light = 1 - glass.gradient * (0.5 + slope[0] * x_W + slope[1] * y_H)
        light -= 0.3 * glass.gradient * (x_W**2 + y_H**2)  # and a little vignette
        lit = rows * light[..., None]
        if not glass.light_on_fields:
            for x, y, w, h in boxes.tolist():
                a, b = max(y, top), min(y + h, top + STRIP_PX)
                if a < b:
                    lit[a - top : b - top, x : x + w] = canvas[a:b, x : x + w]
        for left in range(0, size, 2048):
            dy, dx = int(rng.integers(0, 1024)), int(rng.integers(0, 2048))
            block = lit[:, left : left + 2048]
            noise = np.roll(pool, dy, 0)[: len(block), dx : dx + block.shape[1]]
            rows[:, left : left + 2048] = np.clip(block + noise + 0.5, 0, 255).astype(np.uint8)
    return dirt


def _blend(
    canvas: NDArray[np.uint8],
    box: tuple[int, int, int, int],
    alpha_HW: NDArray[np.float32],
    rgb: tuple[int, ...],
) -> None:
    x, y, w, h = box
    part = canvas[y : y + h, x : x + w]
    alpha = alpha_HW[..., None]
    part[:] = (part * (1 - alpha) + np.array(rgb, np.float32) * alpha).astype(np.uint8)


def _box(
    canvas: NDArray[np.uint8], cx: float, cy: float, reach: float
) -> tuple[int, int, int, int]:
    size = canvas.shape[0]
    x, y = max(0, int(cx - reach)), max(0, int(cy - reach))
    return x, y, max(0, min(size, int(cx + reach)) - x), max(0, min(size, int(cy + reach)) - y)


def _disc(
    canvas: NDArray[np.uint8],
    cx: float,
    cy: float,
    radius: float,
    rgb: tuple[int, ...],
    opacity: float,
    aspect: float = 1,
) -> None:
    x, y, w, h = box = _box(canvas, cx, cy, radius * aspect + 2)
    yy, xx = np.mgrid[y : y + h, x : x + w].astype(np.float32)
    away = np.hypot((xx - cx) / aspect, yy - cy)
    _blend(canvas, box, opacity * np.clip(radius - away, 0, 1).astype(np.float32), rgb)


def _bubble(canvas: NDArray[np.uint8], rng: np.random.Generator) -> list[float]:
    cx, cy = rng.random(2) * canvas.shape[0]
    radius = float(rng.uniform(240, 1000))
    x, y, w, h = box = _box(canvas, cx, cy, radius + 40)
    yy, xx = np.mgrid[y : y + h, x : x + w].astype(np.float32)
    rim = np.exp(-(((np.hypot(xx - cx, yy - cy) - radius) / 12) ** 2)).astype(np.float32)
    _blend(canvas, box, 0.7 * rim, (60, 60, 60))
    return [float(cx), float(cy), radius]


def _line(
    canvas: NDArray[np.uint8],
    start: tuple[float, ...],
    end: tuple[float, ...],
    width: float,
    rgb: tuple[int, ...],
    opacity: float,
) -> None:
    """Draw a straight stroke with round ends, strip by strip."""
    size = canvas.shape[0]
    a, b = np.array(start), np.array(end)
    along = (b - a) / np.hypot(*(b - a))
    length = float(np.hypot(*(b - a)))
    x0 = int(max(0, min(a[0], b[0]) - width))
    x1 = int(min(size, max(a[0], b[0]) + width))
    y0 = int(max(0, min(a[1], b[1]) - width))
    y1 = int(min(size, max(a[1], b[1]) + width))
    for top in range(y0, y1, STRIP_PX):
        h = min(STRIP_PX, y1 - top)
        yy, xx = np.mgrid[top : top + h, x0:x1].astype(np.float32)
        t = np.clip((xx - a[0]) * along[0] + (yy - a[1]) * along[1], 0, length)
        away = np.hypot(xx - a[0] - t * along[0], yy - a[1] - t * along[1])
        alpha = opacity * np.clip(width / 2 - away, 0, 1).astype(np.float32)
        _blend(canvas, (x0, top, x1 - x0, h), alpha, rgb)


def _stroke(
    canvas: NDArray[np.uint8],
    knots: NDArray[np.float64],
    width: float,
    rgb: tuple[int, ...],
    opacity: float,
) -> None:
    """Draw a stroke through all knots at once: no part of it is covered twice."""
    x0, y0 = np.maximum(knots.min(0) - width, 0).astype(int).tolist()
    x1, y1 = np.minimum(knots.max(0) + width, canvas.shape[0]).astype(int).tolist()
    yy, xx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    away = np.full(xx.shape, np.inf, np.float32)
    for a, b in itertools.pairwise(knots):
        along = (b - a) / np.hypot(*(b - a))
        t = np.clip((xx - a[0]) * along[0] + (yy - a[1]) * along[1], 0, np.hypot(*(b - a)))
        np.minimum(away, np.hypot(xx - a[0] - t * along[0], yy - a[1] - t * along[1]), out=away)
    alpha = opacity * np.clip(width / 2 - away, 0, 1).astype(np.float32)
    _blend(canvas, (x0, y0, x1 - x0, y1 - y0), alpha, rgb)


def main() -> None:
    """Build one slide from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--size-px", type=int, default=20480)
    parser.add_argument("--glass", type=int, default=-1, help="index in GLASSES; -1 is clean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fields", type=Path, help="folder of real fields, as CRIC's")
    args = parser.parse_args()
    glass = CLEAN if args.glass < 0 else GLASSES[args.glass]
    fields = simulated_fields.fields_of(args.fields)
    slide = build(fields, args.output, size_px=args.size_px, glass=glass, seed=args.seed)
    print(f"{slide.path}: {len(slide.boxes_px0)} fields, {len(slide.nuclei_px0)} marked nuclei")


if __name__ == "__main__":
    main()
