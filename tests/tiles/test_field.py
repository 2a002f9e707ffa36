"""Pixels across and past the borders of tiles: neighbours, then the slide, then a mirror."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cytofm_cli.store.io import open_store
from cytofm_cli.tiles.field import gaps, mirrored, open_field
from cytofm_cli.tiles.squares import corners, read_squares, reading_order
from cytofm_cli.units import Box

SIZE = (330, 250)  # w, h


def picture() -> np.ndarray:
    yy, xx = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([xx % 251, yy, (xx + yy) % 256], -1).astype(np.uint8)


@pytest.fixture
def store(tmp_path) -> Path:
    """Tiles of 64 px that lie 100 px apart."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    words = [tmp_path / "a.png", "-o", tmp_path / "stores", "--mpp", 0.25, "--tile-px", 64]
    words += ["--stride-px", 100, "--foreground", "none", "-q"]
    command = [sys.executable, "-m", "cytofm_cli", "tile", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path / "stores" / "a.zarr"


def test_gap__comes_from_the_slide(store):
    with open_field(open_store(store)) as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, 300, 240)), picture()[:240, :300])
        assert field.known(Box(0, 0, 300, 240)).all()
        assert field.beyond == ["slide"]


def test_tiles_alone__need_no_slide(store):
    with open_field(open_store(store)) as field:
        np.testing.assert_array_equal(field.read(Box(110, 5, 50, 50)), picture()[5:55, 110:160])
        assert field.beyond == []


def test_gap__without_the_slide_is_mirrored_and_known_as_such(store):
    (store.parents[1] / "a.png").unlink()
    with open_field(open_store(store)) as field:
        pixels, known = field.read(Box(100, 0, 84, 64)), field.known(Box(100, 0, 84, 64))
        assert field.beyond == ["mirror"]
    np.testing.assert_array_equal(pixels[:, :64], picture()[:64, 100:164])
    # x = 164 mirrors 163, x = 183 mirrors 144.
    np.testing.assert_array_equal(pixels[:, 64:], picture()[:64, 163:143:-1])
    assert known[:, :64].all() and not known[:, 64:].any()


def test_slide__that_has_moved_is_found(store, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "other" / "a.png")
    with open_field(open_store(store), slides=tmp_path / "other") as field:
        np.testing.assert_array_equal(field.read(Box(50, 50, 80, 80)), picture()[50:130, 50:130])


def test_edge_of_the_slide__is_mirrored_where_tiles_are_padded(store):
    with open_field(open_store(store)) as field:  # the last tile reaches from 300 to 364
        pixels = field.read(Box(310, 0, 40, 20))
        known = field.known(Box(310, 0, 40, 20))
    np.testing.assert_array_equal(pixels[:, :20], picture()[:20, 310:330])
    np.testing.assert_array_equal(pixels[:, 20:], picture()[:20, 329:309:-1])
    assert known[:, :20].all() and not known[:, 20:].any()


def test_mirrored__around_a_corner_takes_the_point_behind_the_nearest():
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    known = np.ones((4, 4), bool)
    known[2:, 2:] = False
    filled = mirrored(pixels, known)[..., 0]
    assert filled[2, 3] == pixels[0, 3, 0]  # two rows up: behind (1, 3)
    assert filled[3, 2] == pixels[3, 0, 0]
    np.testing.assert_array_equal(filled[known], pixels[known][:, 0])


def test_mirrored__nothing_known_stays_as_it_is():
    pixels = np.full((3, 3, 3), 7, np.uint8)
    assert (mirrored(pixels, np.zeros((3, 3), bool)) == 7).all()


def test_gaps__cover_what_is_not_known_once_and_nothing_else():
    rng = np.random.default_rng(0)
    for _ in range(30):
        known = np.repeat(np.repeat(rng.random((5, 6)) < 0.6, 3, axis=0), 4, axis=1)
        times = np.zeros(known.shape, int)
        for x, y, w, h in gaps(known):
            times[y : y + h, x : x + w] += 1
        np.testing.assert_array_equal(times, ~known)
    frame = np.zeros((10, 12), bool)
    frame[3:7, 2:9] = True
    assert gaps(frame) == [(0, 0, 12, 3), (0, 3, 2, 4), (9, 3, 3, 4), (0, 7, 12, 3)]


def test_squares__are_what_the_slide_has_there_filled_beyond_it(store):
    canvas = np.full((SIZE[1] + 80, SIZE[0] + 80, 3), 7, np.uint8)
    canvas[40:-40, 40:-40] = picture()
    rng = np.random.default_rng(0)
    xy_px0 = (rng.random((60, 2)) * SIZE).astype(np.float32)
    with open_field(open_store(store)) as field:
        at = corners(field, xy_px0, 40)
        np.testing.assert_array_equal(at, np.round(xy_px0.astype(np.float64) - 20))
        squares = read_squares(field, at, 40, 7)
    for (left, top), square in zip(at, squares, strict=True):
        expected = canvas[top + 40 : top + 80, left + 40 : left + 80]
        np.testing.assert_array_equal(square, expected)


def test_reading_order__goes_down_one_strip_after_the_other():
    field = SimpleNamespace(strip_px=100)
    at = np.array([[150, 0], [20, 70], [90, 10], [120, 5], [0, 10]])
    assert reading_order(field, at).tolist() == [4, 2, 1, 0, 3]
