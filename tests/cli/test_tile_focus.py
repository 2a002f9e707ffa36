"""`cytofm tile --focus` as a user runs it, and what the later steps make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytofm_cli.errors import SlideError
from cytofm_cli.slides.open import open_slide
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.tiles.canvas import open_canvases
from cytofm_cli.tiles.field import open_field
from cytofm_cli.tiles.shown import FusedReader
from cytofm_cli.tiles.source import open_tiles
from cytofm_cli.units import Box

from ..nodes import put_node  # noqa: TID252 - the folders are no packages
from ..tiles.stacks import stack_of, write_stack  # noqa: TID252 - the folders are no packages

pytestmark = pytest.mark.slow

TILE = 128
HOW = ("--foreground", "none", "--tile-px", TILE, "-q")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A stack of three planes, 384 x 256 px, each sharp in its column."""
    (tmp_path / "slides").mkdir()
    return Path(write_stack(tmp_path / "slides" / "a.ome.tif", stack_of(256), levels=2))


def tiled(cytofm, slide: Path, *words: object, out: str = "stores") -> Store:
    folder = slide.parents[1] / out
    done = cytofm("tile", slide, "-o", folder, *HOW, *words)
    assert done.returncode == 0, done.stderr
    return open_store(folder / "a.zarr")


def whole(reader) -> np.ndarray:
    return reader.read(0, Box(0, 0, 384, 256))


def tiles_of(store: Store) -> np.ndarray:
    with open_tiles(store) as tiles:
        return np.stack([tiles.read(row) for row in range(len(tiles.xy_px0))])


