"""Which part of a patch is nucleus, cytoplasm or neither."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.maps.compartments import Ground, cover, parts_of, rings_near
from cytofm_cli.nuclei.base import make_table


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ground(*rings: np.ndarray, foreground: np.ndarray | None = None, size: int = 64) -> Ground:
    centres = np.array([ring.mean(0) for ring in rings])
    table = make_table(centres, np.full(len(rings), 10.0), polygons=list(rings))
    mask = np.ones((1, 1), bool) if foreground is None else foreground
    return Ground(table, mask, (size, size))


def test_cover__by_hand() -> None:
    # A nucleus from 8 to 24 of a square of 32 with 2 x 2 patches covers a quarter of each; the left
    # half of the slide is foreground.
    left = np.array([[True, False]])
    slide = ground(box(8, 8, 24, 24), foreground=left, size=32)
    shares = cover(slide, np.zeros(2), 32.0, (2, 2))
    np.testing.assert_allclose(shares[0], [0.25, 0.75, 0.0])
    np.testing.assert_allclose(shares[1], [0.25, 0.0, 0.75])
    np.testing.assert_allclose(shares[2:], shares[:2])


def test_cover__of_partial_patches_is_their_area() -> None:
    # Patches of 16 px: the nucleus covers 3/16 of the first and 1/16 of the second's width.
    slide = ground(box(13, 0, 17, 32), size=32)
    shares = cover(slide, np.zeros(2), 32.0, (2, 2))
    np.testing.assert_allclose(shares[:, 0], [3 / 16, 1 / 16, 3 / 16, 1 / 16])


def test_cover__of_a_shifted_square_and_other_grid() -> None:
    slide = ground(box(20, 20, 30, 40), box(50, 50, 60, 60))
    shares = cover(slide, np.array([10.0, 20.0]), 40.0, (2, 4))  # patches of 10 x 20 px
    expected = np.zeros((2, 4))
    expected[0, 1] = 1.0
    expected[1, 3] = 0.0  # the second nucleus begins where the square ends
    np.testing.assert_allclose(shares[:, 0].reshape(2, 4), expected)


def test_cover__beyond_the_slide_is_neither() -> None:
    shares = cover(ground(box(2, 2, 6, 6)), np.array([-32.0, 0.0]), 64.0, (1, 2))
    np.testing.assert_allclose(shares[0], [0, 0, 1])
    np.testing.assert_allclose(shares[1], [16 / 2048, 1 - 16 / 2048, 0])


@given(
    x=st.floats(0, 40), y=st.floats(0, 40), w=st.floats(2, 24), h=st.floats(2, 24),
    side=st.floats(40, 64),
)  # fmt: skip
def test_cover__sums_to_one_and_to_the_area(
    x: float, y: float, w: float, h: float, side: float
) -> None:
    shares = cover(ground(box(x, y, x + w, y + h)), np.zeros(2), side, (4, 4))
    np.testing.assert_allclose(shares.sum(1), 1)
    inside = max(0.0, min(x + w, side) - x) * max(0.0, min(y + h, side) - y)
    step = side / 64  # samples are so far apart
    slack = (2 * step * (w + h) + 4 * step**2) / side**2
    assert shares[:, 0].mean() == pytest.approx(inside / side**2, abs=slack)


def test_rings__reach_in_from_outside() -> None:
    slide = ground(box(0, 0, 20, 20), box(40, 40, 44, 44))
    near = rings_near(slide.nuclei, np.array([18.0, 18.0]), 8.0)
    assert any(np.allclose(ring, box(0, 0, 20, 20)) for ring in near)
    parts = parts_of(slide, np.array([18.0, 18.0]), 8.0, (4, 4))
    assert (parts[0] == [0, 1, 1, 1]).all() and (parts[1:] == 1).all()
