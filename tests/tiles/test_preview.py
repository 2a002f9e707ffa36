"""The preview picture."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.tiles import preview


def scene(side=800, level=240):
    image = np.full((side, side, 3), level, np.uint8)
    mask = np.zeros((side, side), bool)
    mask[100:120, 300:330] = True
    return image, mask, np.array([[0, 0], [4000, 1000]], np.int32)


def test_draw__frames_the_chosen_tile_outlines_the_cells_dims_the_rest():
    image, mask, xy = scene()
    drawn = preview.draw(image, mask, 10.0, xy, 1000.0, np.array([1]))
    assert drawn.shape == image.shape
    assert tuple(drawn[100, 450]) == preview.FRAME_RGB
    assert tuple(drawn[150, 400]) == preview.FRAME_RGB
    assert tuple(drawn[99, 310]) == preview.OUTLINE_RGB
    assert tuple(drawn[150, 450]) == (240, 240, 240)  # inside the tile: as it was
    assert drawn[50, 50].max() < 220  # not chosen
    assert (image == 240).all()  # the input is not touched


def test_draw__without_mask_and_with_every_tile():
    image, _, xy = scene()
    drawn = preview.draw(image, None, 10.0, xy, 1000.0)
    assert tuple(drawn[0, 50]) == preview.FRAME_RGB
    assert not (drawn == preview.OUTLINE_RGB).all(2).any()


def test_draw__frames_stand_out_on_dark_field():
    image, mask, xy = scene(level=3)
    drawn = preview.draw(image, mask, 10.0, xy, 1000.0)
    assert tuple(drawn[100, 450]) == preview.LIGHT_FRAME_RGB


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((3000, 5000), (1000, 1667)), ((60, 80), (600, 800)), ((1, 1), (640, 640))],
)
def test_draw__fits_a_screen(shape, wanted):
    image = np.full((*shape, 3), 250, np.uint8)
    drawn = preview.draw(image, np.ones(shape, bool), 4.0, np.array([[0, 0]], np.int32), 9.0)
    assert drawn.shape[:2] == wanted
