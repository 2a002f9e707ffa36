"""Score how sharp the cells of each tile are, without reading the full resolution.

The score is the ratio of the energy of differences between direct neighbours to that between next
neighbours, S(1) / S(2), at 1 µm/px: a structure function's slope. For white noise and the finest
detail it is 1, across a smooth edge 1/4, and defocus moves it from the one towards the other. As a
ratio it does not know contrast, stain or illumination; taken over foreground only, it does not
know how full the tile is. Scaled to 0 (smooth) .. 1; typical sharp tiles have 0.15 to 0.3.

Measured on tiles of real Pap fields blurred with sigma 0, 1, 2 and 4 level-0 pixels (0.25 µm/px),
each compressed as JPEG anew: at 1 µm/px 99.3 % of the tiles are ranked in the right order, sharp
against sigma 2 of other tiles has AUC 0.985; at 2 µm/px 93 % and 0.78. The normalised variance of
the Laplacian does as well (99.5 %, 0.985) and costs more. Scores compare within one µm/px.

H, W: cells of 8 x 8 px in a map, pixels in a picture. N: tiles. C: channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cytofm_cli.regions.boxes import box_sums
from cytofm_cli.tiles import morphology

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOCUS_MPP: Final = 1.0
CELL_PX: Final = 8
BAND_PX: Final = 512  # rows of a band: a multiple of CELL_PX at every reduction
_CHUNK: Final = 4096  # cells worked on at a time: stays in the cache


@dataclass(frozen=True)
class FocusMap:
    """The energies of a slide, summed over cells; a cell without foreground has none.

    Attributes:
        near_HW: sum of squared differences between direct neighbours, float32.
        far_HW: the same for pixels that are two apart.
        cell_px0: width and height of a cell in level-0 pixels.
    """

    near_HW: NDArray[np.float32]
    far_HW: NDArray[np.float32]
    cell_px0: tuple[float, float]

    def score(self, xy_px0: NDArray[np.int32], tile_px0: float) -> NDArray[np.float32]:
        """Return the focus score of each tile; 0 where it has no foreground.

        Exact where tiles follow the cells; a cell that a tile cuts counts by its area inside.

        Args:
            xy_px0: (n, 2) top-left corners.
            tile_px0: side of a tile.
        """
        scale = np.array(self.cell_px0)
        low_N2, high_N2 = xy_px0 / scale, (xy_px0 + tile_px0) / scale
        near_N = box_sums(self.near_HW, low_N2, high_N2)
        far_N = box_sums(self.far_HW, low_N2, high_N2)
        seen_N = far_N > 1e-3  # sums of squared grey levels: nothing lies between 0 and 1
        ratio_N = np.divide(near_N, far_N, out=np.full(len(far_N), 0.25), where=seen_N)
        return _scaled(ratio_N)

    def detail(self, xy_px0: NDArray[np.int32], tile_px0: float) -> NDArray[np.float64]:
        """Return the energy of differences between direct neighbours in each tile, (n,).

        Grows with contrast and area: comparable between pictures of the same cells only.
        """
        scale = np.array(self.cell_px0)
        return box_sums(self.near_HW, xy_px0 / scale, (xy_px0 + tile_px0) / scale)


def measure(
    bands: Iterable[tuple[int, NDArray[np.uint8]]],
    size_px: tuple[int, int],
    downsample: tuple[float, float],
    mpp: float,
    mask_HW: NDArray[np.bool_],
) -> FocusMap:
    """Measure the energies of a slide from bands of rows.

    A band starts at a multiple of `BAND_PX`, is as wide as the picture, and has `BAND_PX` rows or
    what is left of them. Bands without foreground may be left out: see `needs_band`.

    Args:
        bands: (first row, (rows, W, 3) uint8), in any order.
        size_px: width and height of the picture that the bands come from.
        downsample: level-0 pixels to a pixel of that picture, along x and y.
        mpp: µm/px of that picture; finer than 1 is reduced by a whole factor.
        mask_HW: the foreground of the whole slide, at any scale.
    """
    reduce = _reduction(mpp)
    cell = CELL_PX * reduce
    width, height = size_px
    near_HW = np.zeros((height // cell, width // cell), np.float32)
    far_HW = np.zeros_like(near_HW)
    x_W = _centres(near_HW.shape[1], cell, width, mask_HW.shape[1])
    for top, image_HWC in bands:
        first, n_rows = top // cell, len(image_HWC) // cell
        if n_rows == 0 or len(x_W) == 0:
            continue
        y_H = _centres(near_HW.shape[0], cell, height, mask_HW.shape[0])[first : first + n_rows]
        cells = np.nonzero(mask_HW[np.ix_(y_H, x_W)])
        whole = image_HWC[: n_rows * cell, : len(x_W) * cell]
        near_HW[cells[0] + first, cells[1]], far_HW[cells[0] + first, cells[1]] = _energies(
            morphology.shrink(whole, reduce), cells
        )
    return FocusMap(near_HW, far_HW, (cell * downsample[0], cell * downsample[1]))


def needs_band(top: int, size_px: tuple[int, int], mask_HW: NDArray[np.bool_]) -> bool:
    """Tell whether the band of the picture that starts at row `top` holds foreground."""
    scale = mask_HW.shape[0] / size_px[1]
    rows = mask_HW[int(top * scale) : int(np.ceil((top + BAND_PX) * scale))]
    return bool(rows.any())


def tile_focus(
    image_HWC: NDArray[np.uint8],
    downsample: float,
    mpp: float,
    mask_HW: NDArray[np.bool_],
    xy_px0: NDArray[np.int32],
    tile_px0: float,
) -> NDArray[np.float32]:
    """Score tiles from a picture of the whole slide that is in memory; see `measure`.

    Returns:
        float32 (n,), 0 for tiles without foreground.
    """
    height, width = image_HWC.shape[:2]
    bands = ((top, image_HWC[top : top + BAND_PX]) for top in range(0, height, BAND_PX))
    focus_map = measure(bands, (width, height), (downsample, downsample), mpp, mask_HW)
    return focus_map.score(xy_px0, tile_px0)


def image_focus(image_HWC: NDArray[np.uint8], mpp: float, mask_HW: NDArray[np.bool_]) -> float:
    """Score one whole image, of which `mask_HW` is foreground; see `measure`."""
    height, width = image_HWC.shape[:2]
    bands = ((top, image_HWC[top : top + BAND_PX]) for top in range(0, height, BAND_PX))
    energies = measure(bands, (width, height), (1.0, 1.0), mpp, mask_HW)
    near, far = float(energies.near_HW.sum()), float(energies.far_HW.sum())
    return float(_scaled(np.array([near / far if far > 1e-3 else 0.25]))[0])


def _scaled(ratio_N: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Bring S(1) / S(2) from 1/4 .. 1 to 0 .. 1."""
    score_N: NDArray[np.float32] = np.clip((4 * ratio_N - 1) / 3, 0, 1).astype(np.float32)
    return score_N


