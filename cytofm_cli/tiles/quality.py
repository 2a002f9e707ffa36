"""What is wrong with tiles: pen, rims, clumps, stain that is black, empty glass.

Five shares of a tile's area, each 0 to 1, from the picture of the whole slide in which the
foreground was looked for (4 µm/px, finer for small slides), once when a slide is tiled; but
for lines and fine strokes they come from what that search has found already. The sixth column,
`focus`, is measured at 1 µm/px (`tiles.focus`).

- `pen`: ink. Darker than 35 % of the glass, smooth (range within 3 x 3 px at most a tenth of the
  darkness), at least 90 µm long and 8 µm thick: `foreground._ink`; or finer, of one colour and
  180 µm long: `strokes.fine_strokes`; with a margin of 20 µm. Pale ink stays unseen, large flat
  smears of blood are taken for it.
- `edge`: long thin rims of bubbles, scratches: foreground at least 100 µm long and thinner than 8 %
  of its length: `foreground._lines`, with a margin of 8 µm; and, with a margin of 16 µm, the whole
  of round rims of which a piece was seen so (`round_rims.whole_rims`) and straight lines of 512 µm
  or more, as the coverslip's edge (`straight.straight_lines`). Rims of bubbles below 200 µm stay
  unseen.
- `clump`: groups too thick to see through: of the light of the glass less than half is left in
  the mean of the colours, over a square of 40 µm at least (opening by that square). Single nuclei
  and single cells hold no such square.
- `saturation`: share of the tile's **foreground** that lets less than 5 % of the light of the
  glass pass in every colour (optical density above 1.3): there the camera has no grey levels left,
  and chromatin cannot be told. 0 for a tile without foreground.
- `blank`: empty glass: less than half of the contrast that makes foreground
  (`foreground.MIN_CONTRAST` / 2), and not dark.

In dark field there is no ink; `clump` and `saturation` count what is above half and above 98 % of
the camera's range. The measures are those of common quality control of slides (pen, bubbles, folds,
over-staining, blank: Janowczyk et al., HistoQC, JCO Clin Cancer Inform 3 (2019), 1-7), defined for
single cells on glass; the thresholds are the project's.

H, W: pixels of the picture; N: tiles; C: channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cytofm_cli.tiles import morphology
from cytofm_cli.tiles.foreground import (
    COARSE_MPP,
    INK_DARKNESS,
    MIN_CONTRAST,
    THIN_UM,
    Foreground,
    enlarge,
    tile_fraction,
)
from cytofm_cli.tiles.round_rims import whole_rims
from cytofm_cli.tiles.straight import straight_lines
from cytofm_cli.tiles.strokes import fine_strokes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

COLUMNS: Final = ("pen", "edge", "clump", "saturation", "blank")
CLUMP_UM: Final = 40.0
CLUMP_LIGHT: Final = 0.5
BLACK_LIGHT: Final = 0.05
EDGE_MARGIN_UM: Final = 8.0
LINE_MARGIN_UM: Final = 16.0


@dataclass(frozen=True, eq=False)
class Signs:
    """Where on a slide something is wrong, as masks of one picture.

    Attributes:
        masks: bool (H, W), by column.
        foreground_HW: what `saturation` is a share of.
    """

    masks: Mapping[str, NDArray[np.bool_]]
    foreground_HW: NDArray[np.bool_]

    def measure(
        self, downsample: tuple[float, float], xy_px0: NDArray[np.int32], tile_px0: float
    ) -> dict[str, NDArray[np.float32]]:
        """Return the columns of tiles, float32 (n,) in 0..1; see the module's text.

        Args:
            downsample: level-0 pixels to a pixel of the masks, along x and y.
            xy_px0: (n, 2) top-left corners.
            tile_px0: side of a tile.
        """
        columns = {}
        for name, mask_HW in self.masks.items():
            if not mask_HW.any():
                columns[name] = np.zeros(len(xy_px0), np.float32)
                continue
            columns[name] = tile_fraction(mask_HW, downsample, xy_px0, tile_px0)
        if columns["saturation"].any():
            of = tile_fraction(self.foreground_HW, downsample, xy_px0, tile_px0)
            black = columns["saturation"]
            share = np.divide(black, of, out=np.zeros_like(black), where=of > 0)
            columns["saturation"] = np.clip(share, 0, 1)
        return columns


def find_signs(image_HWC: NDArray[np.uint8], seen: Foreground, mpp: float) -> Signs:
    """Look for what is wrong in a picture of the whole slide.

    Args:
        image_HWC: (H, W, 3) uint8 RGB, the picture in which `seen` was found.
        seen: its foreground.
        mpp: µm/px of the picture.
    """
    mean_HW, most_HW = _light(image_HWC, seen)
    clump_HW = morphology.open_square(
        mean_HW < round(CLUMP_LIGHT * 255), max(1, round(CLUMP_UM / 2 / mpp))
    )
    ink_HW = seen.ink_HW | _grown(_strokes(image_HWC, seen, mpp), THIN_UM / mpp)
    rim_HW = _grown(seen.rim_HW, EDGE_MARGIN_UM / mpp)
    rim_HW = rim_HW | _grown(_whole_lines(mean_HW, seen, mpp), LINE_MARGIN_UM / mpp)
    contrast = round(MIN_CONTRAST / 2 * 255)
    blank_HW = (seen.contrast_HW < contrast) & (mean_HW > round((1 - INK_DARKNESS) * 255))
    masks = {
        "pen": ink_HW,
        "edge": rim_HW & ~ink_HW,
        "clump": clump_HW & ~ink_HW,
        "saturation": (most_HW < round(BLACK_LIGHT * 255)) & seen.mask_HW,
        "blank": blank_HW & ~ink_HW,
    }
    return Signs(masks, seen.mask_HW)


def _grown(mask_HW: NDArray[np.bool_], by_px: float) -> NDArray[np.bool_]:
    return morphology.dilate(mask_HW, max(1, round(by_px))) if mask_HW.any() else mask_HW


def _whole_lines(light_HW: NDArray[np.uint8], seen: Foreground, mpp: float) -> NDArray[np.bool_]:
    """Mark long straight lines and whole rims, which are always looked for at 4 µm/px."""
    coarse = max(1, int(COARSE_MPP / mpp + 0.01))
    small_HW = morphology.shrink(light_HW[..., None], coarse)[..., 0]
    lines_HW = straight_lines(small_HW)
    if seen.rim_HW.any():
        pieces_HW = morphology.shrink(seen.rim_HW[..., None].view(np.uint8) * 255, coarse)[..., 0]
        lines_HW |= whole_rims(small_HW, pieces_HW > 0)
    return enlarge(lines_HW, coarse, light_HW.shape)


def _strokes(image_HWC: NDArray[np.uint8], seen: Foreground, mpp: float) -> NDArray[np.bool_]:
    """Mark fine strokes of a pen, which are always looked for at 4 µm/px."""
    if seen.illumination == "dark-field":
        return np.zeros(image_HWC.shape[:2], bool)
    coarse = max(1, int(COARSE_MPP / mpp + 0.01))
    small_HWC = morphology.shrink(image_HWC, coarse)
    strokes_HW = fine_strokes(small_HWC, seen.background_rgb, mpp * coarse)
    return enlarge(strokes_HW, coarse, image_HWC.shape[:2])


def _light(
    image_HWC: NDArray[np.uint8], seen: Foreground
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the mean and the largest share of the glass' light over the colours, 255 is all.

    In dark field: of what the camera's range leaves above each pixel.
    """
    height, width = image_HWC.shape[:2]
    mean_HW, most_HW = np.empty((height, width), np.uint8), np.empty((height, width), np.uint8)
    levels = np.arange(256)
    tables = []
    for glass in seen.background_rgb:
        light = 255 - levels if seen.illumination == "dark-field" else levels * 255 / max(glass, 1)
        tables.append(np.clip(light, 0, 255).astype(np.uint8))
    for top in range(0, height, _STRIP_PX):
        rows = slice(top, top + _STRIP_PX)
        planes = [table[image_HWC[rows, :, c]] for c, table in enumerate(tables)]
        most_HW[rows] = np.maximum(np.maximum(planes[0], planes[1]), planes[2])
        total = planes[0].astype(np.uint16)
        total += planes[1]
        total += planes[2]
        mean_HW[rows] = total // 3
    return mean_HW, most_HW


_STRIP_PX: Final = 256


def keep_good(
    columns: Mapping[str, NDArray[np.float32]], limits: Mapping[str, float]
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Tell which tiles are within all limits, and how many each limit takes away by itself.

    Args:
        columns: measured, by name; with `focus`.
        limits: by column; the least of `focus`, the most of the others.
    """
    n = len(next(iter(columns.values())))
    good_N, removed = np.ones(n, bool), {}
    for name, limit in limits.items():
        column = columns[name]
        bad_N = column < limit if name == "focus" else column > limit
        removed[name] = int(bad_N.sum())
        good_N &= ~bad_N
    return good_N, removed
