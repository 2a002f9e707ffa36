"""The layout of a store in numbers, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.store import schema
from cytofm_cli.store.tables import make_table


@pytest.mark.parametrize(
    ("n_tiles", "per_shard"),
    [(0, 64), (1, 64), (2560, 64), (2561, 128), (5120, 128), (5121, 192), (100_000, 2560)],
)
def test_tiles_per_shard__is_64_until_there_are_40_shards(n_tiles: int, per_shard: int) -> None:
    assert schema.tiles_per_shard(n_tiles) == per_shard
    assert -(-n_tiles // per_shard) <= 40


def test_attributes__say_the_unit_in_words_and_the_columns_of_points() -> None:
    assert schema.TILE_XY.attributes == {
        "description": "top-left corner of each tile",
        "unit": "pixel of level 0, counted from the outer corner of its first pixel",
        "columns": ["x", "y"],
        "level": 0,
        "anchor": "corner",
    }
    assert schema.TILE_FOCUS.attributes == {"description": "focus score", "unit": "0..1"}


def test_make_table__points_alone_have_empty_outlines_and_are_sure() -> None:
    table = make_table(np.array([[1.5, 2.0], [3.0, 4.0]]), np.array([5.0, 6.0]))
    assert [table.polygon(i).shape for i in range(2)] == [(0, 2), (0, 2)]
    assert (table.probability.tolist(), table.class_id.tolist()) == ([1, 1], [0, 0])
    assert table.xy_px0.dtype == table.area_um2.dtype == np.float32
