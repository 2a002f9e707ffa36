"""Rings are valid where shapely says so, and are mended where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.nuclei import outline, polygons, rings
from cytofm_cli.nuclei.detectors.classical import ClassicalDetector


def assert_valid(ring: np.ndarray) -> None:
    shape = shapely.Polygon(ring)
    assert shape.is_valid, shapely.is_valid_reason(shape)
    assert shape.exterior.is_ccw
    assert len(np.unique(ring, axis=0)) == len(ring) >= 3


def any_ring(seed: int) -> np.ndarray:
    """Noise, corners on a coarse grid, spiky stars, or a tangle far from the origin."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 40))
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    star = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.05, 20, (count, 1))
    return [
        rng.uniform(0, 30, (count, 2)),
        rng.integers(0, 6, (count, 2)).astype(float),
        star + 1e5,
        np.cumsum(rng.normal(0, 0.02, (count, 2)), 0) + 2e5,
    ][seed % 4]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 100_000))
def test_valid_ring__is_valid_whatever_comes_in(seed):
    ring = any_ring(seed)
    mended = rings.valid_ring(ring)
    if len(mended):
        assert_valid(mended)
        np.testing.assert_allclose(mended * 100, np.rint(mended * 100), atol=1e-6)
        assert shapely.Polygon(mended).area <= shapely.MultiPoint(ring).convex_hull.area + 0.5


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 100_000))
def test_is_valid__agrees_with_shapely_and_the_quick_look_never_errs(seed):
    # On whole numbers shapely's own arithmetic is exact too.
    ring = np.rint(any_ring(seed) * 100)
    distinct = not np.any(np.all(ring == np.roll(ring, 1, axis=0), axis=1))
    shape = shapely.Polygon(ring)
    assert rings.is_valid(ring / 100) == (shape.is_valid and distinct and shape.area > 0)
    if rings.plainly_valid(ring / 100, np.array([0, len(ring)]))[0]:
        assert_valid(ring)


@pytest.mark.parametrize(
    ("ring", "expected_area"),
    [
        ([(0, 0), (4, 0), (4, 4), (0, 4)], 16),  # valid
        ([(0, 4), (4, 4), (4, 0), (0, 0)], 16),  # clockwise
        ([(0, 0), (0, 0), (4, 0), (4, 4), (4, 4), (0, 4), (0, 0)], 16),  # repeated, closed
        ([(0, 0), (6, 0), (2, 4), (6, 4)], 7.2),  # a bow tie of 7.2 and 3.2
        ([(0, 0), (4, 0), (4, 4), (4, 9), (4, 4), (0, 4)], 16),  # a spike
        ([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)], 4),  # touches an edge of its own
        ([(0, 0), (2, 2), (4, 4)], 0),  # a line
        ([(1, 1), (1.001, 1), (1, 1.001)], 0),  # a point, at 1/100 px
    ],
)
def test_valid_ring__by_hand(ring, expected_area):
    mended = rings.valid_ring(np.array(ring, float))
    assert (polygons.area(mended) if len(mended) else 0) == pytest.approx(expected_area)
    if len(mended):
        assert_valid(mended)


def test_clip_to_box__equals_shapely():
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        radius = 6 + 3 * np.sin(angle * rng.integers(1, 5) + rng.uniform(0, 6))
        centre = rng.uniform(0.5, 19.5, 2)
        ring = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        clipped = rings.clip_to_box(ring, 20, 20)
        expected = shapely.Polygon(ring).intersection(shapely.box(0, 0, 20, 20))
        assert polygons.area(clipped) == pytest.approx(expected.area)
        assert clipped.min() >= 0 and clipped.max() <= 20
        assert_valid(rings.valid_ring(clipped))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000))
def test_label_table__polygons_of_any_labels_are_valid(seed):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random((60, 70)), rng.uniform(0.4, 3))
    labels, _ = ndimage.label(noise > np.quantile(noise, rng.uniform(0.3, 0.9)))
    table = polygons.label_table(labels, 0.25)
    for row in range(len(table)):
        assert_valid(table.polygon(row).astype(float))


def border_field() -> np.ndarray:
    """Dark disks and ellipses, many of them cut by the border of the image."""
    rng = np.random.default_rng(0)
    image = np.full((300, 400, 3), 235.0)
    yy, xx = np.mgrid[:300, :400] + 0.5
    places = [(x, y) for x in range(0, 401, 57) for y in (2, 75, 150, 225, 297)]
    for x, y in places:
        a, b, turn = rng.uniform(9, 22), rng.uniform(9, 16), rng.uniform(0, np.pi)
        u = (xx - x) * np.cos(turn) + (yy - y) * np.sin(turn)
        v = (yy - y) * np.cos(turn) - (xx - x) * np.sin(turn)
        soft = 1 / (1 + np.exp(np.clip((np.hypot(u / a, v / b) - 1) * 12, -50, 50)))
        image += soft[..., None] * (np.array([80, 60, 120]) - image)
    return (image + rng.normal(0, 1, image.shape)).clip(0, 255).astype(np.uint8)


def test_without_repeats__points_a_hundredth_apart_are_one():
    ring = np.array([[0, 0], [10, 0], [10, 0.001], [10, 8], [0.0, 1e-15]])
    np.testing.assert_array_equal(rings.without_repeats(ring), [[0, 0], [10, 0.001], [10, 8]])
    dot = np.full((3, 2), 1.0)
    np.testing.assert_array_equal(rings.without_repeats(dot), dot)


def test_classical__nuclei_cut_by_the_border_have_valid_polygons_and_the_area_inside():
    table = ClassicalDetector().detect(border_field(), 0.25)
    cut = 0
    for row in range(len(table)):
        ring = table.polygon(row).astype(float)
        assert_valid(rings.valid_ring(ring))
        assert rings.is_valid(ring)
        assert ring.min() >= 0 and ring[:, 0].max() <= 400 and ring[:, 1].max() <= 300
        cut += bool((ring == 0).any() or (ring == (400, 300)).any())
        assert polygons.area(ring) / 16 == pytest.approx(table.area_um2[row], rel=1e-3)
        assert shapely.Polygon(ring).covers(shapely.Point(table.xy_px0[row]))
    assert cut >= 10


def test_in_image__half_a_disk_on_the_border_is_half_the_area():
    disk = outline.Outlines(
        seed_M2=np.array([[0, 20]], np.float32),
        radius_MA=np.full((1, outline.N_ANGLES), 8, np.float32),
        edge_MA=np.ones((1, outline.N_ANGLES), np.float32),
        inside_M=np.ones(1, np.float32),
        outside_M=np.zeros(1, np.float32),
    )
    (ring,), area, centre = outline.in_image(disk, 2.0, 100, 100)
    assert area[0] == pytest.approx(disk.area_px()[0] * 4 / 2, rel=1e-5)
    # The centroid of half a disk lies 4 r / 3π from the centre.
    np.testing.assert_allclose(centre[0], [4 * 16 / (3 * np.pi), 40], atol=0.1)
    assert ring[:, 0].min() == 0
