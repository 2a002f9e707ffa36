"""Statistics of pixels inside a network: worked by hand, and the same however a cell is turned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cytofm_cli.encoders.pixel_statistics import (
    N_STATISTICS,
    RINGS,
    Joined,
    measure,
    require_side,
    rings,
)
from cytofm_cli.errors import UsageError

N_RINGS, N_PLANES = len(RINGS), 7
MEANS = slice(0, N_PLANES * N_RINGS)
DEVIATIONS = slice(MEANS.stop, 2 * MEANS.stop)
LEANS = slice(2 * MEANS.stop, 3 * MEANS.stop)
DARK = 3  # of the planes


def _density(level: float) -> float:
    return -math.log10((level * 255 + 1) / 256)


def _cells(n: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_measure__of_one_colour_is_its_density_without_texture() -> None:
    levels = (0.2, 0.5, 0.9)
    image = torch.tensor(levels).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    said = measure(image)[0].double()
    red, green, blue = map(_density, levels)
    planes = [red, green, blue, blue, red - blue, red - green, blue - (red + green) / 2]
    assert said.shape == (N_STATISTICS,)
    expected = np.repeat(planes, N_RINGS)
    np.testing.assert_allclose(said[MEANS], expected, atol=1e-6)
    np.testing.assert_allclose(said[DEVIATIONS], 1e-3, atol=1e-5)
    np.testing.assert_allclose(said[LEANS], 0, atol=1e-4)
    # The green texture at full size: slopes are the least one, halved; spots are none.
    at = LEANS.stop
    slopes = np.log10(1e-3 / 2 + 1e-3)
    np.testing.assert_allclose(said[at : at + N_RINGS], slopes, atol=1e-6)
    np.testing.assert_allclose(said[at + N_RINGS : at + 3 * N_RINGS], -3, atol=1e-4)


@pytest.mark.parametrize("turn", range(1, 8))
def test_measure__is_the_same_of_a_turned_or_mirrored_cell(turn: int) -> None:
    cells = _cells()
    turned = torch.rot90(cells.flip(-1) if turn & 4 else cells, turn & 3, (-2, -1))
    np.testing.assert_allclose(measure(turned), measure(cells), atol=2e-5)


def test_measure__of_a_cell_does_not_depend_on_those_beside_it() -> None:
    cells = _cells(5)
    np.testing.assert_allclose(measure(cells[2:3])[0], measure(cells)[2], atol=1e-5)


def test_measure__moments_are_those_of_float64() -> None:
    cells = _cells(1, 16)
    density = -np.log10((cells[0].double().numpy() * 255 + 1) / 256)
    halved = density.reshape(3, 8, 2, 8, 2).mean((2, 4))
    dark = halved.min(0).ravel()
    weight = rings(8)[1].double().numpy()
    mean = dark @ weight
    variance, third = ((dark - mean) ** 2) @ weight, ((dark - mean) ** 3) @ weight
    at = DARK * N_RINGS + 1
    said = measure(cells)[0]
    np.testing.assert_allclose(said[MEANS][at], mean, atol=1e-5)
    np.testing.assert_allclose(said[DEVIATIONS][at], np.sqrt(variance + 1e-6), atol=1e-5)
    np.testing.assert_allclose(said[LEANS][at], np.cbrt(third), atol=1e-4)


def test_measure__a_spot_in_the_middle_is_seen_by_the_middle_ring_alone() -> None:
    pale = torch.full((1, 3, 32, 32), 0.8)
    spotted = pale.clone()
    spotted[..., 14:18, 14:18] = 0.1
    change = (measure(spotted) - measure(pale))[0][MEANS].view(N_PLANES, N_RINGS)[DARK]
    whole, middle, around, rest = change.tolist()
    rise = _density(0.1) - _density(0.8)
    assert whole == pytest.approx(rise * 16 / 32**2, rel=0.05)
    assert middle > 10 * whole
    assert abs(around) < 1e-2 * middle
    assert abs(rest) < 1e-6


def test_rings__sum_to_one_and_share_the_image_out() -> None:
    ring_RN = rings(40)
    np.testing.assert_allclose(ring_RN.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(ring_RN[0], 1 / 1600, atol=1e-6)
    centre = 20 * 40 + 20
    assert ring_RN[1, centre] == ring_RN[1].max()
    assert ring_RN[2:, centre].max() < 1e-3 * ring_RN[1, centre]


@pytest.mark.parametrize("side", [8, 36, 60])
def test_measure__refuses_sides_that_cannot_be_halved_three_times(side: int) -> None:
    with pytest.raises(UsageError, match=f"not of {side} px"):
        measure(torch.rand(1, 3, side, side))
    require_side(64)


def test_joined__as_built_says_the_vector_and_the_statistics_as_they_are() -> None:
    x, vector = _cells(3), torch.arange(6.0).view(3, 2)
    layer = Joined(2)
    layer.normalised_with((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    normal = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5
    said = layer(vector, normal)
    assert torch.equal(said[:, :2], vector)
    np.testing.assert_allclose(said[:, 2:], measure(x), atol=1e-3)


def test_balance__centres_and_lets_pixels_weigh_twice_as_much() -> None:
    layer, x = Joined(2), _cells(8)
    vector = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)) * 40 + 7
    before = layer(vector, x)
    layer.balance(before)
    after = layer(vector, x).double()
    np.testing.assert_allclose(after.mean(0), 0, atol=1e-5)
    for part, total in ((after[:, :2], 0.25), (after[:, 2:], 1)):
        assert part.var(0, correction=0).sum() == pytest.approx(total, abs=1e-4)
    ratio = before.var(0)[0] / before.var(0)[1]  # within a part nothing changes but its scale
    assert after.var(0)[0] / after.var(0)[1] == pytest.approx(float(ratio), rel=1e-4)
