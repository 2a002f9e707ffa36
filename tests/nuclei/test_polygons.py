"""Outlines of labels, polygon arithmetic, resampling, polar outlines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cytofm_cli.nuclei import outline, polygons
from cytofm_cli.nuclei.resample import resample_area


def disk(radius: float, side: int = 64, centre=(32.0, 32.0)) -> np.ndarray:
    yy, xx = np.mgrid[:side, :side] + 0.5
    return np.hypot(xx - centre[0], yy - centre[1]) <= radius


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_outer_ring__encloses_the_largest_piece_and_its_holes(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((12, 15)) < rng.uniform(0.2, 0.9)
    mask[5, 5] = True
    pieces, count = ndimage.label(mask)
    # A hole that touches the outside by a corner is open: pieces are 4-connected.
    filled = [
        ndimage.binary_fill_holes(pieces == i, np.ones((3, 3))).sum() for i in range(1, count + 1)
    ]
    assert polygons.area(polygons.outer_ring(mask)) == max(filled)


def test_outer_ring__l_shape_by_hand():
    ring = polygons.outer_ring(np.array([[1, 1], [1, 0]], bool))
    expected = [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
    np.testing.assert_array_equal(ring, expected)


def test_outer_ring__corner_contact_does_not_join():
    assert polygons.area(polygons.outer_ring(np.eye(3, dtype=bool))) == 1


@pytest.mark.parametrize("radius", [2, 5, 9, 15, 25])
def test_simplify__keeps_area_and_centroid_of_disks(radius):
    mask = disk(radius)
    ring = polygons.simplify(polygons.outer_ring(mask))
    assert len(ring) <= polygons.MAX_POINTS
    assert abs(polygons.area(ring) / mask.sum() - 1) < 0.05
    np.testing.assert_allclose(polygons.centroid(ring), [32, 32], atol=0.15)


def test_label_table__columns_by_hand():
    labels = np.zeros((6, 8), np.uint16)
    labels[1:3, 1:5] = 7
    labels[4, 6] = 3000
    table = polygons.label_table(
        labels, 0.5, scale=2.0, probability=np.array([0.25, 0.75]), class_id=np.array([1, 0]),
        classes=("a", "b"),
    )  # fmt: skip
    np.testing.assert_array_equal(table.xy_px0, [[6, 4], [13, 9]])
    np.testing.assert_array_equal(table.area_um2, [2.0, 0.25])
    np.testing.assert_array_equal(table.probability, [0.25, 0.75])
    np.testing.assert_array_equal(table.class_id, [1, 0])
    np.testing.assert_array_equal(table.polygon(1), [[12, 8], [14, 8], [14, 10], [12, 10]])


def test_label_table__nothing_and_everything():
    assert len(polygons.label_table(np.zeros((3, 4), np.int32), 1.0)) == 0
    whole = polygons.label_table(np.ones((3, 4), np.int32), 1.0)
    np.testing.assert_array_equal(whole.xy_px0, [[2, 1.5]])
    assert len(polygons.label_table(np.ones((3, 4), np.int32), 1.0, min_area_px=13)) == 0


def test_polygon_arithmetic__far_from_the_origin():
    ring = np.array([[0, 0], [4, 0], [4, 2], [0, 2.0]]) + 1e6
    assert polygons.area(ring) == 8
    np.testing.assert_allclose(polygons.centroid(ring), [1e6 + 2, 1e6 + 1])
    assert polygons.contains(ring, np.array([1e6 + 1, 1e6 + 1]))
    assert not polygons.contains(ring, np.array([1e6 + 5, 1e6 + 1]))


def test_fill__inverts_outer_ring():
    mask = disk(11.3) & ~disk(4, centre=(40, 36))
    ring = polygons.outer_ring(mask)
    np.testing.assert_array_equal(polygons.fill(ring, 64, 64), ndimage.binary_fill_holes(mask))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.4, 6), st.integers(0, 99))
def test_resample_area__is_the_mean_over_what_each_pixel_covers(height, width, factor, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 2), dtype=np.uint8)
    out = resample_area(image, factor)
    fine = 64  # a Riemann sum over the covered interval as the reference
    edges_y = np.minimum(np.arange(out.shape[0] + 1) * factor, height)
    edges_x = np.minimum(np.arange(out.shape[1] + 1) * factor, width)
    t = (np.arange(fine) + 0.5) / fine
    y = edges_y[:-1, None] + t * np.diff(edges_y)[:, None]
    x = edges_x[:-1, None] + t * np.diff(edges_x)[:, None]
    iy, ix = np.minimum(y.astype(int), height - 1), np.minimum(x.astype(int), width - 1)
    reference = image[iy].astype(float).mean(1)[:, ix].mean(2)
    np.testing.assert_allclose(out, reference, atol=255 * 2 / fine)


def test_resample_area__integer_factor_equals_the_general_path():
    image = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    np.testing.assert_allclose(resample_area(image, 3), resample_area(image, 3 + 1e-9), atol=1e-3)


def test_trace__finds_an_ellipse_to_a_pixel():
    yy, xx = np.mgrid[:80, :90] + 0.5
    a, b, angle = 16.0, 11.0, 0.5
    u = (xx - 44) * np.cos(angle) + (yy - 41) * np.sin(angle)
    v = -(xx - 44) * np.sin(angle) + (yy - 41) * np.cos(angle)
    image = (1 / (1 + np.exp((np.hypot(u / a, v / b) - 1) * 12))).astype(np.float32)
    found = outline.trace(image, np.array([[44, 41]], np.float32), np.array([13], np.float32))
    theta = np.arctan2(*outline.DIRECTIONS_A2.T[::-1]) - angle
    radius = a * b / np.hypot(b * np.cos(theta), a * np.sin(theta))
    assert np.abs(found.radius_MA[0] - radius).max() < 1.0
    assert abs(found.area_px()[0] / (np.pi * a * b) - 1) < 0.04
    np.testing.assert_allclose(found.centroid()[0], [44, 41], atol=0.3)


def test_split_touching__overlapping_disks_become_disjoint_halves():
    angles = outline.N_ANGLES
    disks = outline.Outlines(
        seed_M2=np.array([[30, 30], [42, 30]], np.float32),
        radius_MA=np.full((2, angles), 10, np.float32),
        edge_MA=np.ones((2, angles), np.float32),
        inside_M=np.ones(2, np.float32),
        outside_M=np.zeros(2, np.float32),
    )
    small, large, share = outline.overlaps(disks)
    lens = 2 * 100 * np.arccos(0.6) - 0.6 * 2 * 100 * 0.8  # of two circles 12 apart, radius 10
    assert {int(small[0]), int(large[0])} == {0, 1}
    assert abs(share[0] - lens / (100 * np.pi)) < 0.06
    masks = [polygons.fill(ring, 60, 70) for ring in outline.split_touching(disks).points()]
    both = polygons.fill(disks.points()[0], 60, 70) | polygons.fill(disks.points()[1], 60, 70)
    assert (masks[0] & masks[1]).sum() <= 4
    assert (masks[0] | masks[1]).sum() > 0.95 * both.sum()


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0, 1e5), st.booleans()), min_size=1, max_size=8
    )
)
def test_batches__agree_with_single_rings(kinds: list[tuple[int, float, bool]]) -> None:
    rings = []
    for number, (count, place, turned) in enumerate(kinds):
        points = np.random.default_rng(number).uniform(0, 40, (count if count > 2 else 0, 2))
        rings.append(points[:: -1 if turned else 1] + place)
    start = np.concatenate([[0], np.cumsum([len(ring) for ring in rings])])
    points = np.concatenate(rings)
    areas = polygons.signed_areas(points, start)
    centres = polygons.centroids(points, start)
    perimeters = polygons.shapes(points, start).perimeter
    for ring, signed, centre, perimeter in zip(rings, areas, centres, perimeters, strict=True):
        if not len(ring):
            assert signed == 0 and np.isnan(centre).all() and np.isnan(perimeter)
            continue
        moved = ring - ring[0]
        x, y = moved.T
        assert abs(signed) == pytest.approx(polygons.area(moved), abs=1e-9)
        assert np.sign(signed) == np.sign(x @ np.roll(y, -1) - y @ np.roll(x, -1))
        np.testing.assert_allclose(centre, polygons.centroid(ring), rtol=1e-9, atol=1e-6)
        assert perimeter == pytest.approx(np.hypot(*(moved - np.roll(moved, -1, 0)).T).sum())


def test_shapes__rectangle_far_from_the_corner_of_the_slide() -> None:
    # 6 × 2, turned: variances 6²/12 and 2²/12, and an axis is 4 standard deviations.
    turn = np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    corners = np.array([[0, 0], [6, 0], [6, 2], [0, 2]]) @ turn + 150_000.25
    for ring in (corners, corners[::-1]):
        found = polygons.shapes(ring, np.array([0, 4]))
        assert found.perimeter[0] == pytest.approx(16)
        assert found.circularity[0] == pytest.approx(4 * np.pi * 12 / 256)
        assert found.major_axis[0] == pytest.approx(4 * np.sqrt(3), rel=1e-6)
        assert found.minor_axis[0] == pytest.approx(4 / np.sqrt(3), rel=1e-6)
        assert found.eccentricity[0] == pytest.approx(np.sqrt(8 / 9), rel=1e-6)


def test_shapes__a_line_has_a_length_and_nothing_else() -> None:
    found = polygons.shapes(np.array([[0.0, 0], [3, 4], [6, 8]]), np.array([0, 3]))
    assert found.perimeter[0] == 20
    assert np.isnan([found.circularity[0], found.eccentricity[0], found.major_axis[0]]).all()
