"""How much of the attention lies on nuclei, against how much of the image they cover.

Letters: N slides, B images, H heads, P patches, K compartments, R bootstrap replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.maps.compartments import COMPARTMENTS
from cytofm_cli.stats.intervals import Estimate, bootstrap, group_weights

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SlideShares:
    """The shares of one network on the images of one slide.

    Attributes:
        mass_HK: share of each head's attention on each compartment, mean over images; of what
            lies on patches at all, so rows sum to 1. NaN for a head that looks at no patch.
        area_K: share of the images that each compartment covers, mean.
        place_HK: the same as `mass_HK` if each head looked at the same places of every image, at
            those where it looks in the mean: what a nucleus in the middle of each image is worth.
        prefix_H: share of the attention on class token and registers, mean.
        n_images: how many.
    """

    mass_HK: Floats
    area_K: Floats
    place_HK: Floats
    prefix_H: Floats
    n_images: int

    def record(self) -> dict[str, Any]:
        """Return plain JSON values; what is not known is null."""
        mass, place = (
            [[None if np.isnan(v) else float(v) for v in row] for row in values]
            for values in (self.mass_HK, self.place_HK)
        )
        return {
            "mass": mass,
            "place": place,
            "area": self.area_K.tolist(),
            "prefix": self.prefix_H.tolist(),
            "n_images": self.n_images,
        }

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> SlideShares:
        """Rebuild what `record` gave."""
        return SlideShares(
            np.array(record["mass"], np.float64),
            np.array(record["area"], np.float64),
            np.array(record["place"], np.float64),
            np.array(record["prefix"], np.float64),
            int(record["n_images"]),
        )


def shares(attention_BHP: NDArray[np.floating[Any]], cover_BPK: Floats) -> SlideShares:
    """Weigh compartments by attention.

    Args:
        attention_BHP: of each head on each patch; the rest of 1 lies on no patch.
        cover_BPK: share of each patch that each compartment covers.
    """
    attention = attention_BHP.astype(np.float64)
    on_patches_BH = attention.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_patches = attention / on_patches_BH[..., None]  # NaN: it looks at no patch
    there_BH = on_patches_BH > 0
    mean_HP = _mean_of_known(of_patches, there_BH)
    return SlideShares(
        mass_HK=_mean_of_known(of_patches @ cover_BPK, there_BH),
        area_K=cover_BPK.mean((0, 1)),
        place_HK=mean_HP @ cover_BPK.mean(0),
        prefix_H=np.clip(1 - on_patches_BH, 0, 1).mean(0),
        n_images=len(attention),
    )


def _mean_of_known(values_BHX: Floats, known_BH: NDArray[np.bool_]) -> Floats:
    """Return the mean over images (H, X); NaN for a head of which none is known."""
    n_H1 = known_BH.sum(0)[:, None]
    total_HX = np.where(known_BH[..., None], values_BHX, 0.0).sum(0)
    mean: Floats = np.divide(total_HX, n_H1, out=np.full(total_HX.shape, np.nan), where=n_H1 > 0)
    return mean


@dataclass(frozen=True)
class Row:
    """One line of the table: a head and a compartment over all slides.

    Attributes:
        head: "1", "2", …; "mean": the mean of all heads.
        mass: share of the attention, with its interval over slides.
        area: share of the images.
        place: enrichment that its mean map alone would have; see `SlideShares`.
        enrichment: mass over area; 1: as if it looked anywhere.
        prefix: share of the attention on class token and registers.
    """

    head: str
    compartment: str
    mass: Estimate
    area: Estimate
    enrichment: Estimate
    place: Estimate
    prefix: float


def over_slides(
    slides: Sequence[SlideShares], groups: Sequence[str], *, replicates: int, seed: int
) -> list[Row]:
    """Sum slides up, each counts the same; intervals draw groups of slides with replacement.

    The enrichment is a ratio of means, not a mean of ratios: a slide with hardly any nuclei has no
    more weight than others.
    """
    weight_RN = group_weights(groups, replicates, seed) if len(set(groups)) > 1 else None
    area_NK = np.stack([slide.area_K for slide in slides])
    mass_NHK = np.stack([slide.mass_HK for slide in slides])
    prefix_NH = np.stack([slide.prefix_H for slide in slides])
    place_NHK = np.stack([slide.place_HK for slide in slides])
    names = [*(str(head + 1) for head in range(mass_NHK.shape[1])), "mean"]
    with_mean = (np.concatenate([of, of.mean(1, keepdims=True)], 1) for of in (mass_NHK, place_NHK))
    mass_NHK, place_NHK = with_mean
    prefix_NH = np.concatenate([prefix_NH, prefix_NH.mean(1, keepdims=True)], 1)
    rows = []
    for h, name in enumerate(names):
        for k, compartment in enumerate(COMPARTMENTS):
            known = np.isfinite(mass_NHK[:, h, k])
            weights = None if weight_RN is None else weight_RN[:, known]
            mass_N, area_N = mass_NHK[known, h, k], area_NK[known, k]
            rows.append(
                Row(
                    name,
                    compartment,
                    _ratio(mass_N, np.ones_like(mass_N), weights),
                    _ratio(area_N, np.ones_like(area_N), weights),
                    _ratio(mass_N, area_N, weights),
                    _ratio(place_NHK[known, h, k], area_N, weights),
                    float(prefix_NH[:, h].mean()),
                )
            )
    return rows


def _ratio(top_N: Floats, below_N: Floats, weight_RN: Floats | None) -> Estimate:
    """Return sum over sum with its interval; NaN where there is nothing to divide by."""

    def metric(weight: Floats | None) -> Floats:
        weight = np.ones(len(top_N)) if weight is None else weight
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((weight @ top_N) / (weight @ below_N))

    if weight_RN is None:
        return Estimate(float(metric(None)), float("nan"), float("nan"))
    return bootstrap(metric, weight_RN)
