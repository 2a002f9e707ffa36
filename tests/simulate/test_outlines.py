"""Outlines of cells: areas, places and folds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.simulate import outlines
from cytofm_cli.simulate.outlines import Points

SQUARE = np.array([[0, 0], [4, 0], [4, 2], [0, 2]], float)
KINDS: dict[str, Callable[[np.random.Generator], Points]] = {
    "ellipse": lambda rng: outlines.ellipse(rng, 0.6, 0.08),
    "polygon": lambda rng: outlines.polygon(rng, 0.02),
    "column": lambda rng: outlines.column(rng, 0.02),
    "spindle": lambda rng: outlines.spindle(rng, 0.02),
    "beads": lambda rng: outlines.beads(rng, 3, 0.4, 3.0),
    "clover": lambda rng: outlines.clover(rng, 3),
    "kidney": lambda rng: outlines.kidney(rng, 0.03),
}


def test_area_and_centroid__of_a_rectangle() -> None:
    assert outlines.area(SQUARE) == 8
    assert outlines.area(SQUARE[::-1]) == 8
    np.testing.assert_allclose(outlines.centroid(SQUARE), [2, 1])
    np.testing.assert_allclose(outlines.centroid(SQUARE[::-1]), [2, 1])


def test_turned__by_a_right_angle() -> None:
    np.testing.assert_allclose(
        outlines.turned(np.array([[1.0, 0], [0, 2]]), math.pi / 2), [[0, 1], [-2, 0]], atol=1e-12
    )


def test_ellipse__without_roughness_has_its_eccentricity() -> None:
    points = outlines.ellipse(np.random.default_rng(0), 0.8, 0.0, 400)
    long, short = np.ptp(points, axis=0)
    assert math.sqrt(1 - (short / long) ** 2) == pytest.approx(0.8, abs=1e-9)
    assert outlines.area(points) == pytest.approx(math.pi, rel=1e-3)


@pytest.mark.parametrize("name", KINDS)
@given(seed=st.integers(0, 2**32 - 1), size=st.floats(1, 1e5))
def test_scaled__has_its_area_and_middle(name: str, seed: int, size: float) -> None:
    points = outlines.scaled(KINDS[name](np.random.default_rng(seed)), size)
    assert outlines.area(points) == pytest.approx(size)
    np.testing.assert_allclose(outlines.centroid(points), 0, atol=1e-6 * math.sqrt(size))


@pytest.mark.parametrize("name", KINDS)
def test_outlines__differ_by_seed_and_not_by_call(name: str) -> None:
    first, again, other = (KINDS[name](np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_harmonics__have_no_mean_and_unit_deviation() -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([outlines.harmonics(rng, 64, 2, 9) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=1), 0, atol=1e-12)
    assert drawn.std() == pytest.approx(1, abs=0.03)
    power = np.abs(np.fft.rfft(drawn, axis=1)).max(axis=0)
    assert (power[[0, 1, *range(10, 33)]] < 1e-9).all()


def test_around__pushes_the_border_beyond_what_lies_within() -> None:
    circle = outlines.ellipse(np.random.default_rng(0), 0.0, 0.0, 96) * 10
    inner = outlines.ellipse(np.random.default_rng(0), 0.0, 0.0, 64) * 4 + np.array([9.0, 0])
    pushed = np.hypot(*outlines.around(circle, [inner], 1.0).T)
    assert pushed[0] == pytest.approx(14, abs=0.05)
    assert pushed[48] == 10  # the far side stays
    np.testing.assert_array_equal(outlines.around(circle, [inner * 0.1], 1.0), circle)


def test_folded__lays_the_corner_over_the_line() -> None:
    square = np.array([[-2, -2], [0, -2], [2, -2], [2, 0], [2, 2], [0, 2], [-2, 2]], float)
    left, flap = outlines.folded(square, 1.0, 0.0)
    assert outlines.area(left) == pytest.approx(12)
    assert flap is not None
    np.testing.assert_allclose(flap, [[0, -2], [0, 0], [0, 2]])
    same, none = outlines.folded(square, 3.0, 0.0)
    assert none is None
    np.testing.assert_array_equal(same, square)


@given(seed=st.integers(0, 2**32 - 1), lobes=st.integers(2, 5), waist=st.floats(0.2, 0.8))
def test_beads__do_not_cross_themselves(seed: int, lobes: int, waist: float) -> None:
    rng = np.random.default_rng(seed)
    points = outlines.beads(rng, lobes, waist, min(1.2 * lobes, 4.7))
    half = len(points) // 2
    outer, inner = points[:half], points[half:][::-1]
    assert (np.hypot(*outer.T) >= np.hypot(*inner.T)).all()
    assert (np.hypot(*inner.T) > 0).all()
    assert (np.diff(np.unwrap(np.arctan2(outer[:, 1], outer[:, 0]))) > 0).all()


@given(seed=st.integers(0, 2**32 - 1))
def test_spindle__is_thick_where_the_nucleus_lies(seed: int) -> None:
    points = outlines.spindle(np.random.default_rng(seed), 0.0)
    half = len(points) // 2
    above, below = points[:half], points[half:][::-1]
    width = above[:, 1] - below[:, 1]
    assert (width >= 0).all()
    assert np.interp(0.0, above[:, 0], width) > 0.85 * width.max()
