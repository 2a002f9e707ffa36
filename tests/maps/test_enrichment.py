"""The share of attention on nuclei, against their share of the area."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.maps.enrichment import Row, SlideShares, over_slides, shares

# Two images of two patches: nucleus covers half of the first patch, nothing of the second; then all
# of the second. The rest is cytoplasm.
COVER = np.array([[[0.5, 0.5, 0], [0, 1, 0]], [[0, 1, 0], [1, 0, 0]]])


def test_shares__by_hand() -> None:
    attention = np.array([[[0.6, 0.2], [0.1, 0.1]], [[0.0, 0.5], [0.3, 0.1]]])
    found = shares(attention, COVER)
    # Head 1: 0.75 · 0.5 of the first image, 1 · 1 of the second; head 2: 0.25 and 0.25.
    np.testing.assert_allclose(found.mass_HK[:, 0], [(0.375 + 1) / 2, 0.25])
    np.testing.assert_allclose(found.area_K, [0.375, 0.625, 0])
    np.testing.assert_allclose(found.prefix_H, [(0.2 + 0.5) / 2, (0.8 + 0.6) / 2])
    # In the mean head 1 looks (0.375, 0.625), head 2 (0.625, 0.375), at patches of which
    # (0.25, 0.5) are nucleus.
    np.testing.assert_allclose(
        found.place_HK[:, 0], [0.375 * 0.25 + 0.625 * 0.5, 0.625 * 0.25 + 0.375 * 0.5]
    )
    np.testing.assert_allclose(found.mass_HK.sum(1), 1)
    assert found.n_images == 2


def test_shares__of_a_head_that_looks_at_no_patch() -> None:
    attention = np.array([[[0.0, 0.0], [0.0, 0.0]], [[0.2, 0.2], [0.0, 0.0]]])
    found = shares(attention, COVER)
    np.testing.assert_allclose(found.mass_HK[0], [0.5, 0.5, 0])  # of the second image alone
    assert np.isnan(found.mass_HK[1]).all() and np.isnan(found.place_HK[1]).all()
    np.testing.assert_allclose(found.prefix_H, [0.8, 1])
    again = SlideShares.from_record(json.loads(json.dumps(found.record())))
    np.testing.assert_array_equal(again.mass_HK, found.mass_HK)
    np.testing.assert_array_equal(again.place_HK, found.place_HK)


@given(st.integers(0, 10_000))
def test_shares__of_even_attention_are_the_areas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cover = rng.dirichlet((1, 1, 1), (3, 5))
    found = shares(np.full((3, 2, 5), 0.1), cover)
    np.testing.assert_allclose(found.mass_HK, [found.area_K] * 2)
    np.testing.assert_allclose(found.place_HK, found.mass_HK)


def slide(mass: float, area: float) -> SlideShares:
    row = np.array([[mass, 1 - mass, 0.0]])
    return SlideShares(row, np.array([area, 1 - area, 0.0]), row, np.array([0.25]), 4)


def of(rows: list[Row], head: str, compartment: str) -> Row:
    (row,) = [row for row in rows if (row.head, row.compartment) == (head, compartment)]
    return row


def test_over_slides__is_a_ratio_of_means_with_an_interval() -> None:
    slides = [slide(0.5, 0.1), slide(0.2, 0.1), slide(0.3, 0.2), slide(0.4, 0.4)]
    rows = over_slides(slides, list("abcd"), replicates=500, seed=0)
    nucleus = of(rows, "1", "nucleus")
    assert nucleus.mass.value == pytest.approx(0.35)
    assert nucleus.area.value == pytest.approx(0.2)
    assert nucleus.enrichment.value == pytest.approx(1.75)  # the mean of ratios would be 2.375
    assert nucleus.enrichment.low < 1.75 < nucleus.enrichment.high
    assert nucleus.enrichment.low >= 1.0 and nucleus.enrichment.high <= 5.0
    assert nucleus.prefix == pytest.approx(0.25)
    mean = of(rows, "mean", "nucleus")
    assert (mean.mass, mean.enrichment) == (nucleus.mass, nucleus.enrichment)  # of one head
    assert repr(rows) == repr(over_slides(slides, list("abcd"), replicates=500, seed=0))


def test_over_slides__without_spread_the_interval_is_a_point() -> None:
    rows = over_slides([slide(0.3, 0.1)] * 5, list("abcde"), replicates=100, seed=0)
    found = of(rows, "1", "nucleus").enrichment
    assert (found.low, found.value, found.high) == pytest.approx((3, 3, 3))


def test_over_slides__of_one_slide_has_no_interval() -> None:
    rows = over_slides([slide(0.3, 0.1)], ["a"], replicates=100, seed=0)
    found = of(rows, "1", "nucleus").enrichment
    assert found.value == pytest.approx(3) and math.isnan(found.low)
    assert math.isnan(of(rows, "1", "other").enrichment.value)  # nothing is other
