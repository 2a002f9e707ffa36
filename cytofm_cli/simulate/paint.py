"""Paint cells: amounts of every dye on a small patch, blurred by how far the cell is from focus."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate import canvas, noise
from cytofm_cli.simulate.body import Ground, add_cytoplasm
from cytofm_cli.simulate.cell import Cell
from cytofm_cli.simulate.chromatin import add_nucleus
from cytofm_cli.simulate.preset import Cytoplasm, Optics, Preset
from cytofm_cli.simulate.shapes import MARGIN, MAX_BLUR_UM, Shape, blur_margin, box_of

SHARPEN_UM: Final = 0.6  # standard deviation of the surroundings of a detail


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """What a cell adds to a slide.

    Attributes:
        x0, y0: the slide's pixel that is the first of the patch.
        amounts: float32 (K, h, w), units of every dye, in the order of the preset's dyes.
    """

    x0: int
    y0: int
    amounts: NDArray[np.float32]


def paint(cell: Cell, shape: Shape, preset: Preset, *, focus_um: float) -> Patch:
    """Return a cell's patch; the same cell has the same bytes, moved by whole pixels with it.

    Args:
        cell: the cell.
        shape: its outlines, as `shapes.grow` returns them.
        preset: the preset.
        focus_um: height of the plane in focus, µm.
    """
    kind = preset.kinds[cell.kind]
    whole = [*([] if shape.cytoplasm is None else [shape.cytoplasm]), *shape.nuclei]
    x0, y0, x1, y1 = box_of(whole, MARGIN)
    ground = Ground(x0, y0, y1 - y0, x1 - x0, preset.mpp, noise.fields(preset.mpp))
    # Painted without the room of the blur: its size would say which noise a cell takes, and a
    # cell must look the same in every plane.
    sigma = blur_px(preset.optics, preset.mpp, cell.z_um - focus_um)
    margin = _margin(sigma, preset)
    size = (ground.height + 2 * margin, ground.width + 2 * margin)
    blurred = np.zeros((len(preset.dyes), *size), np.float32)
    amounts = blurred[:, margin:-margin, margin:-margin]
    rng = np.random.default_rng((cell.seed, 1))
    if kind.cytoplasm and shape.cytoplasm is not None:
        dyes = _dyes(preset, kind.cytoplasm)
        add_cytoplasm(rng, ground, shape, kind.cytoplasm, dyes, amounts)
    if kind.nucleus:
        units = preset.amounts(kind.nucleus.density)
        for outline in shape.nuclei:
            add_nucleus(rng, ground, outline, kind.nucleus, units, amounts)
    for dye, plane in enumerate(blurred):
        if amounts[dye].any():
            blurred[dye] = _sharpened(canvas.blurred(plane, sigma, blur_margin(sigma)), preset)
    return Patch(x0 - margin, y0 - margin, blurred)


def blur_px(optics: Optics, mpp: float, defocus_um: float) -> float:
    """Return the standard deviation of the point spread of what is out of focus, px."""
    wide = optics.psf_um * math.hypot(1, defocus_um / optics.depth_um)
    return min(wide, MAX_BLUR_UM) / mpp


def _margin(sigma: float, preset: Preset) -> int:
    """Return how far a cell reaches beyond its outlines, px, within what its box holds."""
    margin = blur_margin(sigma)
    if preset.optics.sharpen > 0:
        margin += math.ceil(3 * SHARPEN_UM / preset.mpp)
    return min(margin, blur_margin(MAX_BLUR_UM / preset.mpp))


def _sharpened(plane: NDArray[np.float32], preset: Preset) -> NDArray[np.float32]:
    """Return what a camera makes of a plane: less of its surroundings (unsharp mask).

    In density, not in light: so a cell still adds the same wherever it lies.
    """
    share = preset.optics.sharpen
    if share <= 0:
        return plane
    sigma = SHARPEN_UM / preset.mpp
    around = canvas.blurred(plane, sigma, math.ceil(3 * sigma))
    return plane * np.float32(1 + share) - around * np.float32(share)


def _dyes(
    preset: Preset, cytoplasm: Cytoplasm
) -> tuple[tuple[float, ...], tuple[float, ...] | None, tuple[float, ...]]:
    """Return the units of every dye at the border, in the middle and of granules."""
    first = next(iter(preset.dyes))
    return (
        preset.amounts(cytoplasm.density),
        preset.amounts(cytoplasm.centre) if cytoplasm.centre else None,
        preset.amounts(cytoplasm.granule or {first: 1.0}),
    )
