"""Find the cells of a sparse slide, whatever the stain.

Idea: on a smear, what matters is small and what misleads is large or thin. Cells and small
groups are darker than *everything around them within 150 µm*; a light gradient, a tinted field,
a wide pen stroke or the coverslip's shadow is not. So no background colour is modelled:

1. In every channel, a morphological closing by a line of 150 µm tells how bright the brightest
   way across each pixel is; taken along four directions, the smallest of the four residues
   (closing - pixel) is the pixel's contrast as a *blob*. Straight edges and anything longer than
   the line in one of the directions have none: gradients, tints and steps cancel by construction.
2. The contrast is divided by the brightness of the glass (in transmitted light: the share of the
   light that is absorbed), the strongest channel counts (an orange cell shows in blue, a cyan one
   in red), and what is within eight sigma of the picture's noise is set to zero.
3. Foreground is a contrast of 6 % or more. 99 % of the marked nuclei of real Pap fields have more
   than 20 %, half of them more than 64 %; glass and light gradients are below the noise.
4. What is long and thin (bubble rims, slanted edges, scratches), or dark, smooth and long (pen)
   goes: a group of cells of that length is neither.
5. Specks go (single pixels at 4 µm/px). Solid tissue, where the nuclei show but the smooth parts
   between them do not, is filled: gaps up to 50 µm that are clearly darker than the glass.

Dark field (fluorescence) is the same on the inverted picture, with the threshold set by the range
of the signal, since there is no light to divide by.

Scale: 4 µm/px; the mask of a sparse 20 480 px slide takes 0.12 CPU s. On eight such slides with
dirty glass 99.7 to 99.9 % of the marked nuclei are inside it, at 12 % of the area. At 8 µm/px it
is 98.1 to 99.9 %; at 2 µm/px nothing is gained and the time is five times as long. The pixel-wise
work runs in strips with a halo of the line's length: the result does not depend on the strips.

What it does not do: rings of small bubbles (below 200 µm), dust the size of a nucleus and ink
fainter than 35 % stay; unstained cells (below 6 %) are not seen, and then it says so.

Closing and top-hat: Serra, Image Analysis and Mathematical Morphology (1982), ch. XII. Running
maxima in log2(n) passes over uint8 make a line of any length cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from cytofm_cli.regions.boxes import box_sums
from cytofm_cli.tiles import morphology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cytofm_cli.units import Size

OVERVIEW_MPP: Final = 4.0
MIN_SIDE_PX: Final = 256  # a small slide is looked at more finely, to have this many pixels
BLOB_UM: Final = 150.0  # longer than a squamous cell (100 µm), shorter than dirt
MIN_CONTRAST: Final = 0.06  # of the glass' brightness: half of the palest cytoplasm seen
MIN_FOREGROUND: Final = 0.05  # share of a tile that is worth keeping it, the default
NOISE_FACTOR: Final = 8.0  # the largest blob contrast of pure noise is 6.5 sigma on 40 Mpx
MIN_LEVELS: Final = 5  # grey levels: JPEG's blocks reach 3 to 4
SIGNAL_SHARE: Final = 0.1  # dark field: of the range between background and brightest signal
SPECK_UM2: Final = 8.0  # 3 µm across; at 4 µm/px, single pixels
THIN_UM: Final = 20.0
LINE_UM: Final = 100.0
SLENDER: Final = 0.08  # mean thickness / length; rims 0.03-0.07, chains of cells above 0.1
INK_DARKNESS: Final = 0.35  # more than light falls off towards a corner
INK_THICK_UM: Final = 8.0  # of its smooth core
INK_UM: Final = 90.0  # the largest smooth dark part of a cell was 60 µm
COARSE_MPP: Final = 4.0
SMOOTH: Final = 0.1  # range within 3 x 3 px / darkness
FILL_UM: Final = 50.0
FILL_DARKNESS: Final = 0.3  # no illumination takes that much light
STRIP_PX: Final = 1024

BRIGHT_LEVEL: Final = 70  # glass in transmitted light is at least this bright
DARK_LEVEL: Final = 40

Illumination = Literal["bright-field", "dark-field"]


@dataclass(frozen=True)
class Foreground:
    """What is worth looking at on a slide.

    Attributes:
        mask_HW: bool, at the scale of the picture that was given.
        background_rgb: colour of the glass, 0-255.
        illumination: which way round the picture is.
        unsure: why the mask should not be trusted, one line; None if it can be.
        ink_HW: bool, what was taken for ink.
        rim_HW: bool, what was taken for rims, edges and scratches.
        contrast_HW: uint8, contrast as a blob; 255 is the glass' brightness.
    """

    mask_HW: NDArray[np.bool_]
    background_rgb: tuple[int, int, int]
    illumination: Illumination
    unsure: str | None
    ink_HW: NDArray[np.bool_]
    rim_HW: NDArray[np.bool_]
    contrast_HW: NDArray[np.uint8]


def overview_mpp(size_px0: Size, mpp: float) -> float:
    """Return the µm/px at which to look for cells: 4, or finer for a small slide.

    Args:
        size_px0: width and height at level 0.
        mpp: µm/px of level 0; the result is never finer.
    """
    return max(mpp, min(OVERVIEW_MPP, min(size_px0) * mpp / MIN_SIDE_PX))


def find_foreground(
    image_HWC: NDArray[np.uint8], mpp: float, *, strip_px: int = STRIP_PX
) -> Foreground:
    """Find the cells in a picture of the whole slide.

    A picture finer than 4 µm/px is reduced first. Blank glass gives an empty mask; where the
    method does not trust itself it says so in `unsure`.

    Args:
        image_HWC: (H, W, 3) uint8 RGB, H and W at least 1.
        mpp: µm/px of the picture.
        strip_px: rows worked on at a time; it does not change the result.
    """
    height, width = image_HWC.shape[:2]
    reduce = min(int(OVERVIEW_MPP / mpp + 0.01), min(height, width) * 2 // MIN_SIDE_PX)
    small_HWC = morphology.shrink(image_HWC, max(1, reduce))
    mpp *= max(1, reduce)
    scene = _scene(small_HWC)
    contrast_HW = _blob_contrast(small_HWC, scene, mpp, strip_px)
    mask_HW = contrast_HW >= MIN_CONTRAST * 255
    rim_HW = _lines(mask_HW, mpp)
    mask_HW &= ~rim_HW
    # Smoothness is a matter of scale: ink is always looked for at the coarse one.
    coarse = max(1, int(COARSE_MPP / mpp + 0.01))
    ink_HW = _ink(morphology.shrink(small_HWC, coarse), scene, mpp * coarse)
    ink_HW = enlarge(ink_HW, coarse, mask_HW.shape)
    parts = morphology.components(mask_HW & ~ink_HW)
    mask_HW = parts.paint(parts.area_px_K >= max(2, SPECK_UM2 / mpp**2))
    mask_HW |= _tissue_gaps(small_HWC, mask_HW, scene, mpp) & ~ink_HW
    unsure = scene.unsure or _doubt(mask_HW, contrast_HW)
    red, green, blue = (round(float(level)) for level in scene.background_C)
    mask_HW, ink_HW, rim_HW, contrast_HW = (
        enlarge(plane_HW, max(1, reduce), (height, width))
        for plane_HW in (mask_HW, ink_HW, rim_HW, contrast_HW)
    )
    return Foreground(
        mask_HW,
        (red, green, blue),
        scene.illumination,
        unsure,
        ink_HW=ink_HW,
        rim_HW=rim_HW,
        contrast_HW=contrast_HW,
    )


def enlarge(mask_HW: NDArray[Any], factor: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Repeat each pixel `factor` times both ways, cut to `shape`."""
    if factor == 1:
        return mask_HW
    return mask_HW.repeat(factor, 0)[: shape[0]].repeat(factor, 1)[:, : shape[1]]


