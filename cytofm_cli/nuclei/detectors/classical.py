"""Find nuclei without weights: darkness, blobs, outlines.

1. Darkness: how much of the nuclear stain a pixel can hold (`cytofm_cli.nuclei.stain`). With
   most stains that is the optical density in red or in green, whichever is smaller; which
   stain it is, is told from the slide.
2. Blobs: maxima of the scale-normalised Laplacian of Gaussian over radii of 2.5 to 16.5 µm
   (Lindeberg, IJCV 30:79, 1998).
3. Outlines: the closed path of the steepest drop around each blob (`cytofm_cli.nuclei.outline`).
4. Of outlines that lie in each other the better one stays: a whole nucleus rather than a clump of
   its chromatin or the cell around it (`cytofm_cli.nuclei.ranking`, which also gives the
   probability). Touching ones are cut apart along the watershed of their distances.

Only contrasts are used, and one stain for a slide, never statistics of the tile: the result does
not depend on the tile's borders, on exposure, or on the colour of the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.config import Settings, option
from cytofm_cli.errors import UsageError
from cytofm_cli.nuclei import measures, outline, ranking, red_cells, stain
from cytofm_cli.nuclei.base import NUCLEUS, NucleusTable, as_rgb, check_mpp, make_table
from cytofm_cli.nuclei.blobs import find_blobs
from cytofm_cli.nuclei.outline import Outlines
from cytofm_cli.nuclei.ranking import Evidence
from cytofm_cli.nuclei.resample import resample_area
from cytofm_cli.nuclei.stain import PAP, Stain, optical_density
from cytofm_cli.registry import DetectorPlugin
from cytofm_cli.work.opencv import opencv

Floats = NDArray[np.float32]

WORKING_MPP: Final = 0.5  # a nucleus of 2.5 µm radius still spans ten pixels
MPP_RANGE: Final = (0.05, 1.05)
# 2.5 to 16.5 µm in steps of 1.37: an outline may be 0.3 to 1.8 times as large as its blob.
RADII_UM: Final = tuple(2.5 * 1.37**i for i in range(7))
MIN_BLOB: Final = 0.06  # optical density; fainter blobs are noise in 8-bit images
MIN_EDGE_SHARE: Final = 0.2
RED: Final = red_cells.FEATURES.index("red")
GREEN: Final = red_cells.FEATURES.index("green")
DENSITY: Final = red_cells.FEATURES.index("density")
MAX_OVERLAP: Final = 0.4  # share of the smaller outline
MAX_RADIUS_UM: Final = 18.0  # of a disk of the same area; beyond it are cytoplasms and folds
# Contrast, as a share of that of the slide's nuclei, from which and to which confidence rises
# where colour cannot tell nuclei from red cells (Romanowsky: 0.3 to 0.45 of a nucleus).
FAINT_SHARE: Final = (0.35, 0.65)
DARK_ENOUGH: Final = 1.2  # optical density; no red cell, however dark the darkest nuclei
ANY_HUE: Final = 1.5  # optical density of a nucleus whatever its hue


@dataclass(frozen=True, kw_only=True)
class ClassicalConfig(Settings):
    """Settings of the classical detector."""

    min_probability: float = option(
        0.001,
        "probability below which a nucleus is dropped; lower finds more, and more that is none",
        low=0.0,
        high=1.0,
    )
    min_radius_um: float = option(
        2.0, "radius below which an outline is debris, in µm", low=0.5, high=20.0
    )
    nuclei: Literal["auto", "dark", "bright"] = option(
        "auto",
        "dark: stained nuclei on a bright field; bright: fluorescence or dark field; auto: as "
        "the slide is",
    )
    stain: Literal["auto", "pap", "mgg", "he", "fluorescence"] = option(
        "auto", "what nuclei are stained with; auto: told from the slide, pap where it cannot be"
    )
    channel: Literal["auto", "brightest", "red", "green", "blue"] = option(
        "auto",
        "where nuclei are bright in fluorescence; auto: blue where channels show different things, "
        "else the brightest",
    )

    def check(self) -> None:
        """Refuse a stain that contradicts what nuclei look like."""
        if self.stain == "fluorescence" and self.nuclei == "dark":
            raise UsageError(
                f"{self.said('stain')} means bright nuclei, and nuclei=dark dark ones.",
                hint="leave one of them out",
            )
        is_dark = self.nuclei == "dark" or self.stain in ("pap", "mgg", "he")
        if self.channel != "auto" and is_dark and self.nuclei != "bright":
            raise UsageError(
                f"{self.said('channel')} is for bright nuclei, and dark ones are looked for.",
                hint="leave it out, or --set stain=fluorescence",
            )


class ClassicalDetector:
    """Nuclei from darkness, blobs and outlines; see the module's text.

    Args:
        config: the settings.
        known: the stain of the slide; None: told from each image alone.
    """

    classes: tuple[str, ...] = (NUCLEUS,)
    # The largest blob filter reaches 35 µm (3 σ of 16.5 / √2 µm), a large nucleus 9 µm more.
    halo_um: float = 44.0
    block_um: float = 384.0  # 1536 px at 0.25 µm/px: memory grows with it, time hardly falls

    def __init__(
        self, config: ClassicalConfig | None = None, *, known: Stain | None = None
    ) -> None:
        self.config = config or ClassicalConfig()
        self._known = known

    def for_slide(
        self, images: Sequence[NDArray[np.uint8]], mpp: float, illumination: str | None
    ) -> tuple[ClassicalDetector, dict[str, Any], list[str]]:
        """Settle the stain of a slide; see `SlideDetector.for_slide`."""
        found = choose_stain(self.config, [as_rgb(image) for image in images], mpp, illumination)
        bright = found.name == "fluorescence"
        notes = []
        if illumination is not None and bright != (illumination == "dark-field"):
            kind = "bright" if bright else "dark"
            notes.append(
                f"{kind} nuclei are looked for, as set, but the tiles were recorded as "
                f"{illumination}; --set nuclei=auto follows them"
            )
        if found.doubt:
            notes.append(
                f"the stain cannot be told: {found.doubt}; it is taken for Papanicolaou's. "
                "--set stain=pap, he or mgg says what it is"
            )
        if found.several:
            where = "blue, as DAPI is shown" if found.axis[2] > found.axis[0] else "the brightest"
            notes.append(
                f"fluorescence in several channels ({', '.join(found.several)}): nuclei are "
                f"looked for in {where}; --set channel=… says where they are"
            )
        facts = {"stain": found.facts(), "nuclei": "bright" if bright else "dark"}
        return ClassicalDetector(self.config, known=found), facts, notes

    def detect(self, image_HWC: NDArray[np.uint8], mpp: float) -> NucleusTable:
        """Find the nuclei of an RGB image; see `NucleusDetector.detect`."""
        rgb_HWC = as_rgb(image_HWC)
        check_mpp(mpp, *MPP_RANGE, "classical")
        found = self._known or choose_stain(self.config, [rgb_HWC], mpp, None)
        if found.name == "fluorescence":
            # One channel, inverted: blue DAPI and grey dark field look alike then.
            rgb_HWC = np.repeat(255 - stain.lightest(rgb_HWC, found)[..., None], 3, axis=-1)
        factor = WORKING_MPP / mpp
        density_HWC = optical_density(resample_area(rgb_HWC, factor))
        outlines, probability = find_outlines(density_HWC, self.config, found)
        columns = measures.measure(density_HWC, outlines, WORKING_MPP)
        return _table(outlines, probability, columns, factor, rgb_HWC.shape[:2])


def choose_stain(
    config: ClassicalConfig,
    images: Sequence[NDArray[np.uint8]],
    mpp: float,
    illumination: str | None,
) -> Stain:
    """Return the stain that is set, or that of some RGB images of one slide.

    Args:
        config: its `stain` and `nuclei` matter here.
        images: uint8 (H, W, 3).
        mpp: µm/px of the images.
        illumination: "bright-field", "dark-field", or None: told from the images.
    """
    bright = config.nuclei == "bright" or config.stain == "fluorescence"
    if config.nuclei == "auto" and config.stain == "auto" and images:
        is_dark = stain.looks_dark(images) if illumination is None else illumination == "dark-field"
        bright = is_dark
    if bright:
        return stain.fluorescence(images, config.channel)
    if config.stain in ("pap", "he") or not images:
        return stain.HE if config.stain == "he" else PAP
    contrast_M3 = np.concatenate([stain.contrasts(image, mpp) for image in images])
    return stain.romanowsky(contrast_M3) if config.stain == "mgg" else stain.find_stain(contrast_M3)


def find_outlines(
    density_HWC: Floats, config: ClassicalConfig, found_in: Stain = PAP
) -> tuple[Outlines, Floats]:
    """Find the nuclei of an image.

    Args:
        density_HWC: float32, optical density at `WORKING_MPP`.
        config: thresholds.
        found_in: what nuclei are stained with.

    Returns:
        Disjoint outlines in pixels of the map, and the probability of each, float32 (M,).
    """
    darkness_HW = found_in.darkness(density_HWC)
    evidence = candidates(darkness_HW, config.min_radius_um)
    score_M = ranking.score(evidence)
    rows = ranking.best_of_overlapping(evidence.outlines, score_M, rivals(evidence.outlines))
    # What is too weak in the best colour need not be looked at in its own.
    rows = rows[ranking.is_strong(evidence.take(rows), np.ones(len(rows), np.float32))]
    colour_M = colours(density_HWC, darkness_HW, evidence.outlines.take(rows), found_in)
    strong = ranking.is_strong(evidence.take(rows), colour_M)
    rows, colour_M = rows[strong], colour_M[strong]
    evidence = evidence.take(rows)
    probability = ranking.probability(ranking.terms(evidence, score_M[rows]), colour_M)
    sure = probability >= config.min_probability
    return outline.split_touching(evidence.outlines.take(sure)), probability[sure]


def candidates(darkness_HW: Floats, min_radius_um: float) -> Evidence:
    """Outline everything that may be a nucleus, each thing many times.

    Args:
        darkness_HW: float32, optical density at `WORKING_MPP`.
        min_radius_um: smaller outlines are debris.
    """
    cv2 = opencv()
    radii_px = np.array(RADII_UM) / WORKING_MPP
    seed_M2, radius_M, blob_M = find_blobs(darkness_HW, radii_px, MIN_BLOB)
    smooth_HW = cv2.GaussianBlur(darkness_HW, (5, 5), 0.7, borderType=cv2.BORDER_REPLICATE)
    outlines = outline.trace(smooth_HW, seed_M2, radius_M)
    share_M = ranking.full_edge_share(outlines)
    radius_um_M = np.sqrt(outlines.area_px() / np.float32(np.pi)) * np.float32(WORKING_MPP)
    everything = Evidence(
        outlines=outlines,
        share_M=share_M,
        radius_um_M=radius_um_M,
        seed_radius_M=radius_M,
        blob_M=blob_M,
    )
    of_a_nucleus = (radius_um_M > min_radius_um) & (radius_um_M < MAX_RADIUS_UM)
    return everything.take((share_M > MIN_EDGE_SHARE) & of_a_nucleus)


def rivals(outlines: Outlines) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs of outlines of which only one can be a nucleus."""
    small, large, share = outline.overlaps(outlines)
    conflict = share > MAX_OVERLAP
    return small[conflict], large[conflict]


