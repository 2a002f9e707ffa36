"""Which cells lie where: blocks of 512 px, each of which can be laid out alone.

Cells lie in sheets (a single one is a sheet of one) around a parent within the block. Nuclei keep
apart: a block is laid out after those of its eight neighbours that come earlier in a checkerboard
of four colours, and around what is there. So no cell depends on the region that is looked at.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import UsageError
from cytofm_cli.simulate import draws
from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.cohort import Slide, kind_shares, marked_kinds
from cytofm_cli.simulate.preset import Kind, Preset

BLOCK: Final = 512
REACH: Final = 256  # px; no cell of a sheet lies farther from its parent
_PART: Final = 128  # the density is constant within squares of this side
_PARTS: Final = BLOCK // _PART
# Typical size of islands of cells on a slide (or a quarter of it), and of groups in them, µm.
_ISLAND_UM: Final = 2000.0
_CLUMP_UM: Final = 150.0
_CLUMP_SD: Final = 1.2  # of the log of the density, at clumping 1
_DENSEST: Final = 4.0  # times the mean
# Smallest distance of two nuclei, in sums of their radii, and how often a sheet is tried.
_GAP: Final = 1.15
_TRIES: Final = 12
_JITTER: Final = 0.12  # of the distance of neighbours in a sheet
MOST: Final = 4095  # cells of a block: their numbers have room for no more
_CACHED: Final = 2048  # blocks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """The cells of a block, in the order in which they are painted.

    Attributes:
        cells: all whose parent lies in the block; each lies on the slide.
        sheets: for each the number of its sheet within the block.
        xy: their middles (n, 2), px at level 0.
        apart: the radii (n,) within which no other's radius should reach, px.
    """

    cells: tuple[Cell, ...]
    sheets: tuple[int, ...]
    xy: Floats
    apart: Floats


@dataclass(frozen=True)
class _Measures:
    """What the layout asks of a kind: px."""

    name: str
    apart_px: float
    spacing_px: float
    most: int
    sheet: float


class Placement:
    """The cells of one slide, block by block.

    Args:
        slide: which.
        preset: what is on it.
    """

    def __init__(self, slide: Slide, preset: Preset) -> None:
        self.slide, self._preset = slide, preset
        self.n_blocks = -(-slide.size_px // BLOCK)
        self._mm2 = _part_mm2(slide, preset)
        self._density = _density(slide, preset)
        self._kinds = _kinds_and_rates(slide, preset)
        self._cached: OrderedDict[tuple[int, int], Block] = OrderedDict()

    @property
    def expected(self) -> float:
        """Return how many marked cells the slide has in the mean, given its density."""
        return float((self._density * self._mm2).sum() * self._preset.layout.cells_per_mm2)

    @property
    def n_covered(self) -> int:
        """Return how many blocks can have cells."""
        return sum(
            self.is_covered(by, bx) for by in range(self.n_blocks) for bx in range(self.n_blocks)
        )

    def block(self, by: int, bx: int) -> Block:
        """Return the cells whose parent lies in block (row, column)."""
        if not self.is_covered(by, bx):
            return _EMPTY
        known = self._cached.get((by, bx))
        if known is None:
            known = self._lay_out(by, bx)
            self._cached[by, bx] = known
            if len(self._cached) > _CACHED:
                self._cached.popitem(last=False)
        return known

    def blocks_near(
        self, box: tuple[int, int, int, int], margin: int
    ) -> Iterator[tuple[int, Block]]:
        """Yield the blocks that may have cells within `margin` px of a box, with their numbers."""
        x0, y0, x1, y1 = box
        last = self.n_blocks - 1
        for by in range(max(0, (y0 - margin) // BLOCK), min(last, (y1 + margin) // BLOCK) + 1):
            for bx in range(max(0, (x0 - margin) // BLOCK), min(last, (x1 + margin) // BLOCK) + 1):
                found = self.block(by, bx)
                if found.cells:
                    yield by * self.n_blocks + bx, found

    def _weights(self, by: int, bx: int) -> Floats:
        """Return density times area (mm²) of the parts of a block, (4, 4) or less."""
        rows = slice(by * _PARTS, (by + 1) * _PARTS)
        columns = slice(bx * _PARTS, (bx + 1) * _PARTS)
        return np.asarray(self._density[rows, columns] * self._mm2[rows, columns], np.float64)

    def is_covered(self, by: int, bx: int) -> bool:
        """Tell whether a block can have cells."""
        if not (0 <= by < self.n_blocks and 0 <= bx < self.n_blocks):
            return False
        rows = slice(by * _PARTS, (by + 1) * _PARTS)
        return bool(self._density[rows, bx * _PARTS : (bx + 1) * _PARTS].any())

    def _lay_out(self, by: int, bx: int) -> Block:
        rng = draws.stream(self.slide.seed, draws.BLOCK, self.slide.number, by, bx)
        weights = self._weights(by, bx)
        kinds, rates = self._kinds
        of_kind = np.repeat(np.arange(len(kinds)), rng.poisson(rates * weights.sum()))
        tries = self._positions(rng, weights, len(of_kind), (bx * BLOCK, by * BLOCK))
        ground = _Ground(self._earlier(by, bx), self.slide.size_px)
        for sheet, kind in enumerate(of_kind.tolist()):
            ground.put(rng, kinds[kind], sheet, tries[sheet], self._preset.layout.depth_um)
        block = ground.block()
        if len(block.cells) > MOST:
            raise UsageError(
                f"--preset: {len(block.cells)} cells within {BLOCK} px; at most {MOST} have room.",
                hint="lower cells_per_mm2 and bystanders of its layout, or its mpp",
            )
        return block

    def _positions(
        self, rng: np.random.Generator, weights: Floats, n: int, corner: tuple[int, int]
    ) -> Floats:
        """Return places for n parents, several tries each, by the density: (n, tries, 2)."""
        if not n:
            return np.zeros((0, _TRIES, 2))
        chance = weights.ravel() / weights.sum()
        part = rng.choice(len(chance), (n, _TRIES), p=chance)
        first = np.stack([part % weights.shape[1], part // weights.shape[1]], -1) * _PART + corner
        side = np.minimum(_PART, self.slide.size_px - first)
        return np.asarray(first + rng.random((n, _TRIES, 2)) * side, np.float64)

    def _earlier(self, by: int, bx: int) -> list[Block]:
        """Return the neighbours that are laid out before this block."""
        own = _colour(by, bx)
        near = [(by + dy, bx + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        return [self.block(y, x) for y, x in near if _colour(y, x) < own]


class _Ground:
    """Cells that are put down one sheet after the other, around those that lie there."""

    def __init__(self, others: list[Block], size_px: int) -> None:
        self._size_px = size_px
        self._n = sum(len(block.cells) for block in others)
        self._first = self._n
        room = self._n + 64
        self._xy, self._apart = np.zeros((room, 2)), np.zeros(room)
        self._xy[: self._n] = np.concatenate([np.zeros((0, 2)), *(one.xy for one in others)])
        self._apart[: self._n] = np.concatenate([np.zeros(0), *(one.apart for one in others)])
        self._cells: list[Cell] = []
        self._sheets: list[int] = []

    def put(
        self, rng: np.random.Generator, kind: _Measures, sheet: int, tries: Floats, depth_um: float
    ) -> None:
        """Put a sheet down where it is least in the way; its parent always lies."""
        turn = rng.random() * 2 * math.pi
        offsets = _offsets(rng, kind, turn)
        slack, best = self._best(offsets, tries, kind.apart_px)
        xy = tries[best] + offsets
        stays = (xy >= 0).all(1) & (xy < self._size_px).all(1) & (slack >= _GAP)
        stays[0] = True
        z_um = rng.normal() * depth_um
        alone = len(offsets) == 1
        for row in np.flatnonzero(stays).tolist():
            cell = Cell(
                x=float(xy[row, 0]),
                y=float(xy[row, 1]),
                kind=kind.name,
                angle=float(turn if alone else turn + 0.3 * rng.normal()),
                z_um=float(z_um if alone else z_um + 0.3 * depth_um * rng.normal()),
                seed=int(rng.integers(2**63)),
            )
            self._add(cell, sheet, kind.apart_px)

    def block(self) -> Block:
        """Return what was put down."""
        own = slice(self._first, self._n)
        return Block(
            cells=tuple(self._cells),
            sheets=tuple(self._sheets),
            xy=self._xy[own].copy(),
            apart=self._apart[own].copy(),
        )

    def _best(self, offsets: Floats, tries: Floats, apart_px: float) -> tuple[Floats, int]:
        """Return the slack (c,) of each cell of a sheet at the best try, and which that is."""
        worst, best = np.full(len(offsets), -1.0), 0
        for number, place in enumerate(tries):
            slack = self._slack(place + offsets, apart_px)
            if slack.min() > worst.min():
                worst, best = slack, number
            if worst.min() >= _GAP:
                break
        return worst, best

    def _slack(self, xy: Floats, apart_px: float) -> Floats:
        """Return the smallest distance to what lies there, in sums of radii."""
        if not self._n:
            return np.full(len(xy), np.inf)
        step = xy[:, None] - self._xy[: self._n]
        distance = np.sqrt((step * step).sum(-1))
        return np.asarray((distance / (self._apart[: self._n] + apart_px)).min(1), np.float64)

    def _add(self, cell: Cell, sheet: int, apart_px: float) -> None:
        if self._n == len(self._apart):
            self._xy = np.concatenate([self._xy, np.zeros_like(self._xy)])
            self._apart = np.concatenate([self._apart, np.zeros_like(self._apart)])
        self._xy[self._n] = cell.x, cell.y
        self._apart[self._n] = apart_px
        self._n += 1
        self._cells.append(cell)
        self._sheets.append(sheet)


_EMPTY: Final = Block(cells=(), sheets=(), xy=np.zeros((0, 2)), apart=np.zeros(0))


def _colour(by: int, bx: int) -> int:
    return 2 * (by % 2) + bx % 2


def _kinds_and_rates(slide: Slide, preset: Preset) -> tuple[list[_Measures], Floats]:
    """Return the kinds on a slide, marked ones first, and sheets per mm² at density 1."""
    layout = preset.layout
    shares = kind_shares(preset, slide.diagnosis, slide.share)
    per_mm2 = {kind: layout.cells_per_mm2 * shares[kind] for kind in marked_kinds(preset)}
    per_mm2 |= layout.bystanders
    measures = [_measures(name, preset) for name in per_mm2]
    rates = [rate / one.sheet for rate, one in zip(per_mm2.values(), measures, strict=True)]
    return measures, np.array(rates, np.float64)


def _measures(name: str, preset: Preset) -> _Measures:
    kind = preset.kinds[name]
    whole = radius_um(kind) / preset.mpp
    nucleus = kind.nucleus
    is_body = nucleus is None or preset.layout.monolayer
    core = whole if nucleus is None else _radius(nucleus.area_um2.median) / preset.mpp
    spacing = 2 * whole / kind.crowding
    return _Measures(
        name=name,
        apart_px=whole if is_body else core,
        spacing_px=spacing,
        most=max(1, int(0.9 * math.pi * REACH**2 / (spacing**2 * math.sqrt(3) / 2))),
        sheet=kind.sheet,
    )


def radius_um(kind: Kind) -> float:
    """Return the radius of a disk as large as a typical cell of a kind."""
    part = kind.cytoplasm or kind.nucleus
    return _radius(part.area_um2.median) if part else 0.0


def _radius(area: float) -> float:
    return math.sqrt(area / math.pi)


def _offsets(rng: np.random.Generator, kind: _Measures, turn: float) -> Floats:
    """Return where the cells of a sheet lie around its parent, px: (c, 2), first the parent.

    Sizes are geometric, with the mean that the preset states; cells fill a hexagonal lattice from
    the middle of an ellipse outwards.
    """
    n = 1 if kind.sheet <= 1 else min(kind.most, int(rng.geometric(1 / kind.sheet)))
    if n == 1:
        return np.zeros((1, 2))
    side = int(math.sqrt(n)) + 2
    i, j = np.meshgrid(np.arange(-side, side + 1), np.arange(-side, side + 1))
    lattice = np.stack([i + j / 2, j * math.sqrt(3) / 2], -1).reshape(-1, 2)
    stretch = math.exp(0.25 * rng.normal())
    far = np.hypot(lattice[:, 0] * stretch, lattice[:, 1] / stretch)
    chosen = lattice[np.argsort(far, kind="stable")[:n]]
    chosen[1:] += _JITTER * rng.normal(size=(n - 1, 2))
    cos, sin = math.cos(turn), math.sin(turn)
    xy = chosen @ np.array([[cos, sin], [-sin, cos]]) * kind.spacing_px
    return np.asarray(xy[np.hypot(xy[:, 0], xy[:, 1]) <= REACH], np.float64)


def _part_mm2(slide: Slide, preset: Preset) -> Floats:
    """Return the area (p, p) of each part of a slide, mm²; those at the edge are smaller."""
    n = -(-slide.size_px // BLOCK) * _PARTS
    side = np.clip(slide.size_px - np.arange(n) * _PART, 0, _PART) * preset.mpp / 1000
    return np.asarray(np.outer(side, side), np.float64)


def _density(slide: Slide, preset: Preset) -> Floats:
    """Return the density of cells (p, p) of each part of a slide, around 1 where it is covered."""
    n = -(-slide.size_px // BLOCK) * _PARTS
    middle_um = np.asarray((np.arange(n) + 0.5) * _PART * preset.mpp, np.float64)
    key = int(draws.stream(slide.seed, draws.ISLANDS, slide.number).integers(2**63))
    density = np.ones((n, n))
    if preset.layout.clumping > 0:
        sd = _CLUMP_SD * preset.layout.clumping
        noise = draws.smooth(key + draws.CLUMPS, _CLUMP_UM, middle_um, middle_um)
        density = np.minimum(np.exp(sd * noise - sd**2 / 2), _DENSEST) / _mean_below(sd)
    if slide.covered < 1:
        # Each slide has its share, whatever its size: none is empty by chance.
        island_um = min(_ISLAND_UM, slide.size_px * preset.mpp / 4)
        noise = draws.smooth(key, island_um, middle_um, middle_um)
        density *= noise <= np.quantile(noise, slide.covered, method="lower")
    return density


def _mean_below(sd: float) -> float:
    """Return the mean of a log-normal of mean 1 that is cut at `_DENSEST`."""
    normal, cut = NormalDist(), math.log(_DENSEST)
    below = normal.cdf((cut - sd**2 / 2) / sd)
    return below + _DENSEST * (1 - normal.cdf((cut + sd**2 / 2) / sd))
