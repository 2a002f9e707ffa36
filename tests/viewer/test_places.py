"""Points in a box are found as by looking at all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.units import Size
from cytofm_cli.viewer.places import find_places

numbers = st.floats(-600, 3000, width=32)
clouds = st.lists(st.tuples(numbers, numbers), max_size=60).map(
    lambda pairs: np.array(pairs, np.float32).reshape(-1, 2)
)


@given(clouds, numbers, numbers, numbers, numbers)
def test_inside__is_what_a_look_at_every_point_finds(
    xy: np.ndarray, left: float, top: float, right: float, bottom: float
) -> None:
    found = find_places(xy, Size(2400, 1100)).inside(left, top, right, bottom)
    x, y = xy.T
    whole = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    assert found.tolist() == np.flatnonzero(whole).tolist()


@given(clouds, numbers, numbers, st.floats(0, 900))
def test_nearest__is_the_nearest_of_all(xy: np.ndarray, x: float, y: float, within: float) -> None:
    row = find_places(xy, Size(2400, 1100)).nearest(x, y, within)
    away = np.hypot(*(xy.astype(np.float64) - (x, y)).T)
    if row is None:
        assert not (away <= within).any()
    else:
        assert away[row] == away.min() <= within


def test_places__of_no_points_are_empty() -> None:
    places = find_places(np.zeros((0, 2)), Size(100, 100))
    assert len(places) == len(places.inside(0, 0, 100, 100)) == 0
    assert places.nearest(5, 5, 50) is None
