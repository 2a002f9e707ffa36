"""Red cells are told from nuclei by hue, flatness, pallor and size."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.nuclei import outline, red_cells

MPP = 0.5
SIDE = 80


def disk(density: tuple[float, float, float], radius_um: float, pale: float = 0.0) -> np.ndarray:
    """Draw the density of a disk in the middle, less by the share `pale` at its centre."""
    yy, xx = np.mgrid[:SIDE, :SIDE] + 0.5
    gap = np.hypot(xx - SIDE / 2, yy - SIDE / 2) * MPP / radius_um
    height = np.clip((1 - gap) * 8 + 0.5, 0, 1) * (1 - pale * np.clip(1 - gap / 0.8, 0, 1))
    return (height[..., None] * np.array(density)).astype(np.float32)


def traced(density_HWC: np.ndarray, radius_um: float) -> outline.Outlines:
    seed = np.array([[SIDE / 2, SIDE / 2]], np.float32)
    radius = np.array([radius_um / MPP], np.float32)
    return outline.trace(density_HWC.mean(-1), seed, radius)


def named(density_HWC: np.ndarray, radius_um: float) -> dict[str, float]:
    values = red_cells.features(density_HWC, traced(density_HWC, radius_um), MPP)
    return dict(zip(red_cells.FEATURES, values[0].tolist(), strict=True))


def test_features__of_a_flat_disk():
    of = named(disk((0.2, 0.5, 0.4), 5.0), 5.0)
    assert of["red"] == pytest.approx(0.4, abs=0.01)
    assert of["green"] == pytest.approx(1, abs=0.01)
    assert of["blue"] == pytest.approx(0.8, abs=0.01)
    assert of["density"] == pytest.approx(np.log(0.5), abs=0.05)
    assert of["pallor"] == pytest.approx(0, abs=0.01)
    assert of["size"] == pytest.approx(np.log(5 / 3.5), abs=0.05)
    assert of["texture"] == pytest.approx(np.log(0.02))  # none at all
    assert of["red_blue"] == pytest.approx(0.32, abs=0.02)
    assert of["red_density"] == pytest.approx(0.4 * np.log(0.5), abs=0.02)


def test_features__pallor_is_what_the_centre_lacks():
    # Paler by half in the middle, evenly up to 0.8 of the radius: by 3/8 at 0.2, by none at 0.8.
    of = named(disk((0.5, 0.5, 0.5), 5.0, pale=0.5), 5.0)
    mean = 1 - (0.375 + 0.1875) / 3
    assert of["pallor"] == pytest.approx(0.375 / mean, abs=0.05)
    assert of["texture"] == pytest.approx(np.log(0.02))  # a paler middle is none


def test_features__texture_is_the_deviation_along_circles():
    # One half holds 0.6, the other 0.4: 0.1 about the mean on every circle.
    halves = disk((0.5, 0.5, 0.5), 5.0)
    halves[:, : SIDE // 2] *= 1.2
    halves[:, SIDE // 2 :] *= 0.8
    assert named(halves, 5.0)["texture"] == pytest.approx(np.log(0.2), abs=0.05)


def test_share__of_nothing_is_nothing():
    none = np.empty((0, len(red_cells.FEATURES)), np.float32)
    assert red_cells.nucleus_share(none).shape == (0,)
    assert len(red_cells.WEIGHTS) == len(red_cells.FEATURES)


@pytest.mark.parametrize(
    ("density", "radius_um", "pale"),
    [
        ((0.10, 0.50, 0.45), 3.75, 0.0),  # (225, 150, 160) on white
        ((0.22, 0.36, 0.28), 3.75, 0.0),  # greyish, as some white balances have them
        ((0.15, 0.55, 0.30), 3.50, 0.4),  # eosin, with central pallor
    ],
)
def test_share__of_red_cells_is_little(density, radius_um, pale):
    drawn = disk(density, radius_um, pale)
    values = red_cells.features(drawn, traced(drawn, radius_um), MPP)
    assert red_cells.nucleus_share(values)[0] < 0.1


@pytest.mark.parametrize(
    ("density", "radius_um"),
    [
        ((0.60, 0.75, 0.40), 3.5),  # Papanicolaou
        ((0.45, 0.50, 0.25), 7.0),
        ((0.60, 1.10, 0.40), 5.0),  # azure
        ((0.80, 0.95, 0.35), 3.0),  # haematoxylin
    ],
)
def test_share__of_nuclei_is_several_times_that_even_with_little_texture(density, radius_um):
    drawn = disk(density, radius_um)
    rng = np.random.default_rng(0)
    chromatin = drawn * rng.normal(1, 0.1, (SIDE, SIDE, 1)).astype(np.float32)
    values = red_cells.features(chromatin, traced(drawn, radius_um), MPP)
    assert red_cells.nucleus_share(values)[0] > 0.4


@pytest.mark.parametrize(
    ("density", "share"),
    [((0.5, 0.3, 0.1), 0.45), ((0.5, 0.45, 0.1), 0.3), ((0.5, 0.5, 0.2), 0), ((0.2, 0.5, 0.4), 0)],
)
def test_teal_share__rises_with_what_red_absorbs_more_than_green(density, share):
    # Relative to the largest, red - green is 0.4, 0.1, 0 and -0.6; 0.15 is full.
    drawn = disk(density, 5.0)
    features_MF = red_cells.features(drawn, traced(drawn, 5.0), MPP)
    np.testing.assert_allclose(red_cells.teal_share(features_MF), [share], atol=0.02)
