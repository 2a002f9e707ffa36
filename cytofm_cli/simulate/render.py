"""Pixels of any region of a slide: cells, dirt, glass and camera, the same wherever it is cut.

Letters: K dyes, H rows, W columns, C colours.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.cohort import Slide
from cytofm_cli.simulate.glass import soil
from cytofm_cli.simulate.layout import BLOCK, MOST, REACH, Block, Placement
from cytofm_cli.simulate.marks import Mark, density, marks
from cytofm_cli.simulate.optics import Lens, Look, expose, look
from cytofm_cli.simulate.paint import paint
from cytofm_cli.simulate.preset import Preset
from cytofm_cli.simulate.shapes import Shape, grow, reach_px
from cytofm_cli.units import Box as Area
from cytofm_cli.units import Size

Box = tuple[int, int, int, int]  # x0, y0, x1, y1: px at level 0, the last two not included
TILE: Final = BLOCK
# A cell is called by block · _A_BLOCK + its place in the block + 1: no other block is asked.
_A_BLOCK: Final = MOST + 1
_CACHED: Final = 4096  # cells whose shapes are kept


@dataclass(frozen=True)
class Placed:
    """A cell on its slide.

    Attributes:
        number: its name on the slide, from 1; its value in label images.
        sheet: number of the sheet that it lies in, from 1.
        cell: where it lies and what it is.
        shape: its outlines.
    """

    number: int
    sheet: int
    cell: Cell
    shape: Shape


def render(slide: Slide, preset: Preset, box: Box, plane: int = 0) -> NDArray[np.uint8]:
    """Return the pixels of a region of a slide; for many regions make one `Scene`.

    Args:
        slide: which.
        preset: what is on it.
        box: the region, within the slide.
        plane: focal plane, from 0.

    Returns:
        uint8 (H, W, 3), before JPEG.
    """
    return Scene(slide, preset).pixels(box, plane)


class Scene:
    """One slide, to be looked at region by region; it keeps what neighbours share.

    Args:
        slide: which.
        preset: what is on it.
    """

    def __init__(self, slide: Slide, preset: Preset) -> None:
        if not slide.is_field:  # scanners even out the light
            preset = replace(preset, dirt=replace(preset.dirt, gradient=0.0))
        self.slide, self.preset = slide, preset
        self.placement = Placement(slide, preset)
        self._reach = {
            name: reach_px(replace(preset, kinds={name: kind}))
            for name, kind in preset.kinds.items()
        }
        self._margin = REACH + max(self._reach.values())
        self._shapes: OrderedDict[int, Placed] = OrderedDict()
        self._blank: dict[Box, bool] = {}

    @cached_property
    def look(self) -> Look:
        """Stain and white of the patient."""
        slide = self.slide
        return look(self.preset, slide.seed, slide.batch, slide.patient_number)

    @cached_property
    def blank(self) -> NDArray[np.uint8]:
        """Colour (3,) of glass that is left out: what scanners fill in where nothing lies."""
        return np.clip(np.rint(self.look.white), 0, 255).astype(np.uint8)

    def cells(self, box: Box) -> list[Placed]:
        """Return the cells that reach into a region, in the order in which they are painted."""
        return [
            placed
            for number, block in self.placement.blocks_near(box, self._margin)
            for place in self._near(block, box)
            if _touches((placed := self._grown(number, block, place)).shape.box, box)
        ]

    def pixels(self, box: Box, plane: int) -> NDArray[np.uint8]:
        """Return the pixels of a region, uint8 (H, W, 3); arguments as of `render`."""
        x0, y0, x1, y1 = box
        image = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        edge = self._lens.edge
        wide = _widened(box, edge)
        cells = self.cells(wide)
        amounts = self._amounts(cells, wide, plane) if cells else None
        for part in tiles_of(box):
            rows, columns = _within(part, box)
            here = None
            if amounts is not None:
                here = amounts[
                    :, rows.start : rows.stop + 2 * edge, columns.start : columns.stop + 2 * edge
                ]
            shown = self._shown(part, here)
            image[rows, columns] = self.blank if shown is None else shown
        return image

    def is_blank(self, tile: Box) -> bool:
        """Tell whether a tile is left out, as scanners do with glass that has nothing to see.

        Only of slides; where no cells can be, what little dirt there is goes with it.
        """
        known = self._blank.get(tile)
        if known is None:
            known = self._blank[tile] = self._is_blank(tile)
        return known

    def _is_blank(self, tile: Box) -> bool:
        if self.slide.is_field or self.placement.is_covered(tile[1] // BLOCK, tile[0] // BLOCK):
            return False
        x0, y0, x1, y1 = tile
        area = Area(x0, y0, x1 - x0, y1 - y0)
        marked = any(density(mark, area, self.preset.mpp) is not None for mark in self._marks)
        return not marked and not self.cells(tile)

    @cached_property
    def _marks(self) -> list[Mark]:
        """Pen, bubbles, the coverslip's edge: what is seen far from cells, too."""
        slide = self.slide
        if self.preset.illumination == "dark-field":
            return []
        size = Size(slide.size_px, slide.size_px)
        return list(marks(self.preset.dirt, self._glass_seed, size, self.preset.mpp, slide.dirt))

    def _amounts(self, cells: list[Placed], box: Box, plane: int) -> NDArray[np.float32]:
        """Return how much of each dye lies where, (K, H, W): the sum over cells in their order."""
        x0, y0, x1, y1 = box
        amounts = np.zeros((len(self.preset.dyes), y1 - y0, x1 - x0), np.float32)
        focus_um = self.slide.focus_um(plane)
        for placed in cells:
            patch = paint(placed.cell, placed.shape, self.preset, focus_um=focus_um)
            h, w = patch.amounts.shape[1:]
            left, top = max(patch.x0, x0), max(patch.y0, y0)
            right, bottom = min(patch.x0 + w, x1), min(patch.y0 + h, y1)
            if left < right and top < bottom:
                amounts[:, top - y0 : bottom - y0, left - x0 : right - x0] += patch.amounts[
                    :, top - patch.y0 : bottom - patch.y0, left - patch.x0 : right - patch.x0
                ]
        return amounts

    def _shown(self, part: Box, amounts: NDArray[np.float32] | None) -> NDArray[np.uint8] | None:
        """Return the pixels of a part of one tile; None where the tile is left out."""
        if self.is_blank(_tile_around(part, self.slide.size_px)):
            return None
        size = (self.slide.size_px, self.slide.size_px)
        x0, y0, x1, y1 = wide = _widened(part, self._lens.edge)
        dirt = soil(self.preset, self._glass_seed, size, wide, self.slide.dirt)
        if amounts is None:
            amounts = np.zeros((len(self.preset.dyes), y1 - y0, x1 - x0), np.float32)
        return expose(amounts, dirt, self.look, self.preset, part, self._glass_seed, self._lens)

    @cached_property
    def _lens(self) -> Lens:
        """The microscope's: scanners correct theirs."""
        slide = self.slide
        return Lens(self.preset.optics.fringe, slide.size_px) if slide.is_field else Lens()

    @cached_property
    def _glass_seed(self) -> int:
        """Seed of dirt and noise: the slide's own."""
        return self.slide.seed * 1_000_003 + self.slide.number

    def _near(self, block: Block, box: Box) -> list[int]:
        """Return the places in a block of cells that may reach into a region: few grow in vain."""
        reach = np.array([self._reach[cell.kind] for cell in block.cells])[:, None]
        low, high = np.array(box[:2]) - reach, np.array(box[2:]) + reach
        near = ((block.xy >= low) & (block.xy <= high)).all(axis=1)
        return [int(place) for place in np.flatnonzero(near)]

    def _grown(self, number: int, block: Block, place: int) -> Placed:
        """Return a cell with its shape; `number` is that of its block."""
        first = number * _A_BLOCK + 1
        known = self._shapes.get(first + place)
        if known is None:
            cell = block.cells[place]
            shape = grow(cell, self.preset)
            known = Placed(first + place, first + block.sheets[place], cell, shape)
            self._shapes[first + place] = known
            if len(self._shapes) > _CACHED:
                self._shapes.popitem(last=False)
        return known


def tiles_of(box: Box) -> list[Box]:
    """Cut a region at the borders of the tiles of the slide, row by row."""
    x0, y0, x1, y1 = box
    return [
        (max(x, x0), max(y, y0), min(x + TILE, x1), min(y + TILE, y1))
        for y in range(y0 // TILE * TILE, y1, TILE)
        for x in range(x0 // TILE * TILE, x1, TILE)
    ]


def _tile_around(part: Box, size_px: int) -> Box:
    x, y = part[0] // TILE * TILE, part[1] // TILE * TILE
    return x, y, min(x + TILE, size_px), min(y + TILE, size_px)


def _within(part: Box, box: Box) -> tuple[slice, slice]:
    return slice(part[1] - box[1], part[3] - box[1]), slice(part[0] - box[0], part[2] - box[0])


def _widened(box: Box, by: int) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _touches(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
