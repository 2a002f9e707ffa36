"""Which of several outlines is the nucleus, and how likely an outline is one.

An outline is described by numbers that do not depend on the stain: how strong and even its edge
is, how dark it is inside, how round and how large. `score` is linear in them: of two outlines
that exclude each other the one of the larger score is kept. Its weights were fitted on pairs of
outlines of marked nuclei, of which one lies well centred and the other does not (a piece of the
nucleus, or the nucleus with something beside it), by logistic regression on the difference.
`probability` is a logistic function of the score and of three terms that a nucleus needs (edge,
size, contrast), fitted on marks, times the colour: what has that of a red cell is none.

The constants are those that `python tests/bench/fit_nuclei.py` prints.

Letters: M outlines, A angles, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.nuclei.outline import Outlines

Floats = NDArray[np.float32]

FULL_EDGE: Final = 0.1  # optical density; a drop of this or more is a full edge
HALF_BLOB: Final = 0.15  # optical density at which a blob's contrast counts half
TYPICAL_RADIUS_UM: Final = 3.5
LARGE_RADIUS_UM: Final = 7.0  # from which on size counts anew: chromatin is coarse, edges vary
LARGE_SIZE: Final = float(np.log(LARGE_RADIUS_UM / TYPICAL_RADIUS_UM))
MIN_STRENGTH: Final = 0.015
FEATURES: Final = (
    "edge_share",
    "weak_quarter",
    "soft_edge",
    "contrast",
    "inside",
    "evenness",
    "size",
    "roughness",
    "edge_spread",
    "off_centre",
    "fill",
    "blob",
    "size_size",
    "size_contrast",
    "size_weak_quarter",
    "size_evenness",
    "size_soft_edge",
    "size_edge_spread",
    "weakest",
    "mean_edge",
    "shift",
    "ellipse",
    "lobes",
    "ripples",
    "large",
    "large_soft_edge",
    "large_weak_quarter",
    "large_evenness",
    "large_edge_spread",
    "large_contrast",
)
SCORE: Final = np.array(
    [
        -1.478,  # edge_share
        -0.2543,  # weak_quarter
        0.8433,  # soft_edge
        0.1153,  # contrast
        1.154,  # inside
        2.111,  # evenness
        1.566,  # size
        -27.56,  # roughness
        -5.46,  # edge_spread
        0.2447,  # off_centre
        -0.5844,  # fill
        0.2817,  # blob
        -2.635,  # size_size
        0.558,  # size_contrast
        0.04298,  # size_weak_quarter
        0.3779,  # size_evenness
        -0.6966,  # size_soft_edge
        0.1041,  # size_edge_spread
        0.08347,  # weakest
        0.6394,  # mean_edge
        1.687,  # shift
        -4.469,  # ellipse
        -13.7,  # lobes
        2.252,  # ripples
        -4.52,  # large
        -13.3,  # large_soft_edge
        1.094,  # large_weak_quarter
        4.382,  # large_evenness
        3.677,  # large_edge_spread
        1.331,  # large_contrast
    ],
    np.float32,
)
PROBABILITY: Final = np.array(
    [
        3.535,
        0.08894,
        6.229,
        -1.904,
        0.8498,
    ],
    np.float32,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Outlines and what else is known of them.

    Attributes:
        outlines: M of them, in pixels.
        share_M: share of the outline that is a true edge, up to 1.
        radius_um_M: radius of the disk of the same area, µm.
        seed_radius_M: radius of the blob in which the outline was looked for, pixels.
        blob_M: contrast of that blob, optical density.
    """

    outlines: Outlines
    share_M: Floats
    radius_um_M: Floats
    seed_radius_M: Floats
    blob_M: Floats

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Evidence:
        """Return the given rows."""
        return Evidence(
            outlines=self.outlines.take(rows),
            share_M=self.share_M[rows],
            radius_um_M=self.radius_um_M[rows],
            seed_radius_M=self.seed_radius_M[rows],
            blob_M=self.blob_M[rows],
        )


def full_edge_share(outlines: Outlines) -> Floats:
    """Return the share of each outline that is a true edge, at most 1, (M,)."""
    share: Floats = np.clip(outlines.edge_MA / np.float32(FULL_EDGE), -1, 1).mean(1)
    return share


