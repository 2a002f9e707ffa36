"""Measurements of drawn nuclei whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.nuclei.base import make_table
from cytofm_cli.nuclei.features import measure, shape_columns
from cytofm_cli.nuclei.polygons import area
from cytofm_cli.units import Box

MPP = 0.25


def ellipse(centre, a, b, angle=0.4, count=240):
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    x, y = a * np.cos(t), b * np.sin(t)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.stack([x, y], 1) @ turn + centre


def table_of(*rings):
    return make_table(
        np.array([ring.mean(0) for ring in rings]),
        np.array([area(ring) * MPP**2 for ring in rings]),
        polygons=list(rings),
    )


def test_shape__ellipse_and_circle():
    columns = shape_columns(table_of(ellipse((5000, 700), 20, 12), ellipse((90, 90), 16, 16)), MPP)
    np.testing.assert_allclose(columns["major_axis_um"], [10, 8], rtol=2e-3)
    np.testing.assert_allclose(columns["minor_axis_um"], [6, 8], rtol=2e-3)
    np.testing.assert_allclose(columns["eccentricity"], [0.8, 0], atol=0.03)
    np.testing.assert_allclose(columns["perimeter_um"][1], 2 * np.pi * 4, rtol=1e-3)
    np.testing.assert_allclose(columns["circularity"][1], 1, rtol=1e-3)


def test_shape__bare_points_have_none():
    table = make_table(np.zeros((1, 2)), np.array([np.nan]))
    assert all(np.isnan(column).all() for column in shape_columns(table, MPP).values())


def test_measure__density_nc_ratio_texture():
    yy, xx = np.mgrid[:200, :200] + 0.5
    image = np.full((200, 200, 3), 255, np.uint8)
    image[np.hypot(xx - 100, yy - 100) < 40] = 180  # cytoplasm of 10 µm radius
    nucleus = np.hypot(xx - 100, yy - 100) < 20
    image[nucleus] = (63, 31, 127)
    ring = ellipse((1100, 2100), 20, 20)
    measured = measure(table_of(ring), image, Box(1000, 2000, 200, 200), MPP)
    density = -np.log10(np.array([64, 32, 128]) / 256)
    np.testing.assert_allclose(measured.optical_density, density.mean(), rtol=0.02)
    np.testing.assert_allclose(measured.hue_blue, density[0] - density[2], rtol=0.02)
    np.testing.assert_allclose(measured.nc_ratio, 0.25, atol=0.02)
    assert measured.density_std[0] < 0.06
    rough = image.copy()
    rough[nucleus & (np.indices(nucleus.shape).sum(0) % 4 < 2)] = (120, 90, 180)
    coarse = measure(table_of(ring), rough, Box(1000, 2000, 200, 200), MPP)
    assert coarse.texture[0] > 2 * measured.texture[0]
    assert coarse.density_std[0] > 0.1


@pytest.mark.parametrize("centre", [(-500, 90), (90, 5000), (-5, 100)])
def test_measure__outside_the_pixels_is_nan_or_partial(centre):
    image = np.full((200, 200, 3), 200, np.uint8)
    measured = measure(table_of(ellipse(centre, 12, 12)), image, Box(0, 0, 200, 200), MPP)
    assert np.isnan(measured.optical_density[0]) == (centre != (-5, 100))
    assert np.isfinite(measured.perimeter_um[0])
