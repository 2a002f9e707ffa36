"""Whether an outline is a red cell or a nucleus: hue, flatness, central pallor, size.

Haemoglobin absorbs violet and green and lets red pass; nuclear dyes absorb red or green, and
least of all blue. A red cell is flat inside or paler in the middle, 5 to 9 µm wide, and never as
dark as a nucleus; a nucleus has chromatin. `nucleus_share` is a logistic function of these, fitted
on marked nuclei of Pap smears, white cells and simulated nuclei against red cells of blood smears;
the constants were fitted by `python tests/bench/fit_red_cells.py` on simulated slides of version 2.

Letters: M outlines, F features.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei.outline import Outlines, profile

Floats = NDArray[np.float32]

FEATURES: Final = (
    "one",
    "red",
    "green",
    "blue",
    "red_red",
    "blue_blue",
    "red_blue",
    "density",
    "red_density",
    "texture",
    "pallor",
    "size",
    "size_size",
    "evenness",
    "size_density",
    "blue_density",
)
WEIGHTS: Final = np.array(
    [
        2.828,  # one
        4.707,  # red
        6.122,  # green
        -12.67,  # blue
        -1.893,  # red_red
        6.988,  # blue_blue
        6.685,  # red_blue
        -1.17,  # density
        4.853,  # red_density
        2.595,  # texture
        -2.464,  # pallor
        3.369,  # size
        7.198,  # size_size
        2.978,  # evenness
        0.1407,  # size_density
        4.396,  # blue_density
    ],
    np.float32,
)
TEAL: Final = 0.15  # what absorbs so much more red than green, of the largest, is no red cell
# 1 finds more of SIPaKMeD's teal nuclei (0.92 of all for 0.88; 0: 0.74), but in Pap slides as many
# pieces of cytoplasm as there are nuclei.
TEAL_SHARE: Final = 0.45
_FAINT: Final = np.float32(0.03)  # optical density; hues of less are noise
_RED_CELL_UM: Final = 3.5  # radius


def features(density_HWC: Floats, outlines: Outlines, mpp: float) -> Floats:
    """Return what `FEATURES` names, float32 (M, F).

    Args:
        density_HWC: optical density in red, green and blue.
        outlines: M of them, in pixels.
        mpp: µm/px.
    """
    inside_M3C, around_MC, spread_MC = profile(density_HWC, outlines)
    contrast_MC = inside_M3C.mean(1) - around_MC
    most_M = np.maximum(contrast_MC.max(1), _FAINT)
    red, green, blue = np.clip(contrast_MC / most_M[:, None], -0.5, 1).T
    density = np.log(most_M)
    texture = np.log(np.maximum(spread_MC.mean(1) / most_M, 0.02))
    pallor = np.clip((inside_M3C[:, 2] - inside_M3C[:, 0]).mean(1) / most_M, -1, 1)
    radius_um = np.sqrt(outlines.area_px() / np.float32(np.pi)) * np.float32(mpp)
    size = np.log(np.maximum(radius_um, 0.5) / np.float32(_RED_CELL_UM))
    mean_M = np.maximum(outlines.radius_MA.mean(1), 1e-6)
    even = np.log(np.maximum(1 - outlines.radius_MA.std(1) / mean_M, 0.05))
    return np.stack(
        [
            np.ones_like(red),
            red,
            green,
            blue,
            red * red,
            blue * blue,
            red * blue,
            density,
            red * density,
            texture,
            pallor,
            size,
            size * size,
            even,
            size * density,
            blue * density,
        ],
        axis=1,
    ).astype(np.float32)


def nucleus_share(features_MF: Floats, weights: NDArray[np.floating] = WEIGHTS) -> Floats:
    """Return 1 for nuclei, towards 0 for red cells, float32 (M,).

    Args:
        features_MF: of `features`.
        weights: one a feature.
    """
    share: Floats = (1 / (1 + np.exp(-np.clip(features_MF @ weights, -30, 30)))).astype(np.float32)
    return share


def teal_share(features_MF: Floats) -> Floats:
    """Return how sure a hue is that of no red cell, up to `TEAL_SHARE`, float32 (M,).

    Haemoglobin always absorbs green more than red. Where it is the other way, no blood could teach
    `nucleus_share`; it may be a teal nucleus or, more often, teal cytoplasm.
    """
    red_M, green_M = (features_MF[:, FEATURES.index(name)] for name in ("red", "green"))
    share: Floats = (TEAL_SHARE * np.clip((red_M - green_M) / TEAL, 0, 1)).astype(np.float32)
    return share
