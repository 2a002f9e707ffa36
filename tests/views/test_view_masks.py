"""Disk unions against brute force; label maps against hand-drawn ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.views import masks


def brute_force(xy, radius, height, width):
    rows, columns = np.mgrid[:height, :width]
    inside = np.zeros((height, width), bool)
    for x, y in xy:
        inside |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return inside


def union(xy, radius, height, width, weight=None, **more):
    points = torch.tensor(np.asarray(xy, float)).view(1, -1, 2)
    keep = torch.ones(1, points.shape[1], dtype=torch.bool) if weight is None else weight
    spans = masks.disk_spans(points, radius, height, width, **more)
    outside = masks.outside_disks(spans, keep)
    return ~outside.view(height, width).numpy()


# Eighths of a pixel and radii off the grid: no pixel lies on a circle, where the brute force
# and the square root may round differently.
COORDINATE = st.integers(-80, 400).map(lambda n: n / 8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(COORDINATE, COORDINATE), min_size=0, max_size=12),
    st.floats(0.3, 25).map(lambda r: round(r, 2) + 0.0037),
    st.integers(1, 45),
    st.integers(1, 45),
)
def test_disk_union__equals_brute_force(xy, radius, height, width):
    expected = brute_force(xy, radius, height, width)
    assert np.array_equal(union(xy, radius, height, width), expected)


def test_disk_union__radius_belongs_to_disk():
    inside = union([(5, 5)], 3.0, 11, 11)
    assert inside[5, 2] and inside[5, 8] and inside[2, 5] and inside[8, 5]
    assert inside.sum() == 29  # the lattice points within distance 3


def test_disk_union__border_nuclei_are_clipped_not_wrapped():
    xy = [(0, 0), (19, 0), (0, 29), (19, 29)]
    inside = union(xy, 4.2, 30, 20)
    assert np.array_equal(inside, brute_force(xy, 4.2, 30, 20))
    assert not inside[15].any()


def test_disk_union__thousands_of_disks_on_one_spot():
    xy = np.full((40_000, 2), 10.0)
    assert np.array_equal(union(xy, 3.3, 21, 21), brute_force(xy[:1], 3.3, 21, 21))


def test_disk_union__nan_and_dropped_points_cover_nothing():
    weight = torch.tensor([[True, False, False]])
    inside = union([(4, 4), (12, 12), (math.nan, math.nan)], 2.5, 17, 17, weight)
    assert np.array_equal(inside, brute_force([(4, 4)], 2.5, 17, 17))


def test_disk_union__batch_equals_each_alone():
    rng = np.random.default_rng(3)
    xy = torch.tensor(rng.uniform(0, 40, (5, 7, 2)))
    keep = torch.tensor(rng.random((5, 7)) < 0.6)
    spans = masks.disk_spans(xy, 6.01, 33, 41)
    together = masks.outside_disks(spans, keep)
    for g in range(5):
        alone = masks.outside_disks(spans.row(g), keep[g : g + 1])
        assert torch.equal(together[g : g + 1], alone)
        expected = brute_force(xy[g][keep[g]].numpy(), 6.01, 33, 41)
        assert np.array_equal(~alone.view(33, 41).numpy(), expected)


@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, 2.5, math.pi, 4.0])
def test_cut_disk__is_the_half_on_one_side(angle):
    inside = union([(20, 20)], 9.3, 41, 41, cut_GP=torch.tensor([[angle]], dtype=torch.float64))
    rows, columns = np.mgrid[:41, :41]
    side = (columns - 20) * math.cos(angle) + (rows - 20) * math.sin(angle)
    disk = brute_force([(20, 20)], 9.3, 41, 41)
    clear = np.abs(side) > 1e-6  # pixels on the cut itself may fall either way
    assert np.array_equal(inside[clear], (disk & (side > 0))[clear])


def test_ragged_disk__lies_between_its_smallest_and_largest_radius():
    ragged = torch.tensor(np.random.default_rng(0).uniform(-2, 2, (2, 1, 1, masks.n_rows(12.3))))
    inside = union([(20, 20)], 10.3, 41, 41, ragged_2GPR=ragged)
    inner, outer = (brute_force([(20, 20)], r, 41, 41) for r in (8.29, 12.31))
    assert not (inner & ~inside).any() and not (inside & ~outer).any()
    assert (inside != inner).any() and (inside != outer).any()


def test_rule_labels__kept_nuclei_are_inside_dropped_ones_outside_and_disks_decide_the_rest():
    label = torch.tensor([[0, 1, 2, 2, 0, 4], [3, 0, 1, 3, 2, 0]])
    kept = torch.tensor([[True, False, False], [False, True, True]])  # nucleus 4 is no kept one
    disks = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
    united = masks.rule_labels(disks.clone(), label, kept)
    assert united.tolist() == [[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1]]
    parts = masks.rule_labels(disks.clone(), label, kept, unite=False)
    assert parts.tolist() == [[1, 1, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]


def test_boundary_points__are_the_rim_and_know_their_nucleus():
    label = torch.zeros(2, 7, 7, dtype=torch.int32)
    label[1, 1:6, 1:6] = 2
    xy, owner = masks.boundary_points(label)
    assert xy.shape == (2, 16, 2) and (owner[0] == -1).all() and xy[0].isnan().all()
    assert (owner[1] == 1).all()
    rim = {(x, y) for x in range(1, 6) for y in range(1, 6)}
    rim -= {(x, y) for x in range(2, 5) for y in range(2, 5)}
    assert {tuple(point) for point in xy[1].int().tolist()} == rim


def test_boundary_points__image_edge_counts_as_rim():
    xy, _ = masks.boundary_points(torch.ones(1, 3, 3, dtype=torch.int64))
    assert xy.shape == (1, 8, 2)  # all but the middle


def test_label_map__square_and_overlap():
    square = np.array([[1, 1], [4, 1], [4, 4], [1, 4]], float)
    label = masks.label_map([square, square + 2, np.zeros((2, 2))], 8, 9)
    assert label.dtype == np.int32
    expected = np.zeros((8, 9), int)
    expected[1:4, 1:4] = 1
    expected[3:6, 3:6] = 2  # the later contour wins; low edges belong to it, high ones do not
    assert np.array_equal(label, expected)


def test_label_map__circle_has_its_area():
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([30.2 + 12.4 * np.cos(t), 25.3 + 12.4 * np.sin(t)], -1)
    assert (masks.label_map([circle], 60, 60) == 1).sum() == pytest.approx(
        np.pi * 12.4**2, rel=0.03
    )