def colours(
    density_HWC: Floats, darkness_HW: Floats, outlines: Outlines, found_in: Stain
) -> Floats:
    """Return 1 for the colour of nuclei, towards 0 for that of red cells, float32 (M,).

    Where both have one hue, their darkness tells them apart. In fluorescence all is grey.
    """
    if found_in.name == "fluorescence":
        return np.ones(len(outlines), np.float32)
    if found_in.level is None:
        return _nuclear_colour(density_HWC, outlines, found_in)
    return _nuclear_darkness(darkness_HW, outlines, found_in.level)


def _nuclear_colour(density_HWC: Floats, outlines: Outlines, found_in: Stain) -> Floats:
    """Return 1 for the colour of nuclei, towards 0 for that of red cells, float32 (M,).

    What absorbs red alone is mostly cytoplasm stained with light green; purely blue nuclei exist,
    so this only halves the confidence, and not at all with haematoxylin and eosin, which have no
    green. Where nuclei are purple, none has a red cell's hue, and where nothing is as dark as
    nuclei are, most things may be red cells: there it counts twice.
    """
    features_MF = red_cells.features(density_HWC, outlines, WORKING_MPP)
    ratio = features_MF[:, RED] / np.maximum(features_MF[:, GREEN], 0.1)
    not_cyan = 1.0 if found_in.name == "he" else np.clip(2 - ratio, 0.5, 1)
    dark = (np.exp(features_MF[:, DENSITY]) - DARK_ENOUGH) / (ANY_HUE - DARK_ENOUGH)
    is_strict = found_in.name == "mgg" or found_in.doubt is not None
    share = red_cells.nucleus_share(features_MF) ** (2 if is_strict else 1)
    not_red = np.maximum(share, np.maximum(red_cells.teal_share(features_MF), np.clip(dark, 0, 1)))
    colour: Floats = (not_red * not_cyan).astype(np.float32)
    return colour


