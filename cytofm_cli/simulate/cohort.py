"""Patients and slides: who has what, and what can be known of a slide's label from its cells.

The model, exact by construction. A patient is positive or not (fixed numbers of both), has one
diagnosis d of this side by its weight, and a factor m on the share of abnormal cells: patients
differ. With s = abnormal_share · share(d) · m, a marked cell of a slide is of kind k with

    p(k) = s · kinds(d, k) + (1 − s) · [(1 − Σ atypical) · background(k) + atypical(k)]

and the sheets of each kind (a single cell is a sheet of one) are a Poisson process of its own, of
M · p(k) / sheet(k) sheets on a slide where M marked cells are expected. Where the sheets lie, how
large they are and all looks do not depend on the diagnosis given the kinds. So the numbers of
sheets n(k) are sufficient, and the posterior of a diagnosis is a finite mixture of Poissons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.simulate import draws
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.preset import Preset

# Factor on a patient's share of abnormal cells, and its probability; their mean is 1.
FACTORS: Final = ((0.5, 0.4), (1.0, 0.4), (2.0, 0.2))
BATCH: Final = 8  # patients who are stained together


@dataclass(frozen=True, kw_only=True)
class Slide:
    """One slide of a cohort; all that is on it follows from this and the preset.

    Attributes:
        slide_id: its name.
        number: its place in the cohort, from 0.
        patient: name of the patient, the `group` in labels.csv.
        patient_number: place of the patient, from 0.
        batch: number of the batch of stain.
        label: as in labels.csv.
        diagnosis: its name in the preset.
        share: share of abnormal cells among the marked cells.
        size_px: its side.
        covered: share of its glass that has cells.
        dirt: factor of all dirt.
        is_field: it is one field of view, of which nothing is left out.
        planes: focal planes.
        plane_um: their distance.
        seed: of the cohort.
    """

    slide_id: str
    number: int
    patient: str
    patient_number: int
    batch: int
    label: str
    diagnosis: str
    share: float
    size_px: int
    covered: float
    dirt: float
    is_field: bool
    planes: int
    plane_um: float
    seed: int

    def focus_um(self, plane: int) -> float:
        """Return the height of a focal plane; the middle one is at 0."""
        return (plane - (self.planes - 1) / 2) * self.plane_um


def make_cohort(config: SimulateConfig, preset: Preset) -> tuple[Slide, ...]:
    """Return the slides of a cohort, patient by patient.

    Half the patients, rounded up, are positive.
    """
    n = config.patients
    positive = set(draws.stream(config.seed, draws.COHORT).permutation(n)[: n_positive(n)].tolist())
    slides: list[Slide] = []
    for patient in range(n):
        rng = draws.stream(config.seed, draws.PATIENT, patient)
        names, weights = diagnoses_of(preset, positive=patient in positive)
        name = names[int(rng.choice(len(names), p=weights))]
        factor = FACTORS[int(rng.choice(len(FACTORS), p=[p for _, p in FACTORS]))][0]
        for k in range(config.slides_per_patient):
            slides.append(
                Slide(
                    slide_id=f"p{patient + 1:0{len(str(n))}}_s{k + 1}",
                    number=len(slides),
                    patient=f"p{patient + 1:0{len(str(n))}}",
                    patient_number=patient,
                    batch=patient // BATCH,
                    label=preset.diagnoses[name].label,
                    diagnosis=name,
                    share=share_of(preset, name, config.abnormal_share, factor),
                    size_px=config.size_px,
                    covered=config.share_covered,
                    dirt=config.dirt,
                    is_field=config.is_field,
                    planes=config.planes,
                    plane_um=config.plane_um,
                    seed=config.seed,
                )
            )
    return tuple(slides)


def n_positive(n_patients: int) -> int:
    """Return how many of the patients are positive."""
    return (n_patients + 1) // 2


def diagnoses_of(preset: Preset, *, positive: bool) -> tuple[list[str], NDArray[np.float64]]:
    """Return the diagnoses of one side and their probabilities within it."""
    names = [
        name for name, one in preset.diagnoses.items() if (one.label != preset.negative) == positive
    ]
    weights = np.array([preset.diagnoses[name].weight for name in names])
    return names, weights / weights.sum()


def share_of(preset: Preset, diagnosis: str, abnormal_share: float, factor: float) -> float:
    """Return the share of abnormal cells of a patient; a diagnosis without kinds has none."""
    one = preset.diagnoses[diagnosis]
    return min(1.0, abnormal_share * one.share * factor) if one.kinds else 0.0


def kind_shares(preset: Preset, diagnosis: str, share: float) -> dict[str, float]:
    """Return the probability of each kind for a marked cell, p(k) above; those that can occur."""
    layout = preset.layout
    usual = 1 - sum(layout.atypical.values())
    shares: dict[str, float] = dict.fromkeys(marked_kinds(preset), 0.0)
    for table, weight in (
        (layout.background, (1 - share) * usual),
        (layout.atypical, 1 - share),
        (preset.diagnoses[diagnosis].kinds, share),
    ):
        for kind, part in table.items():
            shares[kind] += weight * part
    return shares


def marked_kinds(preset: Preset) -> list[str]:
    """Return the kinds that slides of this preset may have as marked cells, in its order."""
    layout = preset.layout
    named = {*layout.background, *layout.atypical}
    named |= {kind for one in preset.diagnoses.values() for kind in one.kinds}
    return [kind for kind in preset.kinds if kind in named]


def log_posterior(
    preset: Preset,
    config: SimulateConfig,
    sheets: Sequence[Mapping[str, int]],
    expected: Sequence[float],
) -> NDArray[np.float64]:
    """Return the exact posterior of the diagnoses of slides, given their cells; natural log.

    Each slide is judged by itself, as a slide-level head does.

    Args:
        preset: of the cohort.
        config: of the cohort: mean share of abnormal cells, and the shares of both sides.
        sheets: numbers of sheets by kind, one table a slide.
        expected: expected number of marked cells M of each slide.

    Returns:
        float64 (slides, diagnoses), in the order of the preset.
    """
    kinds = marked_kinds(preset)
    n_SK = np.array([[table.get(kind, 0) for kind in kinds] for table in sheets], np.float64)
    expected_S1 = np.asarray(expected, np.float64)[:, None]
    per_sheet_K = np.array([preset.kinds[kind].sheet for kind in kinds])
    prior = n_positive(config.patients) / config.patients
    columns = []
    for name, one in preset.diagnoses.items():
        positive = one.label != preset.negative
        names, weights = diagnoses_of(preset, positive=positive)
        of_side = prior if positive else 1 - prior
        parts = []
        for factor, chance in FACTORS:
            share = share_of(preset, name, config.abnormal_share, factor)
            shares = kind_shares(preset, name, share)
            rate_K = np.array([shares[kind] for kind in kinds]) / per_sheet_K
            weight = of_side * weights[names.index(name)] * chance
            parts.append(_log(weight) + _log_poisson(n_SK, expected_S1 * rate_K))
        columns.append(np.logaddexp.reduce(parts, axis=0))
    joint_SD = np.stack(columns, axis=1)
    whole_S1 = np.logaddexp.reduce(joint_SD, axis=1, keepdims=True)
    return np.asarray(joint_SD - whole_S1, np.float64)


def positive_posterior(preset: Preset, log_SD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the posterior probability (slides,) of not having the negative label."""
    is_positive = [one.label != preset.negative for one in preset.diagnoses.values()]
    return np.asarray(np.exp(np.logaddexp.reduce(log_SD[:, is_positive], axis=1)), np.float64)


def _log_poisson(n_SK: NDArray[np.float64], mean_SK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Σ_k log Poisson(n; mean) (slides,) without the terms that depend on n alone."""
    with np.errstate(divide="ignore", invalid="ignore"):
        seen_SK = np.where(n_SK > 0, n_SK * np.log(mean_SK), 0.0)
    return np.asarray((seen_SK - mean_SK).sum(axis=1), np.float64)


def _log(value: float) -> float:
    return float(np.log(value)) if value > 0 else -np.inf