def tile_fraction(
    mask_HW: NDArray[np.bool_],
    downsample: float | tuple[float, float],
    xy_px0: NDArray[np.int32],
    tile_px0: float,
) -> NDArray[np.float32]:
    """Return how much of each tile's area is foreground, 0 to 1.

    Exact, also where a tile cuts pixels of the mask. Only the part of a tile that lies on the
    slide counts, so a slide smaller than a tile is not thinned by padding.

    Args:
        mask_HW: the mask of the whole slide.
        downsample: level-0 pixels to a pixel of the mask, one number or (along x, along y).
        xy_px0: (n, 2) top-left corners.
        tile_px0: side of a tile.

    Returns:
        float32 (n,); 0 for a tile that does not touch the slide.
    """
    scale = np.broadcast_to(np.asarray(downsample, np.float64), 2)
    low_N2, high_N2 = xy_px0 / scale, (xy_px0 + tile_px0) / scale
    height, width = mask_HW.shape
    inside_N2 = np.clip(high_N2, 0, (width, height)) - np.clip(low_N2, 0, (width, height))
    area_N = inside_N2.prod(1)
    covered_N = box_sums(mask_HW, low_N2, high_N2)
    share_N = np.divide(covered_N, area_N, out=np.zeros(len(area_N)), where=area_N > 0)
    clipped_N: NDArray[np.float32] = np.clip(share_N, 0, 1).astype(np.float32)
    return clipped_N


