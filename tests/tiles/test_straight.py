"""Long straight lines: found at any angle, pale and broken; nothing that chance or cells make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cytofm_cli.tiles import straight
from cytofm_cli.tiles.straight import straight_lines

SIDE = 384


def glass(seed: int = 0, noise: float = 2) -> NDArray[np.float64]:
    return 235 + np.random.default_rng(seed).normal(0, noise, (SIDE, SIDE))


def away(angle: float, offset: float = 0) -> NDArray[np.float64]:
    """Return the distance of each pixel from a line through the middle, moved by `offset`."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    turned = np.deg2rad(angle)
    return np.abs(columns * np.sin(turned) - rows * np.cos(turned) - offset)


def specks(image: NDArray[np.float64], n: int, radius: float, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for x, y, size in rng.uniform((0, 0, 1), (SIDE, SIDE, radius), (n, 3)):
        image[np.hypot(columns - x, rows - y) < size] *= rng.uniform(0.3, 0.8)


def seen(image: NDArray[np.float64]) -> NDArray[np.bool_]:
    return straight_lines(np.clip(image, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("angle", [0, 1, 17, 44, 45, 46, 89, 90, 91, 135, 163, 179])
def test_line__is_found_at_any_angle(angle: float) -> None:
    image = glass()
    line = away(angle, 3.3) < 1
    image[line] -= 20
    marked = seen(image)
    assert (marked & line).sum() > 0.85 * line.sum()
    assert (marked & (away(angle, 3.3) > 6)).sum() < 0.02 * line.sum()


def test_line__is_found_between_cells_and_under_dust() -> None:
    image = glass(noise=4)
    line = away(88) < 1.2
    image[line] -= 25
    specks(image, 600, 5)
    marked = seen(image)
    assert (marked & line).sum() > 0.7 * line.sum()
    assert (marked & (away(88) > 12)).sum() == 0


@pytest.mark.parametrize("half_width", [1, 4])
def test_line__may_be_as_wide_as_32_um(half_width: float) -> None:
    image = glass()
    line = away(30) < half_width
    image[line] -= 40
    middle = away(30) < 1
    assert (seen(image) & middle).sum() > 0.9 * middle.sum()
    assert not seen(image)[away(30) > half_width + 8].any()


def test_line__that_is_short_is_none() -> None:
    image = glass()
    image[100:160, 200:202] -= 60  # 240 µm
    assert not seen(image).any()


def test_step_and_gradient__are_no_lines() -> None:
    image = glass()
    image[:, 200:] -= 60  # the shadow beside a coverslip, a tinted field
    image -= np.linspace(0, 50, SIDE)
    assert not seen(image).any()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3000), st.floats(1, 12), st.floats(0, 12))
def test_specks_and_noise__are_no_lines(seed: int, n: int, radius: float, noise: float) -> None:
    image = glass(seed, noise)
    specks(image, n // 4, radius, seed)
    assert not seen(image).any()


def test_small_picture__has_no_lines() -> None:
    assert not straight_lines(np.zeros((127, 900), np.uint8)).any()
    assert straight_lines(np.zeros((1, 1), np.uint8)).shape == (1, 1)


def test_picture_of_any_size__is_looked_at_to_its_last_row() -> None:
    image = glass()[:301, :203]
    image[:, 100:102] -= 30
    marked = seen(image)
    assert marked[:, 100:102].mean() > 0.9
    assert marked[-1, 100] and marked[0, 100]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_sums__are_those_of_one_pixel_a_row_on_a_way_that_never_turns_back(seed: int) -> None:
    """Brady's recursion, beside the ways written out."""
    rng = np.random.default_rng(seed)
    strips = rng.random((2, 8, 20)) < 0.5

    def way(n: int, d: int) -> list[int]:  # columns, from the top
        if n == 1:
            return [0]
        upper = way(n // 2, d // 2)
        return upper + [d // 2 + d % 2 + x for x in way(n // 2, d // 2)]

    sums = straight._sums(strips)
    for d in range(8):
        columns = way(8, d)
        assert columns[0] == 0 and columns[-1] == d
        assert set(np.diff(columns)) <= {0, 1}
        for x in range(20 - d):
            expected = strips[:, np.arange(8), x + np.array(columns)].sum(1)
            np.testing.assert_array_equal(sums[:, d, x], expected)


def test_least_count__asks_for_more_among_more_ridges() -> None:
    counts = [straight._least_count(p, 10**7) for p in (0.0, 0.1, 0.3, 0.4, 0.6)]
    assert counts[0] == 45 and counts == sorted(counts) and counts[-1] == 255
    # By hand, p = 0.3: 54 of 64 have a divergence of 0.70 - 0.234 = 0.64 nats; 10**9 chances
    # over 32 places need ln(10**9) / 32 = 0.648.
    assert counts[2] == 55