def features(evidence: Evidence) -> Floats:
    """Return what `FEATURES` names, float32 (M, F)."""
    outlines = evidence.outlines
    edge_MA, radius_MA = outlines.edge_MA, outlines.radius_MA
    mean_M = np.maximum(radius_MA.mean(1), 1e-6)
    sorted_MA = np.partition(edge_MA, (2, 7), axis=1)
    rising_MA = np.maximum(edge_MA, 0)
    contrast_M = _log(outlines.inside_M - outlines.outside_M, 0.02)
    weak_M = _log(sorted_MA[:, :8].mean(1), 0.01)
    soft_M = _log((rising_MA / (rising_MA + np.float32(FULL_EDGE))).mean(1), 0.02)
    even_M = _log(1 - radius_MA.std(1) / mean_M, 0.05)
    mean_edge_M = edge_MA.mean(1)
    spread_M = np.minimum(edge_MA.std(1) / np.maximum(mean_edge_M, 0.01), 3)
    beside_MA = (np.roll(radius_MA, 1, axis=1) + np.roll(radius_MA, -1, axis=1)) / 2
    size_M = _log(evidence.radius_um_M / np.float32(TYPICAL_RADIUS_UM), 0.14)
    large_M = np.maximum(_log(evidence.radius_um_M / np.float32(LARGE_RADIUS_UM), 0.14), 0)
    off_M = np.linalg.norm(outlines.centroid() - outlines.seed_M2, axis=1) / mean_M
    return np.stack(
        [
            _log(evidence.share_M, 0.05),
            weak_M,
            soft_M,
            contrast_M,
            _log(outlines.inside_M, 0.02),
            even_M,
            size_M,
            np.abs(radius_MA - beside_MA).mean(1) / mean_M,
            spread_M,
            off_M,
            _log(mean_M / evidence.seed_radius_M, 0.1),
            _log(evidence.blob_M, 0.02),
            np.minimum(size_M, np.float32(LARGE_SIZE)) ** 2,
            size_M * contrast_M,
            size_M * weak_M,
            size_M * even_M,
            size_M * soft_M,
            size_M * spread_M,
            _log(sorted_MA[:, :3].mean(1), 0.005),
            _log(mean_edge_M, 0.02),
            *_harmonics(radius_MA / mean_M[:, None]),
            large_M,
            large_M * soft_M,
            large_M * weak_M,
            large_M * even_M,
            large_M * spread_M,
            large_M * contrast_M,
        ],
        axis=1,
    ).astype(np.float32)


def score(evidence: Evidence) -> Floats:
    """Return how good each outline is among those that exclude each other, (M,)."""
    value: Floats = features(evidence) @ SCORE
    return value


def terms(evidence: Evidence, score_M: Floats) -> Floats:
    """Return what the probability of an outline of a nucleus' colour is made of, float32 (M, 5).

    Args:
        evidence: M outlines.
        score_M: of `score`.
    """
    return np.stack(
        [
            np.ones_like(score_M),
            _log(evidence.share_M, 0.05),
            _log(np.minimum(1, evidence.radius_um_M / np.float32(TYPICAL_RADIUS_UM)), 0.1),
            _log(evidence.blob_M / (evidence.blob_M + np.float32(HALF_BLOB)), 0.05),
            score_M,
        ],
        axis=1,
    )


def probability(
    terms_MT: Floats, colour_M: Floats, weights: NDArray[np.floating] = PROBABILITY
) -> Floats:
    """Return the probability of each outline, float32 (M,) in 0..1.

    Args:
        terms_MT: of `terms`.
        colour_M: 1 for the colour of nuclei, 0 for that of what is none.
        weights: one a term.
    """
    # A product of so few columns in BLAS reads beyond them, which warns of what is not there.
    logit_M = (terms_MT * weights).sum(axis=1)
    chance: Floats = colour_M / (1 + np.exp(-logit_M))
    return chance


def is_strong(evidence: Evidence, colour_M: Floats) -> NDArray[np.bool_]:
    """Tell which outlines have enough edge, size, contrast and colour to be anything, (M,).

    Colour counts twice: shape says nothing about a red cell, which is rounder than a nucleus.
    """
    size_M = np.minimum(1, evidence.radius_um_M / np.float32(TYPICAL_RADIUS_UM))
    contrast_M = evidence.blob_M / (evidence.blob_M + np.float32(HALF_BLOB))
    strong: NDArray[np.bool_] = evidence.share_M * size_M * contrast_M * colour_M**2 >= MIN_STRENGTH
    return strong


def best_of_overlapping(
    outlines: Outlines, score_M: Floats, pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
) -> NDArray[np.intp]:
    """Return the rows that stay when the better of two overlapping outlines always wins.

    Args:
        outlines: M of them.
        score_M: the larger, the better.
        pairs: rows that exclude each other.
    """
    rivals: list[list[int]] = [[] for _ in range(len(outlines))]
    for i, j in zip(*(index.tolist() for index in pairs), strict=True):
        rivals[i].append(j)
        rivals[j].append(i)
    alive = [True] * len(outlines)
    kept = []
    # Ties by position, so that the result does not depend on the order of the blobs.
    order = np.lexsort((outlines.seed_M2[:, 0], outlines.seed_M2[:, 1], -score_M))
    for row in order.tolist():
        if alive[row]:
            kept.append(row)
            for rival in rivals[row]:
                alive[rival] = False
    return np.array(kept, np.intp)


def _log(values: Floats, least: float) -> Floats:
    logarithm: Floats = np.log(np.maximum(values, np.float32(least)))
    return logarithm


def _harmonics(shape_MA: Floats) -> list[Floats]:
    """Return how far outlines of mean radius 1 are shifted, elliptic, lobed and rippled, (M,)."""
    A = shape_MA.shape[1]
    size_MF = np.abs(shape_MA @ _waves(A)) / A
    return [size_MF[:, 0], size_MF[:, 1], size_MF[:, 2:5].sum(1), size_MF[:, 5:].sum(1)]


def _waves(A: int) -> NDArray[np.complex64]:
    angle_A = np.arange(A) * (2 * np.pi / A)
    waves: NDArray[np.complex64] = np.exp(-1j * angle_A[:, None] * np.arange(1, A // 2 + 1))
    return waves.astype(np.complex64)