@dataclass(frozen=True)
class _Scene:
    background_C: NDArray[np.float32]  # of the picture as it is
    lowest_C: NDArray[np.float32]  # grey levels of contrast below which a channel says nothing
    full_C: NDArray[np.float32]  # grey levels that count as a contrast of 1
    illumination: Illumination
    unsure: str | None


def _scene(image_HWC: NDArray[np.uint8]) -> _Scene:
    """Measure the glass: its colour, its noise, and whether it is bright or dark."""
    mean_NC, noise_NC = morphology.block_statistics(image_HWC, 8)
    sigma_C = np.percentile(noise_NC, 10, axis=0).astype(np.float32)
    flat_NC = mean_NC[(noise_NC <= 2 * sigma_C + 1).all(1)]
    flat_NC = flat_NC if len(flat_NC) else mean_NC
    light_N = flat_NC.mean(1)
    n_bright = np.count_nonzero(light_N > BRIGHT_LEVEL)
    dark = n_bright < 0.05 * len(mean_NC) and np.median(light_N) < BRIGHT_LEVEL
    unsure = None
    noise_C = np.maximum(NOISE_FACTOR * sigma_C, MIN_LEVELS)
    if dark:
        glass_C = np.median(flat_NC[light_N <= np.percentile(light_N, 2) + 20], axis=0)
        signal = float(np.max(np.percentile(mean_NC, 99.5, axis=0) - glass_C))
        # A threshold (MIN_CONTRAST of full) below the noise would turn a blank slide into cells.
        full_C = np.maximum(signal * SIGNAL_SHARE, noise_C) / MIN_CONTRAST
        lowest_C = noise_C
        if glass_C.mean() > DARK_LEVEL:
            unsure = "the background is neither bright glass nor dark field"
    else:
        glass_C = np.median(flat_NC[light_N >= np.percentile(light_N, 98) * 0.8], axis=0)
        full_C = np.maximum(glass_C, 1)
        # The noise of a small crowded picture is overestimated: it must not hide stained cells.
        lowest_C = np.maximum(np.minimum(noise_C, 1.5 * MIN_CONTRAST * full_C), MIN_LEVELS)
        if np.any(noise_C > full_C) and morphology.whiteness(image_HWC) > 0.6:
            unsure = "the picture is mostly noise"
    if min(image_HWC.shape[:2]) < 4:
        unsure = f"a picture of {image_HWC.shape[1]} x {image_HWC.shape[0]} px is too small"
    return _Scene(
        glass_C.astype(np.float32),
        lowest_C.astype(np.float32),
        full_C.astype(np.float32),
        "dark-field" if dark else "bright-field",
        unsure,
    )


def _blob_contrast(
    image_HWC: NDArray[np.uint8], scene: _Scene, mpp: float, strip_px: int
) -> NDArray[np.uint8]:
    """Return the contrast of every pixel as a blob, uint8; 255 is the glass' brightness."""
    height, width = image_HWC.shape[:2]
    length_px = int(np.clip(round(BLOB_UM / mpp), 3, max(height, width, 3)))
    contrast_HW = np.zeros((height, width), np.uint8)
    levels = np.arange(256, dtype=np.float32)
    for channel in range(3):
        scaled = np.minimum(levels * (255 / scene.full_C[channel]), 255)
        lut = np.where(levels < scene.lowest_C[channel], 0, scaled).astype(np.uint8)
        if lut[-1] == 0:
            continue
        flip = scene.illumination == "dark-field"
        glass = round(float(scene.background_C[channel]))
        for top in range(0, height, strip_px):
            bottom = min(top + strip_px, height)
            halo = length_px - 1
            part_HW = image_HWC[max(0, top - halo) : bottom + halo, :, channel]
            pads = (max(0, halo - top), max(0, bottom + halo - height))
            padded = np.pad(part_HW, (pads, (halo, halo)), constant_values=glass)
            if flip:
                np.subtract(255, padded, out=padded)
            blob_HW = lut[morphology.blob_residue(padded, length_px)]
            np.maximum(contrast_HW[top:bottom], blob_HW, out=contrast_HW[top:bottom])
    return contrast_HW


