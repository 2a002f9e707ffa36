"""Grow cells: outlines of cytoplasm and nuclei from a cell's kind and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from cytofm_cli.simulate import outlines
from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.outlines import Points
from cytofm_cli.simulate.preset import Cytoplasm, Kind, Nucleus, Preset, Spread

Outline = NDArray[np.float32]

# Log-normal draws end here: no cell reaches farther than its margin.
_EXTREME: Final = 2.5
_MOST_NUCLEI: Final = 4
# Pixels around the outlines on which a cell is painted, whatever its focus.
MARGIN: Final = 2
# Widest point spread that is painted, µm: what is farther out of focus is as blurred as that.
MAX_BLUR_UM: Final = 2.5
# Outlines lie on a grid that float32 holds up to 500 000 px: a cell looks the same everywhere.
GRID: Final = 32


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """The outlines of a cell, px at level 0; the middle of a slide's first pixel is (0.5, 0.5).

    Attributes:
        cytoplasm: float32 (p, 2), of the whole cell, nucleus included; None for bare nuclei.
        nuclei: float32 (q, 2) each; none for cells without one.
        box: x0, y0, x1, y1 of the pixels that the cell can touch however far out of focus.
        flap: float32 (f, 2), the part of the cytoplasm that is folded over and lies double.
        halo: float32 (h, 2), the koilocytic clearing.
    """

    cytoplasm: Outline | None
    nuclei: tuple[Outline, ...]
    box: tuple[int, int, int, int]
    flap: Outline | None = None
    halo: Outline | None = None


def grow(cell: Cell, preset: Preset) -> Shape:
    """Return the outlines of a cell; the same cell has the same ones, moved with its middle."""
    kind = preset.kinds[cell.kind]
    rng = np.random.default_rng((cell.seed, 0))
    body, nuclei = _sizes(rng, kind, preset.mpp)
    parts = _nuclei(rng, kind.nucleus, nuclei) if kind.nucleus else []
    cytoplasm, flap, halo = None, None, None
    if kind.cytoplasm:
        radius = math.sqrt(body / math.pi)
        parts = _placed(rng, kind, parts, radius)
        cytoplasm, flap = _cytoplasm(rng, kind.cytoplasm, body, parts)
        if kind.cytoplasm.halo > 0 and parts:
            halo = _halo(rng, parts, 0.55 * body)
    limit = _reach_um(kind) / preset.mpp
    middle = np.array([round(cell.x * GRID), round(cell.y * GRID)]) / GRID

    def laid(points: Points) -> Outline:
        return _laid(points, limit, cell.angle, middle)

    outlines_ = [laid(part) for part in ([] if cytoplasm is None else [cytoplasm]) + parts]
    return Shape(
        cytoplasm=outlines_[0] if cytoplasm is not None else None,
        nuclei=tuple(outlines_[cytoplasm is not None :]),
        box=box_of(outlines_, MARGIN + blur_margin(MAX_BLUR_UM / preset.mpp)),
        flap=None if flap is None else laid(flap),
        halo=None if halo is None else laid(halo),
    )


def reach_px(preset: Preset) -> int:
    """Return how far a cell's box reaches from its middle at most, px, whatever its kind."""
    reach = max(_reach_um(kind) for kind in preset.kinds.values()) / preset.mpp
    return math.ceil(reach) + blur_margin(MAX_BLUR_UM / preset.mpp) + MARGIN + 2


def blur_margin(sigma_px: float) -> int:
    """Return how many pixels a point spread reaches."""
    return math.ceil(3 * sigma_px) + 1


