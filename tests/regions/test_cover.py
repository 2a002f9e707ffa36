"""Points and shares of squares are those that shapely finds."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.regions import cover
from cytofm_cli.regions.base import Region, box_ring, ellipse_ring, ring_of, signed_area

SIZE = (900, 700)
SIDE = 128.0


def star(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Return a ring that does not cross itself, with 5 to 40 corners."""
    angle = np.sort(rng.random(int(rng.integers(5, 40)))) * 2 * np.pi
    reach = radius * (0.3 + 0.7 * rng.random(len(angle)))
    centre = rng.random(2) * SIZE
    return ring_of(centre + (reach * [np.cos(angle), np.sin(angle)]).T)


def region(*rings: np.ndarray, name: str = "a") -> Region:
    return Region(name=name, rings=rings, where="test")


def shape_of(regions: list[Region]) -> shapely.Geometry:
    return shapely.union_all([shapely.make_valid(shapely.Polygon(r.rings[0])) for r in regions])


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_points_and_shares__are_those_of_shapely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = [region(star(rng, 250)) for _ in range(4)]
    without = [region(star(rng, 120)) for _ in range(2)]
    xy = rng.integers(-60, 880, (40, 2))
    frame = shapely.box(0, 0, *SIZE)
    squares = [shapely.box(x, y, x + SIDE, y + SIDE).intersection(frame) for x, y in xy]
    for wanted, whole in ((regions, shape_of(regions)), (None, frame)):
        area = whole.difference(shape_of(without)).intersection(frame)
        truth = [s.intersection(area).area / s.area if s.area else 0.0 for s in squares]
        got = cover.shares(wanted, without, xy, SIDE, SIZE)
        # By the midpoint rule: at worst half a line for each edge that is nearly horizontal.
        lines = [max(1.0, (s.bounds[3] - s.bounds[1]) if s.area else 1.0) for s in squares]
        np.testing.assert_allclose(got, truth, atol=float(np.max(4 / np.array(lines))) + 0.01)
        assert np.abs(got - truth).mean() < 0.005
    points = rng.random((300, 2)) * SIZE
    inside = shapely.contains_xy(shape_of(regions), points)
    assert (cover.inside(regions, points) == inside).all()


def test_share__of_a_rectangle_is_exact() -> None:
    quarter = region(box_ring((0, 0), (64, 64)))
    half = region(box_ring((128, 0), (192, 700)))
    xy = np.array([[0, 0], [128, 0], [64, 64], [-64, 0], [600, 600]])
    assert cover.shares([quarter, half], (), xy, SIDE, SIZE).tolist() == [0.25, 0.5, 0.5, 0.5, 0]
    # Two regions on the same place count once; what is left out goes, whoever includes it.
    assert cover.shares([quarter, quarter], (), xy[:1], SIDE, SIZE)[0] == 0.25
    assert cover.shares([quarter], [quarter], xy[:1], SIDE, SIZE)[0] == 0
    assert cover.shares(None, [quarter], xy[:1], SIDE, SIZE)[0] == 0.75


def test_square_past_the_edge__counts_by_its_part_on_the_slide() -> None:
    everything = region(box_ring((0, 0), SIZE))
    xy = np.array([[850, 650], [-100, -100], [2000, 0]])
    assert cover.shares([everything], (), xy, SIDE, SIZE).tolist() == [1, 1, 0]


def test_hole__is_outside() -> None:
    pierced = region(box_ring((0, 0), (100, 100)), box_ring((40, 40), (60, 60)))
    points = np.array([[10.0, 10], [50, 50], [39.9, 50], [101, 50]])
    assert cover.inside([pierced], points).tolist() == [True, False, True, False]
    assert cover.area_of(pierced) == pytest.approx(100**2 - 20**2, rel=0.005)


def test_corner_between_edges__counts_once() -> None:
    diamond = region(ring_of([(50, 0), (100, 50), (50, 100), (0, 50)]))
    points = np.array([[50.0, 50], [10, 50], [-1, 50], [101, 50], [60, 50], [0, 0]])
    assert cover.inside([diamond], points).tolist() == [True, True, False, False, True, False]


def test_ellipse__has_its_area() -> None:
    ring = ellipse_ring((50, 40), (30, 20))
    assert signed_area(ring) == pytest.approx(np.pi * 600, rel=5e-4)
