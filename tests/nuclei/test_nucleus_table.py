"""The table of nuclei: columns, order, joining."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import InputError
from cytofm_cli.nuclei.base import as_rgb, concatenate, empty_table, make_table

TRIANGLE = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def random_table(seed: int, count: int, classes=("a", "b")):
    rng = np.random.default_rng(seed)
    rings = [TRIANGLE[: 3 * int(rng.integers(0, 2))] + rng.uniform(0, 99, 2) for _ in range(count)]
    return make_table(
        rng.integers(0, 5, (count, 2)).astype(float),
        rng.uniform(1, 50, count),
        polygons=rings,
        probability=rng.uniform(0, 1, count),
        class_id=rng.integers(0, len(classes), count),
        classes=classes,
    )


def rows(table):
    return [
        (*table.xy_px0[i], table.area_um2[i], table.classes[table.class_id[i]],
         tuple(table.polygon(i).ravel()))
        for i in range(len(table))
    ]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(0, 9), st.integers(0, 9))
def test_concatenate__keeps_rows_and_sorting_forgets_the_order(seed, n, m):
    a, b = random_table(seed, n), random_table(seed + 1, m, ("b", "c"))
    joined = concatenate([a, b]).validate()
    assert rows(joined) == rows(a) + rows(b)
    assert rows(joined.sorted()) == rows(concatenate([b, a]).sorted())


def test_sorted__by_y_then_x():
    table = make_table(np.array([[3, 2], [9, 1], [1, 2.0]]), np.ones(3))
    np.testing.assert_array_equal(table.sorted().xy_px0, [[9, 1], [1, 2], [3, 2]])


def test_take__gathers_polygons():
    table = make_table(
        np.zeros((3, 2)), np.ones(3), polygons=[TRIANGLE, np.zeros((0, 2)), TRIANGLE + 10]
    )
    taken = table.take(np.array([2, 1, 0, 2]))
    np.testing.assert_array_equal(taken.contour_start, [0, 3, 3, 6, 9])
    np.testing.assert_array_equal(taken.polygon(0), TRIANGLE + 10)
    np.testing.assert_array_equal(taken.polygon(2), TRIANGLE)
    assert len(taken.polygon(1)) == 0


def test_moved__scales_then_shifts_points_but_not_areas():
    table = make_table(np.array([[1.0, 2.0]]), np.array([7.0]), polygons=[TRIANGLE])
    moved = table.moved(scale=2, shift_px=(100, 200))
    np.testing.assert_array_equal(moved.xy_px0, [[102, 204]])
    np.testing.assert_array_equal(moved.polygon(0), [[100, 200], [108, 200], [100, 208]])
    assert moved.area_um2[0] == 7


def test_empty_table__is_valid_and_joins():
    assert len(empty_table().validate()) == 0
    joined = concatenate([empty_table(("x",)), random_table(0, 3), empty_table()])
    assert len(joined) == 3 and joined.classes == ("a", "b")
    assert len(concatenate([])) == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"area_um2": np.zeros(2, np.float32)}, "area_um2"),
        ({"probability": np.full(1, 1.5, np.float32)}, "probability"),
        ({"probability": np.full(1, np.nan, np.float32)}, "probability"),
        ({"class_id": np.full(1, 3, np.uint8)}, "class"),
        ({"xy_px0": np.full((1, 2), np.inf, np.float32)}, "finite"),
        ({"xy_px0": np.zeros((1, 2))}, "float64"),
        ({"area_um2": np.full(1, -1, np.float32)}, "negative"),
        ({"contour_start": np.array([0, 2])}, "contour_start"),
        ({"classes": ()}, "classes"),
    ],
)
def test_validate__names_what_is_wrong(change, word):
    table = make_table(np.zeros((1, 2)), np.ones(1), polygons=[TRIANGLE]).validate()
    with pytest.raises(InputError, match=word):
        replace(table, **change).validate("here")


def test_as_rgb__transparency_becomes_white():
    pixel = np.array([[[200, 100, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    expected = [[255, 255, 255], [200, 100, 0], [244, 224, 204]]
    np.testing.assert_array_equal(as_rgb(pixel)[0], expected)
    assert as_rgb(np.full((2, 3), 9, np.uint8)).shape == (2, 3, 3)


def test_columns__go_with_their_rows_and_are_unknown_where_a_table_has_none():
    one = make_table(
        np.array([[5.0, 9.0], [1.0, 2.0]]), np.ones(2), columns={"sharpness": np.array([0.5, 0.25])}
    )
    assert one.sorted().columns["sharpness"].tolist() == [0.25, 0.5]
    assert one.take(np.array([0])).columns["sharpness"].tolist() == [0.5]
    both = concatenate([one, make_table(np.array([[7.0, 7.0]]), np.ones(1))])
    np.testing.assert_array_equal(both.columns["sharpness"], [0.5, 0.25, np.nan])
    both.validate()


def test_columns__that_no_store_has_or_of_another_length_are_refused():
    xy, area = np.zeros((1, 2)), np.ones(1)
    with pytest.raises(InputError, match=r"no column shine of nuclei \(it has circularity"):
        make_table(xy, area, columns={"shine": np.ones(1)}).validate()
    with pytest.raises(InputError, match=r"sharpness is float32 \(2,\)"):
        make_table(xy, area, columns={"sharpness": np.ones(2)}).validate()