def _reduction(mpp: float) -> int:
    """Return the largest power of two that does not make the picture coarser than 1 µm/px."""
    wanted = FOCUS_MPP / mpp * 1.01
    return min(2 ** int(np.log2(wanted)), BAND_PX // CELL_PX) if wanted >= 1 else 1


def _centres(n_cells: int, cell: int, side: int, mask_side: int) -> NDArray[np.int64]:
    """Return the row or column of the mask under the centre of each cell."""
    return ((np.arange(n_cells) + 0.5) * (cell * mask_side / side)).astype(np.int64)


def _energies(
    image_HWC: NDArray[np.uint8], cells: tuple[NDArray[np.int64], ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the two energies of the given cells. Differences never leave a cell."""
    rows, columns = (side // CELL_PX for side in image_HWC.shape[:2])
    blocks = image_HWC.reshape(rows, CELL_PX, columns, CELL_PX, 3)
    near_N, far_N = (np.zeros(len(cells[0]), np.float32) for _ in range(2))
    for start in range(0, len(near_N), _CHUNK):
        part = slice(start, start + _CHUNK)
        a = blocks[cells[0][part], :, cells[1][part]].sum(3, dtype=np.float32)  # (n, 8, 8)
        for out, lag in ((near_N, 1), (far_N, 2)):
            across, down = a[:, :, lag:] - a[:, :, :-lag], a[:, lag:] - a[:, :-lag]
            total = np.einsum("nyx,nyx->n", across, across) + np.einsum("nyx,nyx->n", down, down)
            out[part] = total / (CELL_PX - lag)  # as many pairs for either lag
    return near_N, far_N
