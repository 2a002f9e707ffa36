"""Layers: which pixel has which colour, worked out by hand."""

from __future__ import annotations

import numpy as np

from cytofm_cli.viewer import draw
from cytofm_cli.viewer.zoom import Region

RED, BLUE = (255, 0, 0), (0, 0, 255)
REGION = Region(100, 200, 64, 32)  # two level-0 pixels to a pixel


def rgb(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array(colours, np.uint8).reshape(-1, 3)


def test_mask__tints_where_it_is_set_and_nothing_beyond_it() -> None:
    mask_HW = np.zeros((30, 20), np.uint8)  # ten level-0 pixels to a pixel of the mask
    mask_HW[21, 11] = 1  # x 110 to 120, y 210 to 220
    canvas = draw.mask(REGION, mask_HW, (0.1, 0.1), RED)
    assert (canvas[5:10, 5:10] == (*RED, draw.FILL_ALPHA)).all()
    assert np.count_nonzero(canvas[..., 3]) == 25
    beyond = draw.mask(Region(190, 290, 64, 32), np.ones((30, 20), np.uint8), (0.1, 0.1), RED)
    assert np.count_nonzero(beyond[..., 3]) == 5 * 5


def test_squares__have_a_line_of_one_pixel_or_are_filled() -> None:
    xy = np.array([[110, 210]])
    framed = draw.squares(REGION, xy, 20, rgb(BLUE), filled=False)
    assert (framed[5, 5:15] == (*BLUE, 255)).all()
    assert (framed[5:15, 5] == (*BLUE, 255)).all()
    assert framed[10, 10, 3] == 0
    filled = draw.squares(REGION, xy, 20, rgb(BLUE), filled=True)
    assert np.count_nonzero(filled[..., 3]) == 100
    assert (filled[5:15, 5:15] == (*BLUE, 255)).all()


def test_squares__that_reach_past_the_edge_are_cut() -> None:
    canvas = draw.squares(REGION, np.array([[90, 190]]), 20, rgb(RED), filled=True)
    assert (canvas[:5, :5] == (*RED, 255)).all()
    assert np.count_nonzero(canvas[..., 3]) == 25
    outside = draw.squares(REGION, np.array([[0, 0], [400, 400]]), 20, rgb(RED, RED), filled=False)
    assert not outside.any()


def test_points__are_dots_of_a_radius_and_the_last_lies_on_top() -> None:
    xy = np.array([[121.0, 221.0], [121.0, 221.0], [99.0, 199.0]])
    dots = draw.points(REGION, xy, 1.0, rgb(RED, BLUE, RED))
    assert (dots[10, 10] == (*BLUE, 255)).all()
    assert {tuple(p) for p in np.argwhere(dots[..., 3] > 0)} == {
        (10, 10), (9, 10), (11, 10), (10, 9), (10, 11),
    }  # fmt: skip


def test_discs__of_any_size_cover_their_area() -> None:
    for radius in (2.0, 10.0):
        disc = draw.discs(REGION, np.array([[132.0, 232.0]]), radius, rgb(RED))
        area = np.count_nonzero(disc[..., 3])
        assert abs(area / (np.pi * radius**2) - 1) < 0.15
        assert (disc[16, 16] == (*RED, 255)).all()


def test_outlines__follow_the_polygon_in_its_own_colour() -> None:
    square = np.array([[110, 210], [150, 210], [150, 250], [110, 250]], np.float32)
    far = square + 900
    rings = draw.Rings(np.concatenate([far, square]), np.array([0, 4, 8]))
    canvas = draw.outlines(draw.blank(32), REGION, rings, rgb(BLUE, RED))
    assert (canvas[5, 8:22] == (*RED, 255)).all() or (canvas[4, 8:22] == (*RED, 255)).all()
    assert canvas[15, 15, 3] == 0
    seen = canvas[canvas[..., 3] > 0]
    assert (seen[:, 0] >= 250).all()  # half-covered pixels are no darker
    assert (seen[:, 1:3] == 0).all()
    none = draw.Rings(np.zeros((0, 2)), np.zeros(1, np.int64))
    assert not draw.outlines(draw.blank(32), REGION, none, rgb()).any()
