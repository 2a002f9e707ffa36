"""The grid of tiles: hand-worked cases and what must hold for any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import UsageError
from cytofm_cli.tiles.grid import lay_grid
from cytofm_cli.units import Size

SIDES = st.integers(1, 5000)
LENGTHS = st.one_of(st.integers(1, 900), st.floats(1, 900))


def test_lay_grid__last_row_and_column_end_at_the_edge():
    assert lay_grid(Size(5, 3), 2, 2).tolist() == [[0, 0], [2, 0], [3, 0], [0, 1], [2, 1], [3, 1]]


def test_lay_grid__edge_tiles_kept_when_the_stride_divides():
    assert lay_grid(Size(6, 2), 2, 2).tolist() == [[0, 0], [2, 0], [4, 0]]


def test_lay_grid__overlapping_tiles():
    assert lay_grid(Size(8, 4), 4, 2).tolist() == [[0, 0], [2, 0], [4, 0]]


def test_lay_grid__aligned_grid_leaves_out_a_strip_narrower_than_the_alignment():
    xy = lay_grid(Size(1000, 256), 512, 512, align_px0=256)
    assert xy.tolist() == [[0, 0], [256, 0]]  # 512 would end at 1024; 768..1000 is left out


def test_lay_grid__fractional_tiles_leave_no_gap_of_a_pixel():
    assert lay_grid(Size(10, 2), 2.5, 2.5)[:, 0].tolist() == [0, 2, 5, 7]


def test_lay_grid__slide_smaller_than_a_tile_has_one():
    assert lay_grid(Size(100, 90), 512, 512).tolist() == [[0, 0]]
    assert lay_grid(Size(1000, 90), 512, 512).tolist() == [[0, 0], [488, 0]]


@pytest.mark.parametrize("lengths", [(0, 1, 1), (1, 0.5, 1), (1, 1, 0), (float("nan"), 1, 1)])
def test_lay_grid__refuses_lengths_below_a_pixel(lengths):
    tile, stride, align = lengths
    with pytest.raises(UsageError, match="at least one pixel"):
        lay_grid(Size(10, 10), tile, stride, align)


@settings(max_examples=300, deadline=None)
@given(
    w=SIDES, h=SIDES, tile=LENGTHS, share=st.floats(0.2, 1), align=st.sampled_from([1, 1, 7, 64])
)
def test_lay_grid__covers_the_slide_inside_its_bounds_without_doubles(w, h, tile, share, align):
    stride = max(1.0, tile * share, tile / 8)
    # Tiles that follow the file's own are whole multiples of them.
    tile, stride = (tile, stride) if align == 1 else (align * max(1, tile // align), align)
    if (w / stride) * (h / stride) > 20_000:
        w, h = min(w, int(100 * stride)), min(h, int(100 * stride))
    xy = lay_grid(Size(w, h), tile, stride, align)
    assert xy.dtype == np.int32
    assert len(np.unique(xy, axis=0)) == len(xy)
    assert (np.lexsort((xy[:, 0], xy[:, 1])) == np.arange(len(xy))).all()  # row by row
    assert (xy >= 0).all()
    assert (xy % align == 0).all()
    for axis, side in ((0, w), (1, h)):
        corners = np.unique(xy[:, axis])
        if side <= tile:
            assert corners.tolist() == [0]
            continue
        assert corners[0] == 0
        assert corners[-1] + tile <= side
        assert side - (corners[-1] + tile) < align  # less than a pixel where nothing is aligned
        assert (np.diff(corners) < tile + 1).all()
    assert len(xy) == len(np.unique(xy[:, 0])) * len(np.unique(xy[:, 1]))
