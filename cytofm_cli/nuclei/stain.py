"""What nuclei are stained with: which colours darkness is measured in.

A stain is an axis, the optical density of nuclei in red, green and blue relative to the largest.
The darkness of a pixel is the most of that stain that it can hold, whatever else it holds: the
least of density / axis over the channels in which the stain absorbs. For Papanicolaou and
haematoxylin, which absorb red and green, that is the lesser of the two; cytoplasm fades, for
eosin, orange G and haemoglobin leave red alone and light green leaves green alone. Where nuclei
absorb one of them only (magenta, with Romanowsky stains; one hue), it is that channel. Where they
are purple (Romanowsky stains with red), red counts for more, or blue cytoplasm would not fade.

The axis is found from the slide itself: from the contrasts of its strongest compact things of a
nucleus' size. It is Papanicolaou's unless these clearly absorb nothing of its colours.

Letters: M blobs, C colours, H rows, W columns.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei.blobs import blob_answer, peaks
from cytofm_cli.nuclei.resample import resample_area

Floats = NDArray[np.float32]

LOOK_MPP: Final = 1.0  # to tell colours, not outlines
RADII_UM: Final = (2.5, 3.5, 5.0, 7.0)
FAINT: Final = 0.06  # optical density; fainter blobs are noise
USED: Final = 0.3  # of the largest density; noise in fainter channels would be enlarged too much
ABSORBS: Final = 0.45  # of the largest density; measured in CRIC: 0.6 to 1 at nuclei
# Of the strongest blobs, as many absorb red and green alike with Papanicolaou's stain: at least
# 0.27 in each of 90 fields, 0.55 in all but one; none with Romanowsky stains that hide red.
PAP_SHARE: Final = 0.15
# Purple nuclei absorb less of red and of blue than of green; medians of strong blobs, of which most
# absorb red. Romanowsky stains: 0.52 to 0.68 and 0.22 to 0.34; CRIC: 0.73 to 1.35, 0.27 to 0.75.
PURPLE_SHARE: Final = 0.6
PURPLE_RED: Final = 0.72
PURPLE_BLUE: Final = 0.4
GREY: Final = 0.97  # of the largest density; medians of nuclei of every stain reach 0.92
SURE_LEVEL: Final = 0.6  # optical density; red cells alone reach 0.55
# Haemoglobin absorbs blue, azure-eosin hardly does: a third of green or more is a red cell,
# unless it is darker than one can be.
RED_CELL_BLUE: Final = 0.3
RED_CELL_LEVEL: Final = 1.3
FEWEST: Final = 3
BLOB_SHARE: Final = 0.75  # what a blob filter answers to a disk of contrast 1, at most
DARK_LIGHT: Final = 70  # grey level; glass in transmitted light is brighter
DARK_SHARE: Final = 0.25  # of the pixels: bright nuclei on black cover less
CHANNELS: Final = ("red", "green", "blue")
GLOW: Final = 12.0  # grey levels of the brightest thousandth above the median; less is noise
GLOW_SHARE: Final = 0.3  # of the brightest channel's; less is bleed-through
SAME: Final = 0.9  # correlation of channels from which they show one thing in grey


@dataclass(frozen=True)
class Stain:
    """Which colours a nucleus absorbs.

    Attributes:
        name: "pap", "he", "mgg", "fluorescence" or "own".
        axis: density in red, green and blue, relative to the largest.
        level: contrast of the darkest nuclei along the axis, optical density; None: not measured.
        doubt: why it could not be told from the slide; None: it could, or was set.
        several: names of the channels of fluorescence that show different things.
    """

    name: str
    axis: tuple[float, float, float]
    level: float | None = None
    doubt: str | None = field(default=None, compare=False)
    several: tuple[str, ...] = field(default=(), compare=False)

    def darkness(self, density_HWC: Floats) -> Floats:
        """Return the most of the stain that each pixel can hold, float32 (H, W).

        In fluorescence, of which the density is that of the inverted image, it is the light, 0 to
        1: dyes emit in proportion to what there is of them.
        """
        if self.name == "fluorescence":
            light: Floats = 1 - np.exp(-density_HWC[..., 0])
            return light
        used = [c for c in range(3) if self.axis[c] >= USED]
        parts = [density_HWC[..., c] / np.float32(self.axis[c]) for c in used]
        darkness: Floats = functools.reduce(np.minimum, parts)
        return darkness

    def facts(self) -> dict[str, Any]:
        """Return what a record says."""
        level = None if self.level is None else round(self.level, 3)
        axis = [round(part, 3) for part in self.axis]
        doubt = {"doubt": self.doubt} if self.doubt else {}
        return {"name": self.name, "axis": axis, "level": level, **doubt}


PAP: Final = Stain("pap", (1.0, 1.0, 0.0))
HE: Final = Stain("he", (1.0, 1.0, 0.0))
MGG: Final = Stain("mgg", (0.35, 1.0, 0.2), 0.8)
FLUORESCENCE: Final = Stain("fluorescence", (1.0, 1.0, 1.0))


def fluorescence(images: Sequence[NDArray[np.uint8]], channel: str = "auto") -> Stain:
    """Return where nuclei are bright: in the brightest channel of each pixel, or in one of them.

    Channels that show different things are different dyes, of which one is that of nuclei: blue, as
    DAPI and Hoechst are shown by custom.

    Args:
        images: uint8 (H, W, 3), of one slide.
        channel: "red", "green", "blue" or "brightest"; "auto": told from the images.
    """
    if channel in CHANNELS:
        return _in_channel(CHANNELS.index(channel))
    if channel == "brightest" or not images:
        return FLUORESCENCE
    light_NC = np.concatenate([image[::4, ::4].reshape(-1, 3) for image in images])
    median_C, top_C = np.percentile(light_NC, (50, 99.9), axis=0)
    glow_C = top_C - median_C
    used = [c for c in range(3) if glow_C[c] >= max(GLOW, GLOW_SHARE * glow_C.max())]
    lit_N = (light_NC > median_C + glow_C / 5)[:, used].any(1)
    if len(used) < 2 or lit_N.sum() < FEWEST:
        return FLUORESCENCE
    alike = np.corrcoef(light_NC[lit_N][:, used].astype(np.float64), rowvar=False)
    if np.nan_to_num(alike, nan=1.0).min() >= SAME:
        return FLUORESCENCE
    names = tuple(CHANNELS[c] for c in used)
    return replace(_in_channel(2) if 2 in used else FLUORESCENCE, several=names)


def _in_channel(channel: int) -> Stain:
    red, green, blue = (float(c == channel) for c in range(3))
    return replace(FLUORESCENCE, axis=(red, green, blue))


def lightest(rgb_HWC: NDArray[np.uint8], of: Stain) -> NDArray[np.uint8]:
    """Return the brightest of the channels in which nuclei are bright, uint8 (H, W)."""
    used = [rgb_HWC[..., c] for c in range(3) if of.axis[c] > 0]
    brightest: NDArray[np.uint8] = functools.reduce(np.maximum, used)
    return brightest


def looks_dark(images: Sequence[NDArray[np.uint8]]) -> bool:
    """Tell whether RGB images were taken in dark field or fluorescence."""
    light = np.concatenate([image[::4, ::4].mean(-1).ravel() for image in images])
    return bool(np.mean(light > DARK_LIGHT) < DARK_SHARE)


def contrasts(image_HWC: NDArray[np.uint8], mpp: float) -> Floats:
    """Return the contrast of every compact dark thing in red, green and blue, float32 (M, 3)."""
    rgb_HWC = resample_area(image_HWC, max(LOOK_MPP / mpp, 1.0))
    density_HWC = optical_density(rgb_HWC)
    working = max(LOOK_MPP, mpp)
    found = []
    for radius_um in RADII_UM:
        radius = radius_um / working
        answer_HWC = blob_answer(density_HWC, radius)
        most_HW = np.maximum.reduce([answer_HWC[..., c] for c in range(3)])
        y, x = peaks(most_HW, radius, FAINT)
        found.append(answer_HWC[y, x])
    return np.concatenate(found).astype(np.float32)


def optical_density(rgb_HWC: Floats) -> Floats:
    """Return the optical density of each channel, float32 in 0..5.55.

    Args:
        rgb_HWC: float32 in 0..255.
    """
    # One grey level of offset keeps the darkest pixel finite and the noise there bounded.
    density: Floats = -np.log((rgb_HWC + 1) / 256)
    return density


def find_stain(contrast_M3: Floats) -> Stain:
    """Return the stain of the nuclei among some blobs; `PAP`, with the doubt, if it is not told.

    Args:
        contrast_M3: of `contrasts`, of as much of a slide as there is.
    """
    # Blue comes last: orange G and keratin absorb it alone, and no nuclear dye does.
    for channels in ([0, 1], [2]):
        strong_M3, level = _strongest(contrast_M3, channels)
        if level < SURE_LEVEL / 3 or len(strong_M3) < FEWEST:
            continue
        if level < SURE_LEVEL:
            return replace(PAP, doubt="nothing of a nucleus' size is dark enough")
        if np.median(strong_M3.min(1) / strong_M3.max(1)) > GREY:
            return replace(PAP, doubt="the picture has no colour")
        lesser_M, greater_M = strong_M3[:, :2].min(1), strong_M3[:, :2].max(1)
        both_M = lesser_M >= ABSORBS * greater_M
        if 2 not in channels and np.mean(both_M) >= PAP_SHARE:
            return _purple(strong_M3[both_M]) if np.mean(both_M) >= PURPLE_SHARE else PAP
        return _own(strong_M3, level)
    return PAP


def _purple(both_M3: Floats) -> Stain:
    """Return a Romanowsky stain whose nuclei are purple and absorb green most, or `PAP`.

    There the cytoplasm is blue and absorbs as much red as nuclei do; measured against what nuclei
    absorb of each, it fades.
    """
    red_M = both_M3[:, 0] / np.maximum(both_M3[:, 1], np.float32(FAINT))
    red, blue = float(np.median(red_M)), float(np.median(both_M3[:, 2] / both_M3.max(1)))
    if red > PURPLE_RED or blue > PURPLE_BLUE:
        return PAP
    return Stain("mgg", (red, 1.0, 0.0))


def romanowsky(contrast_M3: Floats) -> Stain:
    """Return `MGG` with the level of the strongest blobs, if there are any."""
    strong_M3, level = _strongest(contrast_M3, [1])
    if level < SURE_LEVEL / 3 or len(strong_M3) < FEWEST:
        return MGG
    return Stain("mgg", MGG.axis, level / BLOB_SHARE)


def _strongest(contrast_M3: Floats, channels: list[int]) -> tuple[Floats, float]:
    """Return the blobs of at least half the contrast of the darkest, and that contrast."""
    top_M = contrast_M3[:, channels].max(1, initial=0)
    rows = np.flatnonzero(top_M > FAINT)
    if not len(rows):
        return contrast_M3[:0], 0.0
    darkest = np.sort(top_M[rows])[-max(FEWEST, len(rows) // 50) :]
    level = float(darkest.mean())
    return contrast_M3[top_M > level / 2], level


def _own(strong_M3: Floats, level: float) -> Stain:
    mean = np.median(strong_M3 / strong_M3.max(1, keepdims=True), axis=0).clip(0)
    red, green, blue = (float(part) for part in mean / mean.max())
    if green == 1 and blue >= RED_CELL_BLUE and level < RED_CELL_LEVEL:
        return replace(PAP, doubt="what is darkest has the colour of red cells")
    axis = (red, green, blue)
    kind = "mgg" if green == 1 and blue < RED_CELL_BLUE else "own"
    return Stain(kind, axis, level / BLOB_SHARE)
