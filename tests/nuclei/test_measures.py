"""What is measured of a nucleus, against a drawing of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.nuclei import outline
from cytofm_cli.nuclei.measures import measure

LN10 = np.log(10)


def disk_outline(radius: float, x: float = 50, y: float = 50) -> outline.Outlines:
    return outline.Outlines(
        seed_M2=np.array([[x, y]], np.float32),
        radius_MA=np.full((1, outline.N_ANGLES), radius, np.float32),
        edge_MA=np.ones((1, outline.N_ANGLES), np.float32),
        inside_M=np.ones(1, np.float32),
        outside_M=np.zeros(1, np.float32),
    )


def drawing(radius: float, blur: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from (50, 50), and 1 inside falling to 0 over `blur` pixels."""
    yy, xx = np.mgrid[:100, :100] + 0.5
    gap = np.hypot(xx - 50, yy - 50)
    return gap, np.clip((radius - gap) / max(blur, 1e-3) + 0.5, 0, 1)


def test_measure__of_an_even_disk():
    _, inside = drawing(12)
    density = (inside[..., None] * [0.9, 0.6, 0.3] + 0.1).astype(np.float32)
    # The ring starts 1.5 px outside; the outermost samples inside lie at 11.2 px.
    got = {name: float(value[0]) for name, value in measure(density, disk_outline(12), 0.5).items()}
    sides = outline.N_ANGLES
    assert got["circularity"] == pytest.approx(np.pi / sides / np.tan(np.pi / sides), rel=1e-5)
    assert got["optical_density"] == pytest.approx(0.7 / LN10, rel=1e-2)
    assert got["ring_density"] == pytest.approx(0.1 / LN10, rel=1e-5)
    assert got["hue_blue"] == pytest.approx(0.6 / LN10, rel=1e-2)
    assert got["density_std"] < 0.01
    assert got["sharpness"] == pytest.approx(1, abs=0.05)


def test_density_std__of_a_core_of_half_the_area():
    gap, inside = drawing(16)
    core = (gap < 16 / np.sqrt(2)) * 0.4
    density = np.repeat((inside * 0.4 + core)[..., None], 3, axis=2).astype(np.float32)
    got = measure(density, disk_outline(15.9), 0.5)
    # Half at 0.8, half at 0.4: mean 0.6, standard deviation 0.2.
    assert got["optical_density"][0] == pytest.approx(0.6 / LN10, rel=0.03)
    assert got["density_std"][0] == pytest.approx(0.2 / LN10, rel=0.05)


def test_sharpness__is_the_share_lost_within_a_micrometre():
    # Over 4 px a straight slope loses half of its contrast within 2 px, a micrometre.
    density = np.repeat(drawing(12, blur=4)[1][..., None], 3, axis=2).astype(np.float32)
    got = measure(density, disk_outline(12), 0.5)
    ring = got["ring_density"][0] * LN10
    inside = got["optical_density"][0] * LN10
    assert got["sharpness"][0] == pytest.approx(0.5 / (inside - ring), abs=0.02)
    flat = measure(np.full((100, 100, 3), 0.5, np.float32), disk_outline(12), 0.5)
    assert np.isnan(flat["sharpness"][0])


def test_measure__of_nothing_is_empty():
    none = disk_outline(5).take(np.zeros(1, bool))
    got = measure(np.zeros((20, 20, 3), np.float32), none, 0.5)
    assert {column.shape for column in got.values()} == {(0,)}
