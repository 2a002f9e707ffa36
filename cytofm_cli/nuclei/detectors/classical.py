"""Find nuclei without weights: darkness, blobs, outlines.

1. Darkness: optical density in red or in green, whichever is smaller. Nuclear dyes
   (haematoxylin, azure B, cresyl violet) absorb both; eosin, orange G and haemoglobin leave red
   alone and light green leaves green alone, so cytoplasm and red cells fade.
2. Blobs: maxima of the scale-normalised Laplacian of Gaussian over radii of 2.5 to 12 µm
   (Lindeberg, IJCV 30:79, 1998).
3. Outlines: the closed path of the steepest drop around each blob (`cytofm_cli.nuclei.outline`).
   Confidence is the share of the outline that is a true edge, times terms for size, contrast
   and colour; it ranks detections and is not a calibrated probability.
4. Of outlines that lie in each other the better one stays; touching ones are cut apart along
   the watershed of their distances.

Only contrasts are used, never statistics of the tile: the result does not depend on the tile's
borders, on exposure, or on the colour of the background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import option
from cytofm_cli.nuclei import outline
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, as_rgb, check_mpp, make_table
from cytofm_cli.nuclei.outline import Outlines
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.registry import Plugin

Floats = NDArray[np.float32]

WORKING_MPP: Final = 0.5  # a nucleus of 2.5 µm radius still spans ten pixels
MPP_RANGE: Final = (0.05, 1.05)
# 2.5 to 12 µm in steps of 1.37: an outline may be 0.3 to 1.8 times as large as its blob.
RADII_UM: Final = tuple(2.5 * 1.37**i for i in range(6))
MIN_BLOB: Final = 0.06  # optical density; fainter blobs are noise in 8-bit images
FULL_EDGE: Final = 0.1  # optical density; a drop of this or more is a full edge
MIN_EDGE_SHARE: Final = 0.2
TYPICAL_RADIUS_UM: Final = 3.5  # outlines smaller than this lose confidence
HALF_BLOB: Final = 0.15  # optical density at which a blob's contrast gives half confidence
FULL_RED: Final = 0.5  # optical density; red cells measured 0.2 or less in nine of ten
MAX_OVERLAP: Final = 0.6  # share of the smaller outline


@dataclass(frozen=True, kw_only=True)
class ClassicalConfig:
    """Settings of the classical detector."""

    min_probability: float = option(
        0.2,
        "confidence below which a nucleus is dropped; lower finds more, and more that is none",
        low=0.0,
        high=1.0,
    )
    min_radius_um: float = option(
        2.0, "radius below which an outline is debris, in µm", low=0.5, high=20.0
    )
    nuclei: str = option(
        "dark",
        "dark: stained nuclei on a bright field; bright: fluorescence or dark field",
        choices=("dark", "bright"),
    )


class ClassicalDetector:
    """Nuclei from darkness, blobs and outlines; see the module's text."""

    classes: tuple[str, ...] = (NUCLEUS,)
    # The largest blob filter reaches 27 µm (3 σ of 13 / √2 µm), a large nucleus 5 µm more.
    halo_um: float = 32.0

    def __init__(self, config: ClassicalConfig | None = None) -> None:
        self.config = config or ClassicalConfig()

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image; see `NucleusDetector.detect`."""
        rgb_HWC = as_rgb(image_HWC)
        check_mpp(mpp, *MPP_RANGE, "classical")
        if self.config.nuclei == "bright":
            # The brightest channel, inverted: blue DAPI and grey dark field look alike then.
            rgb_HWC = np.repeat(255 - rgb_HWC.max(-1, keepdims=True), 3, axis=-1)
        factor = WORKING_MPP / mpp
        density_HWC = optical_density(resample_area(rgb_HWC, factor))
        outlines, probability = find_outlines(density_HWC, self.config)
        return _table(outlines, probability, factor, rgb_HWC.shape[:2])


def optical_density(rgb_HWC: Floats) -> Floats:
    """Return the optical density of each channel, float32 in 0..5.55.

    Args:
        rgb_HWC: float32 in 0..255.
    """
    # One grey level of offset keeps the darkest pixel finite and the noise there bounded.
    density: Floats = -np.log((rgb_HWC + 1) / 256)
    return density


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """Outlines that do not lie in each other, and what their confidence is made of.

    Attributes:
        outlines: M of them, in pixels of the map.
        share_M: share of the outline that is a true edge, up to 1.
        radius_um_M: radius of the disk of the same area, µm.
        blob_M: contrast of the blob, optical density.
        colour_M: 1 for the colour of nuclei, towards 0 for that of red cells.
    """

    outlines: Outlines
    share_M: Floats
    radius_um_M: Floats
    blob_M: Floats
    colour_M: Floats

    def confidence(
        self, typical_radius_um: float = TYPICAL_RADIUS_UM, half_blob: float = HALF_BLOB
    ) -> Floats:
        """Return the confidence of each, (M,)."""
        size_M = np.minimum(1, self.radius_um_M / typical_radius_um)
        contrast_M = self.blob_M / (self.blob_M + half_blob)
        confidence: Floats = self.share_M * size_M * contrast_M * self.colour_M
        return confidence


def find_outlines(density_HWC: Floats, config: ClassicalConfig) -> tuple[Outlines, Floats]:
    """Find the nuclei of an image.

    Args:
        density_HWC: float32, optical density at `WORKING_MPP`.
        config: thresholds.

    Returns:
        Disjoint outlines in pixels of the map, and the confidence of each, float32 (M,).
    """
    found = candidates(density_HWC, config.min_radius_um)
    probability = found.confidence()
    sure = probability >= config.min_probability
    return outline.split_touching(found.outlines.take(sure)), probability[sure]


def candidates(density_HWC: Floats, min_radius_um: float) -> Candidates:
    """Find everything that may be a nucleus.

    Args:
        density_HWC: float32, optical density at `WORKING_MPP`.
        min_radius_um: smaller outlines are debris.
    """
    from scipy.ndimage import gaussian_filter

    darkness_HW = np.minimum(density_HWC[..., 0], density_HWC[..., 1])
    seed_M2, radius_M, blob_M = blobs(darkness_HW, np.array(RADII_UM) / WORKING_MPP)
    smooth_HW = gaussian_filter(darkness_HW, 0.7, mode="nearest")
    outlines = outline.trace(smooth_HW, seed_M2, radius_M)
    share_M = np.clip(outlines.edge_MA / FULL_EDGE, -1, 1).mean(1)
    radius_um_M = np.sqrt(outlines.area_px() / np.pi) * WORKING_MPP
    rows = np.flatnonzero((share_M > MIN_EDGE_SHARE) & (radius_um_M > min_radius_um))
    rows = rows[_best_of_overlapping(outlines.take(rows), _quality(outlines, share_M)[rows])]
    kept = outlines.take(rows)
    return Candidates(
        outlines=kept,
        share_M=share_M[rows],
        radius_um_M=radius_um_M[rows],
        blob_M=blob_M[rows],
        colour_M=_nuclear_colour(density_HWC, kept),
    )


def _quality(outlines: Outlines, share_M: Floats) -> Floats:
    """Rank outlines that exclude each other: complete, round and dark inside.

    Darkness prefers a nucleus to the cell around it, roundness a nucleus to a touching pair.
    """
    spread_M = outlines.radius_MA.std(1) / np.maximum(outlines.radius_MA.mean(1), 1e-6)
    quality: Floats = share_M * np.maximum(outlines.inside_M, 0.01) * np.maximum(1 - spread_M, 0.05)
    return quality


def _nuclear_colour(density_HWC: Floats, outlines: Outlines) -> Floats:
    """Return 1 for the colour of nuclei, towards 0 for that of red cells, float32 (M,).

    Haemoglobin and eosin hardly absorb red. What does absorb red strongly is a nucleus even
    where it absorbs green far more, as with Giemsa. What absorbs red alone is mostly cytoplasm
    stained with light green; purely blue nuclei exist, so this only halves the confidence.
    """
    red = outline.contrast(density_HWC[..., 0], outlines)
    green = outline.contrast(density_HWC[..., 1], outlines)
    ratio = red / np.maximum(green, 0.03)
    not_pink = np.clip(np.maximum((ratio - 0.3) / 0.3, red / FULL_RED), 0, 1)
    not_cyan = np.clip(2 - ratio, 0.5, 1)
    colour: Floats = not_pink * not_cyan
    return colour


def blobs(map_HW: Floats, radii_px: NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """Find bright blobs at every scale.

    A disk of radius r answers most at σ = r / √2; the answer −σ² ∇² is a contrast.

    Args:
        map_HW: float32.
        radii_px: radii of the blobs looked for.

    Returns:
        Centres (M, 2) as (x, y), radii (M,) and answers (M,), which are at least `MIN_BLOB`.
    """
    from scipy.ndimage import correlate1d, maximum_filter

    found = []
    for radius in radii_px:
        gauss, second = _derivative_kernels(radius / np.sqrt(2))
        rows = correlate1d(map_HW, gauss, axis=0, mode="nearest")
        answer = correlate1d(rows, second, axis=1, mode="nearest")
        rows = correlate1d(map_HW, second, axis=0, mode="nearest")
        answer += correlate1d(rows, gauss, axis=1, mode="nearest")
        peak = maximum_filter(answer, size=max(3, int(0.7 * radius) | 1), mode="nearest")
        y, x = np.nonzero((answer == peak) & (answer > MIN_BLOB))
        found.append(np.stack([x + 0.5, y + 0.5, np.full(len(x), radius), answer[y, x]], axis=1))
    table = np.concatenate(found).astype(np.float32)
    return table[:, :2], table[:, 2], table[:, 3]


def _derivative_kernels(sigma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a Gaussian and −σ² times its second derivative, cut at 3 σ.

    The cut derivative is corrected to sum to 0: otherwise the answer would grow with the
    darkness of a flat area.
    """
    x = np.arange(-round(3 * sigma), round(3 * sigma) + 1)
    gauss = np.exp(-(x**2) / (2 * sigma**2))
    gauss /= gauss.sum()
    second = (1 - x**2 / sigma**2) * gauss
    return gauss, second - gauss * second.sum()


