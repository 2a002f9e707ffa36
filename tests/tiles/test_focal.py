"""Which plane a tile is of, and the slide as its tiles show it."""

from __future__ import annotations

import numpy as np
import pytest

from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.slides.base import SlideInfo
from cytofm_cli.slides.open import open_slide
from cytofm_cli.tiles.config import TileConfig
from cytofm_cli.tiles.focal import find_planes, focus_of, sharpest
from cytofm_cli.tiles.focal_word import number_of
from cytofm_cli.tiles.focus import FocusMap
from cytofm_cli.tiles.plan import measure_focus
from cytofm_cli.tiles.shown import BestReader
from cytofm_cli.units import Box

from .stacks import COLUMN_PX, stack_of, write_stack


def info(n_planes: int, **facts) -> SlideInfo:
    return SlideInfo(
        path="a.tif", reader="r", format="f", levels=(), n_focal_planes=n_planes, **facts
    )


@pytest.mark.parametrize(
    ("detail", "plane"),
    [
        ((0.2, 0.5, 1.0, 0.3, 0.1), 2),
        ((1.0, 0.5, 0.2, 0.3, 0.1), 0),
        ((1.0, 0.98, 0.96, 0.5, 0.5), 1),  # within 3 %: the nearest to the middle
        ((0.5, 0.98, 0.5, 1.0, 0.5), 1),  # two as near: the lower one
        ((1.0, 1.0, 1.0, 1.0, 1.0), 2),  # a blank tile
    ],
)
def test_sharpest__of_about_equal_planes_the_nearest_to_the_middle(detail, plane) -> None:
    assert sharpest(np.array([detail]), 2).tolist() == [plane]


def test_find_planes__a_blank_tile_is_of_the_middle_plane() -> None:
    none = np.zeros((4, 4), np.float32)
    maps = iter([FocusMap(none, none, (8, 8)), FocusMap(none, none, (8, 8))])

    class Stack:
        info = info(2, focal_plane=1)

        def at_plane(self, _plane: int) -> Stack:
            return self

    planes = find_planes(Stack(), lambda _: next(maps), np.array([[0, 0]], np.int32), 16)  # type: ignore[arg-type]
    assert planes.plane_N.tolist() == [1]
    assert planes.detail_NP.tolist() == [[1, 1]]
    assert planes.focus_NP.tolist() == [[0, 0]]


def test_find_planes__the_plane_where_a_tile_is_sharp(tmp_path) -> None:
    path = write_stack(tmp_path / "a.ome.tif", stack_of(128, 3), mpp=1.0)
    xy = np.array([[0, 0], [COLUMN_PX, 0], [2 * COLUMN_PX, 0]], np.int32)
    mask = np.ones((8, 24), bool)
    with open_slide(path) as slide:
        planes = find_planes(slide, lambda plane: measure_focus(plane, 1.0, mask, 1), xy, COLUMN_PX)
        assert planes.plane_N.tolist() == [0, 1, 2]
        assert planes.detail_NP.argmax(1).tolist() == [0, 1, 2]
        np.testing.assert_array_equal(planes.scores(), planes.focus_NP[[0, 1, 2], [0, 1, 2]])
        for plane in range(3):
            alone = measure_focus(slide.at_plane(plane), 1.0, mask, 1).score(xy, COLUMN_PX)
            np.testing.assert_array_equal(planes.focus_NP[:, plane], alone)


def test_best__every_pixel_is_of_its_tiles_plane_or_the_nearest_ones(tmp_path) -> None:
    stack = stack_of(256, 4, width=512)
    path = write_stack(tmp_path / "a.ome.tif", stack, levels=2)
    xy = np.array([[0, 0], [128, 0], [256, 128]], np.int32)
    with open_slide(path) as slide:
        reader = BestReader(slide, xy, 128, np.array([3, 1, 0], np.int16))
        whole = reader.read(0, Box(0, 0, 512, 256))
        expected = stack[0].copy()  # to the right of the last tile its plane goes on
        expected[:, :128] = stack[3][:, :128]
        expected[:, 128:256] = stack[1][:, 128:256]
        np.testing.assert_array_equal(whole[:128, :256], expected[:128, :256])
        np.testing.assert_array_equal(whole[128:, :128], stack[3][128:, :128])  # below a tile
        np.testing.assert_array_equal(whole[128:, 256:], stack[0][128:, 256:])
        rng = np.random.default_rng(0)
        for _ in range(20):
            x, y = int(rng.integers(500)), int(rng.integers(250))
            w, h = int(rng.integers(1, 513 - x)), int(rng.integers(1, 257 - y))
            got = reader.read(0, Box(x, y, w, h))
            np.testing.assert_array_equal(got, whole[y : y + h, x : x + w])
        half = reader.read(1, Box(0, 0, 256, 128))
        np.testing.assert_array_equal(
            half[:64, 64:128], slide.at_plane(1).read(1, Box(64, 0, 64, 64))
        )


def test_best__of_tiles_that_overlap_the_last_lies_on_top(tmp_path) -> None:
    stack = stack_of(128, 3)
    path = write_stack(tmp_path / "a.ome.tif", stack)
    xy = np.array([[0, 0], [64, 0]], np.int32)
    with open_slide(path) as slide:
        reader = BestReader(slide, xy, 128, np.array([2, 0], np.int16))
        got = reader.read(0, Box(0, 0, 192, 128))
        np.testing.assert_array_equal(got[:, :64], stack[2][:, :64])
        np.testing.assert_array_equal(got[:, 64:], stack[0][:, 64:192])
        np.testing.assert_array_equal(
            reader.views.reader(0).read(0, Box(0, 0, 128, 128)), stack[2][:, :128]
        )


@pytest.mark.parametrize("word", ["", "sharp", "plane", "plane:", "plane:-1", "plane:1.5"])
def test_word__what_is_no_focus_is_refused(word) -> None:
    with pytest.raises(ValueError, match="is not best, fuse or plane:K"):
        number_of(word)
    with pytest.raises(UsageError, match="choose best, fuse or plane:K"):
        TileConfig(focus=word)


def test_focus_of__what_a_slide_allows() -> None:
    stack = info(5, focal_plane=2, reads_planes=True)
    assert focus_of(info(1), "plane:7") is None
    assert [focus_of(stack, word) for word in ("best", "fuse", "plane:04")] == [
        "best",
        "fuse",
        "plane:4",
    ]
    with pytest.raises(SlideError, match="no focal plane 5; it has 5"):
        focus_of(stack, "plane:5")
    alone = info(3, focal_plane=0)
    assert [focus_of(alone, word) for word in ("best", "fuse")] == ["plane:0", "plane:0"]