def box_of(parts: Sequence[Outline], margin: int) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of the pixels that outlines touch, and a margin."""
    low = np.floor(np.min([part.min(axis=0) for part in parts], axis=0)).astype(int) - margin
    high = np.ceil(np.max([part.max(axis=0) for part in parts], axis=0)).astype(int) + margin
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _laid(points: Points, limit: float, angle: float, middle: Points) -> Outline:
    """Return an outline on the slide: pulled within a limit, turned, moved, on the grid."""
    far = np.hypot(*points.T)
    points = points * np.minimum(1, limit / np.maximum(far, 1e-9))[:, None]
    points = np.round(outlines.turned(points, angle) * GRID) / GRID + middle
    return points.astype(np.float32)


def _draw(rng: Generator, spread: Spread) -> float:
    step = min(max(rng.standard_normal(), -_EXTREME), _EXTREME)
    return spread.median * math.exp(spread.sd * step)


def _largest(spread: Spread) -> float:
    return spread.median * math.exp(spread.sd * _EXTREME)


def _reach_um(kind: Kind) -> float:
    """Return the largest distance of an outline from the middle, µm."""
    reach = 0.0
    if kind.cytoplasm:
        radius = math.sqrt(_largest(kind.cytoplasm.area_um2) / math.pi)
        reach = radius * outlines.FURTHEST[kind.cytoplasm.shape]
    if kind.nucleus:
        reach = max(reach, 2.5 * math.sqrt(_largest(kind.nucleus.area_um2) / math.pi))
    return reach


def _sizes(rng: Generator, kind: Kind, mpp: float) -> tuple[float, list[float]]:
    """Return the areas of the cell and of each nucleus, px²; the cell is larger than these."""
    body = _draw(rng, kind.cytoplasm.area_um2) / mpp**2 if kind.cytoplasm else 0.0
    nuclei: list[float] = []
    if kind.nucleus:
        count = 1 + int(rng.poisson(kind.nucleus.count)) if kind.nucleus.count > 0 else 1
        count = min(count, _MOST_NUCLEI)
        shrunken = count**-0.4  # nuclei of many are smaller than single ones
        nuclei = [_draw(rng, kind.nucleus.area_um2) * shrunken / mpp**2 for _ in range(count)]
    return max(body, 1.15 * sum(nuclei)), nuclei


def _nuclei(rng: Generator, nucleus: Nucleus, areas: list[float]) -> list[Points]:
    """Return nuclei around (0, 0), side by side where they are several."""
    parts = [outlines.scaled(_nucleus(rng, nucleus), size) for size in areas]
    if len(parts) == 1:
        return parts
    ring = math.sqrt(sum(areas) / math.pi) * rng.uniform(0.62, 0.85)
    turns = 2 * np.pi * (np.arange(len(parts)) + rng.uniform(0, 1)) / len(parts)
    return [
        outlines.turned(part, rng.uniform(0, np.pi)) + ring * np.array([math.cos(t), math.sin(t)])
        for part, t in zip(parts, turns, strict=True)
    ]


def _nucleus(rng: Generator, nucleus: Nucleus) -> Points:
    if nucleus.shape == "round":
        drawn = nucleus.eccentricity + min(rng.normal(0, 0.15), 0.25)
        eccentricity = min(0.95, abs(drawn))
        return outlines.ellipse(rng, eccentricity, nucleus.irregularity)
    if nucleus.shape == "kidney":
        return outlines.kidney(rng, nucleus.irregularity)
    lobes = max(2, nucleus.lobes + int(rng.choice([-1, 0, 0, 1])))
    if rng.random() < 0.5:
        return outlines.clover(rng, lobes)
    return outlines.beads(
        rng, lobes, rng.uniform(0.25, 0.7), min(rng.uniform(0.8, 1.45) * lobes, 4.7)
    )


def _placed(rng: Generator, kind: Kind, parts: list[Points], radius: float) -> list[Points]:
    """Return the nuclei at their place in the cell: near its middle, of columns near the base."""
    if not parts or kind.nucleus is None or kind.cytoplasm is None:
        return parts
    own = math.sqrt(sum(outlines.area(part) for part in parts) / math.pi)
    room = max(0.0, 0.9 * radius - own)
    step = kind.nucleus.offset * radius * rng.standard_normal(2)
    if kind.cytoplasm.shape == "columnar":
        step = np.array([-rng.uniform(0.3, 0.8) * radius, 0.1 * step[1]])
    elif kind.cytoplasm.shape == "spindle":
        return parts  # (0, 0) is the thickest place
    else:
        turn = rng.uniform(0, 2 * np.pi)  # else the nucleus would lie along the cell's axis
        parts = [outlines.turned(part, turn) for part in parts]
    step = step * min(1.0, room / max(float(np.hypot(*step)), 1e-9))
    return [part + step for part in parts]


def _cytoplasm(
    rng: Generator, cytoplasm: Cytoplasm, size: float, nuclei: list[Points]
) -> tuple[Points, Points | None]:
    """Return the outline of the cell, of an area in px², and its folded flap."""
    flap = None
    if cytoplasm.shape == "polygonal":
        points = outlines.polygon(rng, cytoplasm.ragged)
        points = outlines.scaled(points, size)
        if cytoplasm.folds and rng.random() < 1 - math.exp(-0.14 * cytoplasm.folds):
            points, flap = _fold(rng, points, size)
    elif cytoplasm.shape == "columnar":
        points = outlines.scaled(outlines.column(rng, cytoplasm.ragged), size)
    elif cytoplasm.shape == "spindle":
        points = outlines.spindle(rng, cytoplasm.ragged)
        points *= math.sqrt(size / outlines.area(points))
    else:
        mean = 0.3 if cytoplasm.shape == "biconcave" else 0.42
        eccentricity = min(0.9, abs(rng.normal(mean, 0.14)))
        points = outlines.ellipse(rng, eccentricity, cytoplasm.ragged, 96)
        points = outlines.scaled(points, size)
    if nuclei:
        points = outlines.around(points, nuclei, 0.06 * math.sqrt(size / math.pi))
    return points, flap


def _fold(rng: Generator, points: Points, size: float) -> tuple[Points, Points | None]:
    """Return a squame with one edge folded over, of the same area, and the flap."""
    turn = rng.uniform(0, 2 * np.pi)
    radius = math.sqrt(size / math.pi)
    bend = rng.normal(0, 0.25) / radius
    points = outlines.turned(points, turn)
    left, flap = outlines.folded(points, radius * rng.uniform(0.62, 0.92), bend)
    scale = math.sqrt(size / outlines.area(left))
    parts = [
        None if part is None else outlines.turned(part * scale, -turn) for part in (left, flap)
    ]
    return (points, None) if parts[0] is None else (parts[0], parts[1])


def _halo(rng: Generator, nuclei: list[Points], largest: float) -> Points:
    """Return the clearing around the nuclei of a koilocyte."""
    own = sum(outlines.area(part) for part in nuclei)
    middle = np.mean([outlines.centroid(part) for part in nuclei], axis=0)
    points = outlines.ellipse(rng, rng.uniform(0.2, 0.75), 0.1)
    size = min(largest, max(own * rng.uniform(2.4, 5.0), 1.5 * own))
    points = outlines.turned(outlines.scaled(points, size), rng.uniform(0, np.pi))
    shift: Points = middle + rng.normal(0, 0.2, 2) * math.sqrt(own / math.pi)
    return points + shift