def _lines(mask_HW: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Mark what is long and thin: rims, scratches, edges, a fine pen."""
    radius_px = max(1, round(THIN_UM / 2 / mpp))
    thick_HW = morphology.dilate(morphology.open_square(mask_HW, radius_px), 1)
    parts = morphology.components(mask_HW & ~thick_HW)
    length_um_K = parts.length_px_K * mpp
    thickness_um_K = parts.area_px_K * mpp**2 / length_um_K
    line_K = (length_um_K >= LINE_UM) & (thickness_um_K < SLENDER * length_um_K)
    return parts.paint(line_K)


def _ink(image_HWC: NDArray[np.uint8], scene: _Scene, mpp: float) -> NDArray[np.bool_]:
    """Mark what is dark, smooth and large, with a margin for its soft edge."""
    ink_HW = np.zeros(image_HWC.shape[:2], bool)
    if scene.illumination == "dark-field":
        return ink_HW
    dark_HW = np.zeros(ink_HW.shape, np.uint8)
    rough_HW = np.zeros(ink_HW.shape, np.uint8)  # of all channels: one alone may be saturated
    for channel in range(3):
        glass = float(scene.background_C[channel])
        lut = np.clip((glass - np.arange(256)) * (255 / max(glass, 1)), 0, 255).astype(np.uint8)
        plane_HW = _look_up(lut, image_HWC[..., channel])
        np.maximum(dark_HW, plane_HW, out=dark_HW)
        np.maximum(rough_HW, morphology.local_range(plane_HW), out=rough_HW)
    noise = float(np.max(scene.lowest_C / scene.full_C))  # below it, glass falls apart
    floor = max(SMOOTH * INK_DARKNESS, noise) * 255
    # Labelled without regard to darkness: a dark corner hangs together with the bright glass and
    # is told from ink, which has a sharp edge all round, by its mean.
    # By table: as numbers for every pixel, the limits would take 0.6 GB of a whole slide.
    limit = np.ceil(np.maximum(SMOOTH * np.arange(256), floor)) - 1
    limit_HW = _look_up(np.minimum(limit, 255).astype(np.uint8), dark_HW)
    parts = morphology.components(rough_HW <= limit_HW)
    dark_K = parts.mean(dark_HW) > INK_DARKNESS * 255
    length_um_K = parts.length_px_K * mpp
    thickness_um_K = parts.area_px_K * mpp**2 / length_um_K
    ink_HW = parts.paint(dark_K & (length_um_K >= INK_UM) & (thickness_um_K >= INK_THICK_UM))
    return morphology.dilate(ink_HW, round(THIN_UM / mpp)) if ink_HW.any() else ink_HW


def _look_up(table: NDArray[np.uint8], level_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the table's entries, in strips: NumPy takes eight bytes an index."""
    entry_HW = np.empty(level_HW.shape, np.uint8)
    for top in range(0, len(level_HW), STRIP_PX):
        rows = slice(top, top + STRIP_PX)
        entry_HW[rows] = table[level_HW[rows]]
    return entry_HW


def _tissue_gaps(
    image_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_], scene: _Scene, mpp: float
) -> NDArray[np.bool_]:
    """Mark gaps between foreground that are far from the glass' colour."""
    radius_px = max(1, round(FILL_UM / 2 / mpp))
    gaps_HW = morphology.close(mask_HW, radius_px)
    y, x = np.nonzero(gaps_HW & ~mask_HW)
    away_NC = scene.background_C - image_HWC[y, x]
    if scene.illumination == "dark-field":
        away_NC = -away_NC
    stained_N = (away_NC >= FILL_DARKNESS * scene.full_C).any(1)
    gaps_HW[:] = False
    gaps_HW[y[stained_N], x[stained_N]] = True
    return gaps_HW


def _doubt(mask_HW: NDArray[np.bool_], contrast_HW: NDArray[np.uint8]) -> str | None:
    """Say why a mask may be wrong."""
    share = float(mask_HW.mean())
    if share > 0.7:
        return f"{share:.0%} of the picture has contrast: hardly any clean background to compare"
    faint = float((contrast_HW >= MIN_CONTRAST * 255 / 2).mean())
    if share < 0.0002 and faint > 0.002:
        return f"only very faint objects: {faint:.1%} of the picture is just below the threshold"
    return None