def _nuclear_darkness(darkness_HW: Floats, outlines: Outlines, level: float) -> Floats:
    """Return 1 for things as dark as nuclei are on this slide, towards 0 for red cells, (M,)."""
    low, high = FAINT_SHARE
    share = outline.contrast(darkness_HW, outlines) / min(level, DARK_ENOUGH)
    darkness: Floats = np.clip((share - low) / (high - low), 0, 1)
    return darkness


def _table(
    outlines: Outlines,
    probability: Floats,
    columns: dict[str, Floats],
    factor: float,
    size: tuple[int, int],
) -> NucleusTable:
    height, width = size
    points, area_px, centre = outline.in_image(outlines, factor, width, height)
    return make_table(
        np.clip(centre, 0, (width, height)),
        area_px * (WORKING_MPP / factor) ** 2,
        polygons=points,
        probability=np.clip(probability, 0, 1),
        columns=columns,
    ).sorted()


PLUGIN = DetectorPlugin(
    make=ClassicalDetector,
    config=ClassicalConfig,
    # 2: stain and illumination are told from the slide; 3: outlines are ranked by a score that was
    # fitted on marks, and probabilities are probabilities; 4: large nuclei are whole, red cells are
    # told by more than hue, fluorescence is looked at in the channel of nuclei; 5: purple nuclei
    # are told from blue cytoplasm, teal ones are no red cells, all constants are fitted anew
    version=5,
    summary="no weights: darkness, scale-space blobs, outlines; stained or fluorescent nuclei",
    sample="cytofm_cli.testing.samples.detectors:classical",
)
