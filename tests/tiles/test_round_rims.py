"""Whole rims from pieces: past dust and the edge of the picture; nothing that is not round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytofm_cli.tiles import round_rims
from cytofm_cli.tiles.round_rims import whole_rims

SIDE = 320


def glass(seed: int = 0, n_specks: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    image = 235 + rng.normal(0, 2, (SIDE, SIDE))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for x, y, size in rng.uniform((0, 0, 1), (SIDE, SIDE, 3), (n_specks, 3)):
        image[np.hypot(columns - x, rows - y) < size] *= rng.uniform(0.3, 0.8)
    return image


def away(x: float, y: float, radius: float) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.abs(np.hypot(columns - x, rows - y) - radius)


def seen(image: NDArray[np.float64], piece: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return whole_rims(np.clip(image, 0, 255).astype(np.uint8), piece)


@pytest.mark.parametrize("radius", [16, 40, 110])
@pytest.mark.parametrize("n_specks", [0, 200])
def test_rim__is_found_whole_from_a_third_of_it(radius: int, n_specks: int) -> None:
    image = glass(1, n_specks)
    rim = away(170, 150, radius) < 1
    image[rim] -= 60
    piece = rim.copy()
    piece[:, 170 - radius // 2 :] = False
    marked = seen(image, piece)
    assert (marked & rim).sum() > (0.75 if n_specks else 0.85) * rim.sum()
    assert not marked[away(170, 150, radius) > 4].any()


def test_rims__that_touch_are_told_apart() -> None:
    image = glass()
    first, second = away(100, 150, 60) < 1, away(200, 150, 40) < 1
    image[first | second] -= 60
    marked = seen(image, first | second)
    for rim in (first, second):
        assert (marked & rim).sum() > 0.9 * rim.sum()


def test_rim__may_go_past_the_picture_and_under_cells() -> None:
    image = glass()
    rim = away(300, 150, 70) < 1
    image[rim] -= 60
    image[60:110, 240:300] = np.random.default_rng(2).uniform(60, 230, (50, 60))  # pasted on it
    piece = rim.copy()
    piece[:130] = False
    marked = seen(image, piece)
    bare = rim.copy()
    bare[55:115, 235:305] = False
    assert (marked & bare).sum() > 0.85 * bare.sum()
    assert marked[64:106, 244:296].mean() < 0.03


def test_straight_piece__is_no_rim() -> None:
    image = glass()
    image[100, 40:200] -= 60
    piece = np.zeros(image.shape, bool)
    piece[100, 40:200] = True
    assert not seen(image, piece).any()


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 600))
def test_specks__are_no_rim_whatever_proposes_it(seed: int, n_specks: int) -> None:
    image = glass(seed, n_specks)
    assert not seen(image, image < 200).any()
    arc = away(160, 160, 60) < 1
    arc[:, 130:] = False
    assert not seen(image, arc).any()


def test_circle__through_three_points_is_exact() -> None:
    circle = np.array([[31.0, -8.0, 25.0]])
    angles = np.array([0.3, 2.0, 4.4])
    points = circle[:, :2] + circle[0, 2] * np.stack([np.cos(angles), np.sin(angles)], 1)
    a, b, c = (point[None] for point in points)
    np.testing.assert_allclose(round_rims._through(a, b, c), circle)
    assert len(round_rims._through(a, a, c)) == 0  # on a line
    assert len(round_rims._through(a * 0.1, b * 0.1, c * 0.1)) == 0  # of 2.5 px


def test_nothing__proposes_nothing() -> None:
    assert not whole_rims(np.zeros((5, 7), np.uint8), np.zeros((5, 7), bool)).any()