def _best_of_overlapping(outlines: Outlines, quality: Floats) -> NDArray[np.intp]:
    """Return the rows that stay when the better of two overlapping outlines always wins."""
    small, large, share = outline.overlaps(outlines)
    rivals: list[list[int]] = [[] for _ in range(len(outlines))]
    conflict = share > MAX_OVERLAP
    for i, j in zip(small[conflict].tolist(), large[conflict].tolist(), strict=True):
        rivals[i].append(j)
        rivals[j].append(i)
    alive = np.ones(len(outlines), bool)
    kept = []
    # Ties by position, so that the result does not depend on the order of the blobs.
    order = np.lexsort((outlines.seed_M2[:, 0], outlines.seed_M2[:, 1], -quality))
    for row in order.tolist():
        if alive[row]:
            kept.append(row)
            alive[rivals[row]] = False
    return np.array(kept, np.intp)


def _table(
    outlines: Outlines, probability: Floats, factor: float, size: tuple[int, int]
) -> NucleusTable:
    height, width = size
    points, area_px, centre = outline.in_image(outlines, factor, width, height)
    return make_table(
        np.clip(centre, 0, (width, height)),
        area_px * (WORKING_MPP / factor) ** 2,
        polygons=points,
        probability=np.clip(probability, 0, 1),
    ).sorted()


PLUGIN = Plugin(
    make=ClassicalDetector,
    config=ClassicalConfig,
    summary="no weights: darkness, scale-space blobs, outlines; stained or fluorescent nuclei",
)
