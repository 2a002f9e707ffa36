"""Blobs are found at their place, size and contrast, on whatever resolution they are looked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from cytofm_cli.nuclei.blobs import blob_answer, find_blobs, halved


def disk(x: float, y: float, radius: float, side: int = 160) -> np.ndarray:
    yy, xx = np.mgrid[:side, :side] + 0.5
    return np.clip(radius - np.hypot(xx - x, yy - y) + 0.5, 0, 1).astype(np.float32)


@pytest.mark.parametrize("radius", [3.0, 5.0, 11.5])
def test_answer__is_the_scaled_laplacian_of_a_gaussian(radius):
    image = np.random.default_rng(0).random((90, 70)).astype(np.float32)
    sigma = radius / np.sqrt(2)
    x = np.arange(-round(3 * sigma), round(3 * sigma) + 1)
    gauss = np.exp(-(x**2) / (2 * (sigma**2 - 1 / 6)))
    smooth = np.pad(image.astype(np.float64), 1, mode="edge")
    for axis in (0, 1):
        smooth = correlate1d(smooth, gauss / gauss.sum(), axis=axis, mode="nearest")
    bent = sum(correlate1d(smooth, [1, -2, 1], axis=axis, mode="nearest") for axis in (0, 1))
    expected = -(sigma**2) * bent[1:-1, 1:-1]
    np.testing.assert_allclose(blob_answer(image, radius), expected, atol=2e-4)


@pytest.mark.parametrize("radius", [5.0, 7.0, 10.0, 14.0, 20.0, 24.0])
@pytest.mark.parametrize("at", [(80.0, 80.0), (71.3, 90.8)])
def test_disk__is_a_blob_at_its_centre_with_its_radius_on_every_level(radius, at):
    xy, radii, answer = find_blobs(0.8 * disk(*at, radius), np.array([5, 7, 10, 14, 20, 24.0]), 0.1)
    best = answer.argmax()
    assert radii[best] == radius
    np.testing.assert_allclose(xy[best], at, atol=0.15)
    # A disk of contrast 1 answers 2 / e at its own radius.
    np.testing.assert_allclose(answer[best], 0.8 * 2 / np.e, rtol=0.05)


def test_halved__counts_an_odd_last_row_and_column_twice():
    image = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_array_equal(halved(image), [[2, 3.5], [6.5, 8]])


def test_places__do_not_depend_on_the_window():
    image = np.random.default_rng(1).random((192, 192)).astype(np.float32)
    radii = np.array([5, 10, 20.0])
    whole, _, _ = find_blobs(image, radii, 0.02)
    part, _, _ = find_blobs(image[8:, 16:], radii, 0.02)
    far = ((part > 64) & (part < np.array([176, 184]) - 64)).all(1)
    gap = np.linalg.norm(part[far, None] + np.array([16, 8]) - whole, axis=2).min(1)
    assert far.sum() > 3 and gap.max() < 1e-3


def test_answer__at_the_border_is_none_where_a_disk_goes_on():
    # Past the border the last row goes on: a bar that ends there answers like an endless one.
    bar = np.zeros((80, 60), np.float32)
    bar[:, 25:35] = 1
    answer = blob_answer(bar, 7.0)
    np.testing.assert_allclose(answer[0], answer[40], atol=1e-5)
