"""Who has what, and the posterior of labels: against plain sums of Poisson probabilities."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import UsageError
from cytofm_cli.simulate import draws
from cytofm_cli.simulate.check import check_preset
from cytofm_cli.simulate.cohort import (
    FACTORS,
    kind_shares,
    log_posterior,
    make_cohort,
    positive_posterior,
)
from cytofm_cli.simulate.config import SimulateConfig
from cytofm_cli.simulate.layout import Placement
from cytofm_cli.simulate.preset import load_preset, presets
from cytofm_cli.stats.metrics import auc

from .simulated import PRESET, slides


def poisson(n: int, mean: float) -> float:
    return math.exp(-mean) * mean**n / math.factorial(n)


def plain_posterior(config: SimulateConfig, sheets: dict[str, int], expected: float) -> list[float]:
    """Sum over diagnoses and factors, in plain probabilities and by hand."""
    positive = math.ceil(config.patients / 2) / config.patients
    prior = {"well": 1 - positive, "high": 0.4 * positive, "low": 0.6 * positive}
    of_share = {"well": 0.0, "high": 1.0, "low": 0.5}
    joint = []
    for name, chance in prior.items():
        total = 0.0
        for factor, weight in FACTORS:
            s = min(1.0, config.abnormal_share * of_share[name] * factor)
            p = {
                "squame": (1 - s) * 0.98 * 0.9,
                "gland": (1 - s) * 0.98 * 0.1,
                "dark": s * {"high": 0.8}.get(name, 0.0),
                "odd": (1 - s) * 0.02 + s * {"high": 0.2, "low": 1.0}.get(name, 0.0),
            }
            per_sheet = {"squame": 1, "gland": 8, "dark": 2, "odd": 1}
            likelihood = 1.0
            for kind, share in p.items():
                likelihood *= poisson(sheets.get(kind, 0), expected * share / per_sheet[kind])
            total += weight * likelihood
        joint.append(chance * total)
    return [value / sum(joint) for value in joint]


@settings(max_examples=60)
@given(
    n=st.tuples(*(st.integers(0, 30) for _ in range(4))),
    expected=st.floats(5, 60),
    share=st.floats(1e-4, 0.9),
    patients=st.integers(2, 9),
)
def test_posterior__is_bayes_rule_over_all_that_is_not_seen(n, expected, share, patients) -> None:
    config = SimulateConfig(abnormal_share=share, patients=patients)
    sheets = dict(zip(["squame", "gland", "dark", "odd"], n, strict=True))
    log_D = log_posterior(PRESET, config, [sheets], [expected])[0]
    assert np.exp(log_D) == pytest.approx(plain_posterior(config, sheets, expected), rel=1e-9)


def test_posterior__one_cell_that_normal_slides_never_have_settles_it() -> None:
    config = SimulateConfig(abnormal_share=1e-4)
    log_SD = log_posterior(
        PRESET, config, [{"squame": 9000, "dark": 1}, {"squame": 9000}], [1e4] * 2
    )
    p = positive_posterior(PRESET, log_SD)
    assert p[0] == 1
    assert 0.3 < p[1] < 0.5  # nothing seen is weak evidence against


def test_posterior__without_abnormal_cells_is_the_prior() -> None:
    config = SimulateConfig(abnormal_share=0, patients=3)
    p = positive_posterior(PRESET, log_posterior(PRESET, config, [{"squame": 5}], [20.0]))
    assert p == pytest.approx([2 / 3])


def test_posterior__is_calibrated_on_slides_that_are_laid_out() -> None:
    # 600 slides: among those with posterior p, a share p is positive; 4 standard errors.
    config, cohort = slides(patients=600, slides_per_patient=1, size_px=1024, abnormal_share=0.04)
    sheets, expected = [], []
    for slide in cohort:
        placement = Placement(slide, PRESET)
        blocks = [placement.block(by, bx) for by in range(2) for bx in range(2)]
        seen = {
            (b, s): c.kind
            for b, k in enumerate(blocks)
            for s, c in zip(k.sheets, k.cells, strict=True)
        }
        sheets.append(Counter(seen.values()))
        expected.append(placement.expected)
    p = positive_posterior(PRESET, log_posterior(PRESET, config, sheets, expected))
    positive = np.array([slide.label == "abnormal" for slide in cohort])
    error = math.sqrt((p * (1 - p)).sum())
    assert abs(p.sum() - positive.sum()) < 4 * error
    low, high = p < 0.5, p >= 0.5
    for part in (low, high):
        assert abs(p[part].sum() - positive[part].sum()) < 4 * math.sqrt((p * (1 - p))[part].sum())
    assert 0.6 < float(auc(positive.astype(np.int64), p)) < 0.99


def test_cohort__half_of_the_patients_are_positive_and_slides_share_the_patient() -> None:
    _, cohort = slides(patients=7, slides_per_patient=3, seed=4)
    of_patient = {slide.patient: slide.label for slide in cohort}
    assert len(cohort) == 21
    assert Counter(of_patient.values()) == {"abnormal": 4, "normal": 3}
    assert all(slide.label == of_patient[slide.patient] for slide in cohort)
    assert [slide.slide_id for slide in cohort[:4]] == ["p1_s1", "p1_s2", "p1_s3", "p2_s1"]
    assert [slide.batch for slide in cohort] == [0] * 21


def test_cohort__shares_are_those_of_diagnosis_and_factor() -> None:
    _, cohort = slides(patients=400, slides_per_patient=1, abnormal_share=0.3)
    of = {"well": {0.0}, "high": {0.15, 0.3, 0.6}, "low": {0.075, 0.15, 0.3}}
    for name, wanted in of.items():
        assert {round(one.share, 6) for one in cohort if one.diagnosis == name} == wanted
    n = Counter(one.diagnosis for one in cohort)
    assert abs(n["high"] - 80) < 4 * math.sqrt(200 * 0.4 * 0.6)


def test_shares__of_kinds_add_up_to_one() -> None:
    for share in (0.0, 0.3, 1.0):
        assert sum(kind_shares(PRESET, "high", share).values()) == pytest.approx(1)
    assert kind_shares(PRESET, "high", 1.0) == pytest.approx(
        {"squame": 0, "gland": 0, "dark": 0.8, "odd": 0.2}
    )


def test_factors__have_the_mean_one() -> None:
    assert sum(weight for _, weight in FACTORS) == pytest.approx(1)
    assert sum(factor * weight for factor, weight in FACTORS) == pytest.approx(1)


def test_smooth__is_standard_normal_at_nodes_and_between() -> None:
    for offset in (0.0, 0.5, 0.25):
        at = np.arange(200) * 3.0 + 3 * offset
        values = draws.smooth(7, 3.0, at, at)
        n = values.size / 4  # neighbours are alike
        assert abs(values.mean()) < 5 / math.sqrt(n)
        assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)


def test_smooth__depends_on_the_place_alone() -> None:
    at = np.arange(50.0)
    whole = draws.smooth(3, 8.0, at, at)
    assert (draws.smooth(3, 8.0, at[20:30], at[5:9]) == whole[5:9, 20:30]).all()


@pytest.mark.parametrize("name", presets())
def test_presets__of_cytofm_fit_together(name: str) -> None:
    preset = load_preset(name)
    assert check_preset(preset, name) is preset
    assert make_cohort(SimulateConfig(preset=name), preset)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"background": {"squame": 0.9}}, "layout.background: shares add up to 0.9"),
        ({"background": {"squam": 1.0}}, "layout.background: no such kind of cell: squam"),
        ({"background": {"neutrophil": 1.0}}, "layout.background: unmarked kinds: neutrophil"),
        ({"bystanders": {"squame": 3}}, "layout.bystanders: marked kinds: squame"),
        ({"atypical": {"odd": -1}}, "layout.atypical: must not be negative"),
        ({"clumping": 2.0}, "layout: numbers"),
    ],
)
def test_check__says_which_table_is_wrong(change, said) -> None:
    preset = dataclasses.replace(PRESET, layout=dataclasses.replace(PRESET.layout, **change))
    with pytest.raises(UsageError, match=f"--preset mine.toml: {said}"):
        check_preset(preset, "mine.toml")


def test_check__both_labels_are_needed() -> None:
    preset = dataclasses.replace(PRESET, diagnoses={"well": PRESET.diagnoses["well"]})
    with pytest.raises(UsageError, match="'normal', some another"):
        check_preset(preset, "x")
