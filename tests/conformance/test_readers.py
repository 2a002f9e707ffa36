"""What every slide reader must do, run on every plug-in in the folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import SlideError, UsageError
from cytofm_cli.registry import Plugin, readers
from cytofm_cli.slides.base import SlideReader
from cytofm_cli.slides.open import open_slide
from cytofm_cli.units import Box, Size

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "wsi"
TILED = {"tile": True, "tile_width": 128, "tile_height": 128, "pyramid": True}
MADE = {
    "jpeg.tif": (Size(768, 512), {**TILED, "compression": "jpeg", "Q": 80, "xres": 4000}),
    "odd.tif": (Size(701, 523), {**TILED, "compression": "jpeg", "Q": 80, "bigtiff": True}),
    "lzw.tif": (Size(512, 256), {**TILED, "compression": "lzw"}),
    "subifd.tif": (Size(600, 400), {**TILED, "compression": "deflate", "subifd": True}),
    "strips.tif": (Size(300, 200), {"compression": "deflate"}),
    "field.png": (Size(301, 203), {}),
    "field.jpg": (Size(301, 203), {}),
}
FOUND = ("cmu-1-small-region.svs", "test3-DAPI-2-(387).ndpi", "dicom_jpeg/jpeg.dicom", "boxes.tiff")
# What each plug-in is run on; one that is not named here gets everything.
READS = {
    "openslide": ("jpeg.tif", "odd.tif", "lzw.tif", *FOUND),
    "tiffslide": ("jpeg.tif", "odd.tif", "lzw.tif", "subifd.tif", "strips.tif", FOUND[0]),
    "tifffile": (*(name for name in MADE if name.endswith(".tif")), FOUND[0], FOUND[3]),
    "vips": (*MADE, FOUND[0], FOUND[3]),
}
PAIRS = [
    pytest.param(
        (reader, sample),
        marks=[] if sample in MADE else pytest.mark.needs_shared(f"data/wsi/{sample}"),
    )
    for reader in readers.names()
    for sample in READS.get(reader, (*MADE, *FOUND))
]


def cells(size: Size) -> np.ndarray:
    """Draw discs on a gradient: edges, smooth parts and noise."""
    rng = np.random.default_rng(size.w)
    y, x = np.mgrid[: size.h, : size.w]
    picture = np.stack([200 + 40 * x / size.w, 220 - 30 * y / size.h, 230 + 0 * x], axis=-1)
    for cx, cy, radius in zip(*rng.uniform(0, 1, (2, 40)), rng.uniform(4, 20, 40), strict=True):
        disc = (x - cx * size.w) ** 2 + (y - cy * size.h) ** 2 < radius**2
        picture[disc] = rng.uniform(40, 180, 3)
    return np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for name, (size, options) in MADE.items():
        pyvips.Image.new_from_array(cells(size)).write_to_file(str(folder / name), **options)
    return folder


def sample_path(folder: Path, sample: str) -> str:
    return str(folder / sample if sample in MADE else SHARED / sample)


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def slide(request: pytest.FixtureRequest, folder: Path):
    reader, sample = request.param
    path = sample_path(folder, sample)
    refusal = readers.load(reader).make().probe(path)
    if refusal and reader not in READS:
        pytest.skip(f"{reader} leaves {sample} to others: {refusal}")
    assert refusal is None
    opened = open_slide(path, reader=reader)
    yield opened
    opened.close()


def whole(slide: SlideReader, level: int) -> np.ndarray:
    return slide.read(level, Box(0, 0, *slide.info.levels[level].size_px))


def assert_same(slide: SlideReader, level: int, got: np.ndarray, expected: np.ndarray) -> None:
    """OpenSlide interpolates at levels whose downsample is no whole number: close, not equal."""
    if slide.info.reader == "openslide" and slide.info.levels[level].downsample % 1:
        assert got.shape == expected.shape
        assert abs(got.astype(float).mean() - expected.astype(float).mean()) < 30
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", readers.names())
def test_plugin__exports_what_the_registry_needs(name: str, folder: Path) -> None:
    plugin = readers.load(name)
    assert isinstance(plugin, Plugin)
    assert plugin.summary
    probe = plugin.make().probe
    assert any(probe(str(folder / sample)) is None for sample in MADE), "reads no sample at all"


def test_info__levels_fall_and_downsample_is_their_ratio(slide: SlideReader) -> None:
    info = slide.info
    assert isinstance(slide, SlideReader)
    assert info.reader in readers.names()
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


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_read__equals_the_crop_of_the_whole(slide: SlideReader, data: st.DataObject) -> None:
    level = data.draw(st.integers(0, len(slide.info.levels) - 1), label="level")
    width, height = slide.info.levels[level].size_px
    x = data.draw(st.integers(0, width - 1), label="x")
    y = data.draw(st.integers(0, height - 1), label="y")
    w = data.draw(st.integers(1, min(300, width - x)), label="w")
    h = data.draw(st.integers(1, min(300, height - y)), label="h")
    got = slide.read(level, Box(x, y, w, h))
    assert got.dtype == np.uint8
    assert got.shape == (h, w, 3)
    # Not the whole level but a frame around the box, so that large slides stay cheap.
    left, top = max(0, x - 37), max(0, y - 37)
    right, bottom = min(width, x + w + 37), min(height, y + h + 37)
    frame = slide.read(level, Box(left, top, right - left, bottom - top))
    assert_same(slide, level, got, frame[y - top : y - top + h, x - left : x - left + w])


def test_read__edges_and_single_pixels(slide: SlideReader) -> None:
    level = len(slide.info.levels) - 1
    all_px = whole(slide, level)
    width, height = slide.info.levels[level].size_px
    for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
        assert_same(slide, level, slide.read(level, Box(x, y, 1, 1)), all_px[y : y + 1, x : x + 1])


def test_read__box_that_leaves_the_level_is_refused(slide: SlideReader) -> None:
    width, height = slide.info.size_px0
    for box in (
        Box(-1, 0, 5, 5),
        Box(0, -1, 5, 5),
        Box(width - 4, 0, 5, 5),
        Box(0, height - 4, 5, 5),
        Box(0, 0, 0, 5),
        Box(0, 0, width + 1, 1),
    ):
        with pytest.raises(UsageError, match="is not inside"):
            slide.read(0, box)
    for level in (-1, len(slide.info.levels)):
        with pytest.raises(UsageError, match="no level"):
            slide.read(level, Box(0, 0, 1, 1))


def test_read__threads_get_the_same_pixels(slide: SlideReader) -> None:
    width, height = slide.info.size_px0
    rng = np.random.default_rng(0)
    w, h = min(130, width), min(90, height)
    boxes = [
        Box(int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h)
        for _ in range(24)
    ]
    alone = [slide.read(0, box) for box in boxes]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda box: slide.read(0, box), boxes))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("downsample", [2.0, 3.3, 16.0])
def test_overview__is_the_mean_under_each_pixel(slide: SlideReader, downsample: float) -> None:
    width, height = slide.info.size_px0
    picture = slide.overview(downsample)
    assert picture.dtype == np.uint8
    assert picture.shape == (
        max(1, round(height / downsample)),
        max(1, round(width / downsample)),
        3,
    )
    # The same mean colour, in each quarter, as the pixels themselves.
    level = next(
        i
        for i, each in reversed(list(enumerate(slide.info.levels)))
        if each.downsample <= max(downsample, 1)
    )
    full = whole(slide, level).astype(float)
    for rows in (slice(None, full.shape[0] // 2), slice(full.shape[0] // 2, None)):
        for columns in (slice(None, full.shape[1] // 2), slice(full.shape[1] // 2, None)):
            scale_y, scale_x = picture.shape[0] / full.shape[0], picture.shape[1] / full.shape[1]
            part = picture[
                slice(*[v and round(v * scale_y) for v in (rows.start, rows.stop)]),
                slice(*[v and round(v * scale_x) for v in (columns.start, columns.stop)]),
            ]
            np.testing.assert_allclose(
                part.mean((0, 1)), full[rows, columns].mean((0, 1)), atol=4 + 255 / part.shape[0]
            )


def test_overview__below_one_is_refused(slide: SlideReader) -> None:
    for downsample in (0.5, 0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="downsample"):
            slide.overview(downsample)


def test_native_jpeg__is_absent_or_has_the_grid_of_its_level(slide: SlideReader) -> None:
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
        with pytest.raises(IndexError):
            tiles.stream(tiles.grid.w, 0)
    assert slide.native_jpeg(len(slide.info.levels)) is None


@pytest.mark.parametrize("reader", readers.names())
def test_close__twice_is_allowed_and_frees_the_file(reader: str, folder: Path) -> None:
    path = str(folder / "jpeg.tif")
    slide = open_slide(path, reader=reader)
    slide.read(0, Box(0, 0, 10, 10))
    slide.close()
    slide.close()
    if Path("/proc/self/fd").is_dir():
        links = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]  # noqa: PTH208
        assert path not in [os.readlink(link) for link in links if os.path.lexists(link)]  # noqa: PTH115


@pytest.mark.parametrize("reader", readers.names())
@pytest.mark.parametrize(
    "content", [b"", b"not a slide", b"II*\0\xff\xff\xff\xff", b"\xff\xd8\xff\xe0"]
)
def test_open__rubbish_is_a_slide_error(reader: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rubbish.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError, match=r"rubbish\.svs"):
        open_slide(str(path), reader=reader)