def cut(image: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return np.stack([image[y : y + TILE, x : x + TILE] for x, y in xy.tolist()])


def test_best__each_tile_is_of_its_sharpest_plane_and_the_store_says_which(cytofm, slide) -> None:
    store = tiled(cytofm, slide)
    column = store.tile_xy_px0[:, 0] // TILE
    tiles = store.tiles()
    assert tiles.plane is not None
    np.testing.assert_array_equal(tiles.plane, column)
    focus_NP, detail_NP = store.read("tiles/plane_focus"), store.read("tiles/plane_detail")
    assert focus_NP.shape == detail_NP.shape == (6, 3)
    np.testing.assert_array_equal(tiles.focus, focus_NP[np.arange(6), column])
    np.testing.assert_array_equal(detail_NP.argmax(1), column)
    assert (store.tile.focus, store.tile.config["focus"]) == ("best", "best")
    assert store.slide.planes_um == (0, 1.5, 3)
    stack = stack_of(256)
    for row, (tile, plane) in enumerate(zip(tiles_of(store), column.tolist(), strict=True)):
        np.testing.assert_array_equal(tile, cut(stack[plane], store.tile_xy_px0[row : row + 1])[0])


@pytest.mark.parametrize("focus", ["best", "fuse", "plane:2"])
def test_store_without_pixels__gives_every_step_the_same_ones(cytofm, slide, focus) -> None:
    kept = tiled(cytofm, slide, "--focus", focus)
    bare = tiled(cytofm, slide, "--focus", focus, "--pixels", "none", out="bare")
    np.testing.assert_array_equal(tiles_of(kept), tiles_of(bare))
    box = Box(100, 50, 200, 180)
    with open_field(kept) as one, open_field(bare) as other:
        np.testing.assert_array_equal(one.read(box), other.read(box))
    with open_canvases(kept) as one, open_canvases(bare) as other:
        for row, margin in ((0, 0), (1, 30), (4, 16)):
            np.testing.assert_array_equal(one.read(row, margin), other.read(row, margin))


def test_fuse__tiles_of_every_grid_are_cut_from_one_picture(cytofm, slide) -> None:
    with open_slide(str(slide)) as opened:
        picture = whole(FusedReader(opened, 0.25))
    store = tiled(cytofm, slide, "--focus", "fuse")
    np.testing.assert_array_equal(tiles_of(store), cut(picture, store.tile_xy_px0))
    other = tiled(cytofm, slide, "--focus", "fuse", "--stride-px", 37, out="other")
    assert len(other.tile_xy_px0) == 40
    np.testing.assert_array_equal(tiles_of(other), cut(picture, other.tile_xy_px0))
    assert store.tile.focus == "fuse"
    np.testing.assert_array_equal(store.tiles().plane, store.tile_xy_px0[:, 0] // TILE)


@pytest.mark.parametrize("junk", [b"\0", b"\x5a"], ids=str)
def test_fuse__damaged_data_of_a_plane_that_is_shown_are_blank_and_counted(
    cytofm, tmp_path, junk
) -> None:
    """No marker tells: the tile decodes, to grey or to a smear."""
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "a.ome.tif"
    planes = stack_of(640, width=640)
    write_stack(path, planes, compression="jpeg", compressionargs={"level": 90})
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]  # plane 0 is sharp in column 0
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    whole_store = tiled(cytofm, path, "--focus", "fuse", out="whole")
    with path.open("r+b") as handle:
        handle.seek(offset + count // 2)
        handle.write((junk * count)[: count // 2 - 2])
    with open_slide(str(path)) as opened:
        fused = FusedReader(opened, 0.25)
        with pytest.raises(SlideError, match="damaged JPEG tile at column 0, row 0"):
            fused.read(0, Box(0, 0, 64, 64))
        assert fused.read(0, Box(256, 256, 64, 64)).std() > 5
    store = tiled(cytofm, path, "--focus", "fuse")
    assert store.tile.n_damaged == 1
    assert whole_store.tile.n_damaged == 0
    tiles = tiles_of(store)
    assert (tiles[0] == 255).all()
    np.testing.assert_array_equal(tiles[2:], tiles_of(whole_store)[2:])


def test_plane__is_read_alone(cytofm, slide) -> None:
    store = tiled(cytofm, slide, "--focus", "plane:0")
    np.testing.assert_array_equal(tiles_of(store), cut(stack_of(256)[0], store.tile_xy_px0))
    assert (store.tile.focus, store.slide.focal_plane) == ("plane:0", 0)
    assert store.tiles().plane.tolist() == [0] * 6
    assert not store.has("tiles/plane_focus")


def test_best__copies_the_jpeg_tiles_of_each_plane(cytofm, tmp_path) -> None:
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "a.ome.tif"
    write_stack(path, stack_of(256), compression="jpeg", compressionargs={"level": 90})
    store = tiled(cytofm, path)
    assert store.tile.store_codec == "source jpeg"
    with tifffile.TiffFile(path) as file:
        decoded = [page.asarray() for page in file.pages]
    for row, (x, y) in enumerate(store.tile_xy_px0.tolist()):
        np.testing.assert_array_equal(
            tiles_of(store)[row], decoded[x // TILE][y : y + TILE, x : x + TILE]
        )


def test_again__is_skipped_and_another_focus_is_refused(cytofm, slide) -> None:
    tiled(cytofm, slide)
    folder = slide.parents[1] / "stores"
    again = cytofm("tile", slide, "-o", folder, *HOW, "--json")
    assert json.loads(again.stdout)["status"] == "skipped"
    other = cytofm("tile", slide, "-o", folder, *HOW, "--focus", "fuse")
    assert other.returncode == 2
    assert "focus: 'best' → 'fuse'" in other.stderr


def test_old_store_of_the_middle_plane__is_known_as_such(cytofm, slide) -> None:
    store = tiled(cytofm, slide, "--focus", "plane:1")
    root = store.path / "zarr.json"
    content = json.loads(root.read_text())
    record = content["attributes"]["cytofm"]["steps"]["tile"]
    for words in (record, record["config"], record["asked"]):
        words.pop("focus")
    put_node(root, content)
    (store.path / "tiles" / "plane").rename(store.path.parent / "gone")
    old = open_store(store.path)
    assert old.tiles().plane is None
    with open_field(old) as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, 384, 256)), stack_of(256)[1])
    same = cytofm("tile", slide, "-o", store.path.parent, *HOW, "--focus", "plane:1", "--json")
    assert json.loads(same.stdout)["status"] == "skipped"
    best = cytofm("tile", slide, "-o", store.path.parent, *HOW)
    assert "focus: 'plane:1' → 'best'" in best.stderr


def test_slide_of_one_plane__is_tiled_whatever_the_focus_and_is_told(cytofm, slide) -> None:
    one = slide.with_name("one.tif")
    tifffile.imwrite(one, stack_of(256)[0], photometric="rgb", tile=(64, 64))
    folder = slide.parents[1]
    words = (*HOW[:-1], "--slide-mpp", 0.25)
    plain = cytofm("tile", one, "-o", folder / "plain", *words)
    told = cytofm("tile", one, "-o", folder / "told", *words, "--focus", "plane:3")
    assert (plain.returncode, told.returncode) == (0, 0)
    assert "focus" not in plain.stderr
    assert "one: has one focal plane: --focus plane:3 changes nothing" in told.stderr
    first, second = (folder / name / "one.zarr" for name in ("plain", "told"))
    files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
    assert not any("plane" in str(path) for path in files)
    for path in files:
        if path.name != "zarr.json":  # holds what was asked for, and when
            assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_bad_input__is_one_clear_line(cytofm, slide) -> None:
    outside = cytofm("tile", slide, "-o", slide.parents[1] / "x", *HOW, "--focus", "plane:3")
    assert outside.returncode == 3
    assert "no focal plane 3; it has 3. Hint: planes count from 0 to 2" in outside.stderr
    word = cytofm("tile", slide, "-o", slide.parents[1] / "x", *HOW, "--focus", "sharp")
    assert word.returncode == 2
    assert "--focus sharp: choose best, fuse or plane:K. Hint: planes count from 0" in word.stderr
    with tifffile.TiffFile(slide, mode="r+b") as file:
        file.pages[2].tags["ImageWidth"].overwrite(200)
    sizes = cytofm("tile", slide, "-o", slide.parents[1] / "x", *HOW)
    assert sizes.returncode == 3
    assert "plane 2 is 200 x 256 px, plane 1 is 384 x 256 px" in sizes.stderr
