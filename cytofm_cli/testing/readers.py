"""What every slide reader must do. A case is the slide, open."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.registry import ReaderPlugin, Sample, readers
from cytofm_cli.slides.base import ReaderOpener, SlideReader
from cytofm_cli.slides.folders import slide_id_of
from cytofm_cli.slides.open import open_slide
from cytofm_cli.testing.suite import Case, Suite, refuses
from cytofm_cli.units import Box, Size

_N_BOXES = 30
_RUBBISH = (b"", b"not a slide", b"II*\0\xff\xff\xff\xff", b"\xff\xd8\xff\xe0")


def _open(name: str, plugin: ReaderPlugin, sample: Sample, _folder: Path) -> SlideReader:
    path = str(sample.settings["path"])
    opener: ReaderOpener = plugin.make()
    refusal = opener.probe(path)
    assert refusal is None, f"reader {name!r} leaves its own sample {path} to others: {refusal}"
    return open_slide(path, reader=name)


SUITE = Suite(readers, _open)


def _whole(slide: SlideReader, level: int) -> NDArray[np.uint8]:
    return slide.read(level, Box(0, 0, *slide.info.levels[level].size_px))


def _assert_same(case: Case, level: int, got: Any, expected: Any) -> None:
    """Compare exactly; a reader that interpolates is close where levels are no whole ratio."""
    inexact = case.thing.info.levels[level].downsample % 1
    if case.sample.traits.get("interpolates") and inexact:
        assert got.shape == expected.shape
        assert abs(got.astype(float).mean() - expected.astype(float).mean()) < 30
    else:
        np.testing.assert_array_equal(got, expected)


@SUITE.check
def suffixes_are_declared_and_no_part_of_the_name(case: Case) -> None:
    """Folders are searched for them."""
    suffixes = case.plugin.suffixes
    assert suffixes
    assert all(s.startswith(".") and s == s.lower() for s in suffixes)
    path = Path(case.sample.settings["path"])
    if path.is_file() and path.suffix.lower() in suffixes:
        assert slide_id_of(str(path)) == path.name.removesuffix(path.suffix).removesuffix(".ome")


@SUITE.check
def levels_fall_and_downsample_is_their_ratio(case: Case) -> None:
    """So are the other facts of a slide whole."""
    info = case.thing.info
    assert isinstance(case.thing, SlideReader)
    assert info.reader == case.name
    assert info.format
    assert info.codec
    assert info.size_px0 == info.levels[0].size_px
    assert info.levels[0].downsample == 1
    assert 0 <= info.focal_plane < info.n_focal_planes
    assert (info.mpp is None) == (info.mpp_source is None)
    for fine, coarse in zip(info.levels, info.levels[1:], strict=False):
        assert coarse.downsample > fine.downsample
    for level in info.levels:
        for axis in (0, 1):
            expected = info.size_px0[axis] / level.downsample
            assert abs(level.size_px[axis] - expected) <= 1 + 0.02 * expected


@SUITE.check
def a_box_equals_the_crop_of_the_whole(case: Case) -> None:
    """Boxes of every size at every place and level."""
    slide, rng = case.thing, np.random.default_rng(0)
    for number in range(_N_BOXES):
        level = number % len(slide.info.levels)
        width, height = slide.info.levels[level].size_px
        x, y = int(rng.integers(width)), int(rng.integers(height))
        w = int(rng.integers(1, min(300, width - x) + 1))
        h = int(rng.integers(1, min(300, height - y) + 1))
        got = slide.read(level, Box(x, y, w, h))
        assert got.dtype == np.uint8
        assert got.shape == (h, w, 3)
        # Not the whole level but a frame around the box, so that large slides stay cheap.
        left, top = max(0, x - 37), max(0, y - 37)
        right, bottom = min(width, x + w + 37), min(height, y + h + 37)
        frame = slide.read(level, Box(left, top, right - left, bottom - top))
        _assert_same(case, level, got, frame[y - top : y - top + h, x - left : x - left + w])


@SUITE.check
def edges_and_single_pixels_are_read(case: Case) -> None:
    """At the coarsest level."""
    slide, level = case.thing, len(case.thing.info.levels) - 1
    all_px = _whole(slide, level)
    width, height = slide.info.levels[level].size_px
    for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
        box = slide.read(level, Box(x, y, 1, 1))
        _assert_same(case, level, box, all_px[y : y + 1, x : x + 1])


@SUITE.check
def a_box_that_leaves_the_level_is_refused(case: Case) -> None:
    """So are empty boxes and levels that there are not."""
    width, height = case.thing.info.size_px0
    for box in (
        Box(-1, 0, 5, 5),
        Box(0, -1, 5, 5),
        Box(width - 4, 0, 5, 5),
        Box(0, height - 4, 5, 5),
        Box(0, 0, 0, 5),
        Box(0, 0, width + 1, 1),
    ):
        refuses(UsageError, "is not inside", case.thing.read, 0, box)
    for level in (-1, len(case.thing.info.levels)):
        refuses(UsageError, "no level", case.thing.read, level, Box(0, 0, 1, 1))


@SUITE.check
def threads_get_the_same_pixels(case: Case) -> None:
    """A slide is read from many threads at once."""
    slide, rng = case.thing, np.random.default_rng(0)
    width, height = slide.info.size_px0
    w, h = min(130, width), min(90, height)
    boxes = [
        Box(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
        for _ in range(24)
    ]
    alone = [slide.read(0, box) for box in boxes]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda box: slide.read(0, box), boxes))
    for expected, got in zip(alone, together, strict=True):
        np.testing.assert_array_equal(got, expected)


@SUITE.check
def the_overview_is_the_mean_under_each_pixel(case: Case) -> None:
    """The same mean colour, in each quarter, as the pixels themselves."""
    slide = case.thing
    width, height = slide.info.size_px0
    for downsample in (2.0, 3.3, 16.0):
        picture = slide.overview(downsample)
        assert picture.dtype == np.uint8
        size = Size(max(1, round(width / downsample)), max(1, round(height / downsample)))
        assert picture.shape == (size.h, size.w, 3)
        fine = [i for i, level in enumerate(slide.info.levels) if level.downsample <= downsample]
        full = _whole(slide, fine[-1]).astype(float)
        for rows in _halves(full.shape[0]):
            for columns in _halves(full.shape[1]):
                y = slice(*(round(v * size.h / full.shape[0]) for v in rows))
                x = slice(*(round(v * size.w / full.shape[1]) for v in columns))
                part, under = picture[y, x], full[slice(*rows), slice(*columns)]
                np.testing.assert_allclose(
                    part.mean((0, 1)), under.mean((0, 1)), atol=4 + 255 / part.shape[0]
                )


def _halves(length: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, length // 2), (length // 2, length)


@SUITE.check
def an_overview_below_one_is_refused(case: Case) -> None:
    """A slide has no more pixels than it has."""
    for downsample in (0.5, 0.0, -1.0, float("nan")):
        refuses(UsageError, "downsample", case.thing.overview, downsample)


@SUITE.check
def native_jpeg_is_absent_or_has_the_grid_of_its_level(case: Case) -> None:
    """Tiles that are copied as they are must be those of the level."""
    slide = case.thing
    for level, facts in enumerate(slide.info.levels):
        tiles = slide.native_jpeg(level)
        if tiles is None:
            continue
        assert slide.info.codec == "jpeg"
        assert tiles.tile_px == facts.native_tile_px
        for axis in (0, 1):
            assert tiles.grid[axis] == -(-facts.size_px[axis] // tiles.tile_px[axis])
        stream = tiles.stream(tiles.grid.w - 1, tiles.grid.h - 1)
        assert stream is not None
        assert stream[:2] == b"\xff\xd8"
        assert stream[-2:] == b"\xff\xd9"
        refuses(IndexError, "", tiles.stream, tiles.grid.w, 0)
    assert slide.native_jpeg(len(slide.info.levels)) is None


@SUITE.check
def closing_twice_is_allowed_and_frees_the_file(case: Case) -> None:
    """Thousands of slides are opened by one process."""
    path = Path(case.sample.settings["path"])
    if path.is_file():
        path = Path(shutil.copy(path, case.folder / path.name))
    before = _n_open(path)
    with open_slide(str(path), reader=case.name) as slide:
        slide.read(0, Box(0, 0, 10, 10))
        slide.close()
    assert _n_open(path) == before


def _n_open(path: Path) -> int:
    """Count how often this process has a file open, where the system tells."""
    if not Path("/proc/self/fd").is_dir():
        return 0
    links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return [os.readlink(link) for link in links if os.path.lexists(link)].count(str(path))  # noqa: PTH115


@SUITE.check
def rubbish_is_a_slide_error(case: Case) -> None:
    """The message names the file."""
    for content in _RUBBISH:
        path = case.folder / f"rubbish{case.plugin.suffixes[0]}"
        path.write_bytes(content)
        refuses(SlideError, path.name, lambda file: open_slide(file, reader=case.name), str(path))
