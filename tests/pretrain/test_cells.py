"""Cells as instances: what `--unit cell` reads, and slots in a row for one slide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

import cytofm_cli as cytofm
from cytofm_cli.errors import InputError
from cytofm_cli.pretrain.data import Schedule, open_index
from cytofm_cli.views.ncp import PRESETS, NcpConfig

NCP = PRESETS["safe"]


def test_cells__a_square_around_each_nucleus_across_the_borders_of_tiles(make_store):
    path = make_store("a", 3, nuclei=[(32, 32), (64, 30), (190, 2)])  # 64 px tiles, 0.5 µm/px
    index = open_index([path], cell_um=10.0)
    assert (index.unit, index.n_tiles, index.tile_px, index.n_without_nuclei) == ("cell", 3, 20, 0)
    batch = index.read([0, 1, 2], NCP)
    level = batch.tile_BCHW[:, 0].numpy()
    assert level.shape == (3, 20, 20)
    tiles = open_index([path], need_nuclei=False).read([0, 1, 2], PRESETS["none"]).tile_BCHW
    whole = np.concatenate(tiles.numpy(), axis=2)
    assert np.array_equal(batch.tile_BCHW[0], whole[:, 22:42, 22:42])
    assert np.array_equal(batch.tile_BCHW[1], whole[:, 20:40, 54:74])  # over a seam
    corner = batch.tile_BCHW[2].numpy()  # beyond the edge: the fill
    assert np.array_equal(corner[:, 8:, :12], whole[:, :12, 180:192])
    assert (corner[:, :8] == 255).all() and (corner[:, :, 12:] == 255).all()


def test_cells__have_one_nucleus_in_their_middle(make_store):
    path = make_store("a", 3, nuclei=[(30, 30), (36, 30)], polygons=True)
    index = open_index([path], cell_um=20.0)
    batch = index.read([1, 0], NcpConfig(region="boundary"))
    assert batch.valid_BM.tolist() == [[True], [True]]
    assert np.abs(batch.xy_BM2 - 19.5).max() <= 0.5
    label = batch.label_BHW.numpy()
    # The neighbour, 6 px away and painted in a tile's label map, counts as background.
    assert sorted(np.unique(label)) == [0, 1]
    rows, columns = np.nonzero(label[0])
    assert abs(columns.mean() - 19.5) <= 0.5 and abs(rows.mean() - 19.5) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_cells__are_the_same_from_the_store_and_from_the_slide(tmp_path, mpp):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = coarse.repeat(16, 0).repeat(16, 1)
    (tmp_path / "slides").mkdir()
    image = pyvips.Image.new_from_array(picture)
    image.copy(xres=4000, yres=4000).tiffsave(str(tmp_path / "slides" / "a.tif"))  # 0.25 µm/px
    centres = np.array([[200.0, 100.0], [130.0, 250.0], [500.0, 380.0]])
    stores = [real_store(tmp_path, pixels, mpp, centres) for pixels in ("lossless", "none")]
    kept, read = (open_index([store], cell_um=16.0).read([0, 1, 2], NCP) for store in stores)
    difference = kept.tile_BCHW.float() - read.tile_BCHW.float()
    if mpp == 0.25:
        assert not difference.any()
    else:  # resampled around other points: edges of the picture's blocks differ
        assert difference.abs().mean() < 12
    assert np.array_equal(kept.xy_BM2, read.xy_BM2)


def real_store(tmp_path: Path, pixels: str, mpp: float, centres: np.ndarray) -> Path:
    out = tmp_path / pixels
    points = tmp_path / "nuclei.csv"
    points.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in centres.tolist()))
    for words in (
        ["tile", str(tmp_path / "slides"), "-o", str(out), "--tile-px", "64", "--mpp", str(mpp),
         "--foreground", "none", "--pixels", pixels],
        ["detect", str(out), "--detector", "import", "--weights", str(points)],
    ):  # fmt: skip
        # In a process of its own: it forks, and this one has threads.
        command = [sys.executable, "-m", "cytofm_cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return out / "a.zarr"


def test_cells__slides_without_nuclei_are_left_out_and_none_at_all_is_an_error(make_store):
    empty, some = make_store("e", 2, nuclei=[]), make_store("s", 2, nuclei=[(9, 9)])
    index = open_index([empty, some], cell_um=8.0)
    assert [slide.slide_id for slide in index.slides] == ["s"]
    with pytest.raises(InputError, match="found no nuclei") as found:
        open_index([empty], cell_um=8.0)
    assert "--unit tile" in str(found.value.hint)


def test_cells__images_of_cells_go_with_the_nuclei_of_one_detector(make_store, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "cells").mkdir()
    for name in ("one", "two"):
        picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "cells" / f"{name}.png")
    cytofm.tile([], tmp_path / "stores", cells=tmp_path / "cells", slide_mpp=0.5, mpp=0.5)
    given = tmp_path / "stores" / "cells.zarr"
    found = make_store("a", 3, nuclei=[(32, 32), (64, 30)])  # tiles of 64 px, not of 48
    index = open_index([found, given], cell_um=10.0)
    assert [slide.n_tiles for slide in index.slides] == [2, 2]
    assert index.detector != "given"
    with pytest.raises(InputError, match="tiles of 64 px in"):
        open_index([found, given])


def test_per_slide__slots_of_one_slide_come_in_a_row():
    sizes = (5, 3, 40)
    plan = Schedule(["a", "b", "c"], sizes, 0, "slides", per_slide=4)
    tiles, keys = plan.at(np.arange(120))
    slide = np.searchsorted(np.cumsum(sizes), tiles, side="right").reshape(-1, 4)
    assert (slide == slide[:, :1]).all()
    assert (np.sort(slide[:, 0].reshape(-1, 3), axis=1) == [0, 1, 2]).all()
    first = np.cumsum([0, *sizes])
    for number, size in enumerate(sizes):  # full permutations, one after the other
        own = tiles[slide.ravel() == number]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size] - first[number]) == list(range(size))
    assert len(np.unique(keys)) == 120


def test_per_slide__one_is_the_plain_order():
    plain = Schedule(["a", "b"], (5, 3), 0, "slides").at(np.arange(40))
    one = Schedule(["a", "b"], (5, 3), 0, "slides", per_slide=1).at(np.arange(40))
    assert all(map(np.array_equal, plain, one))


def test_other_nuclei_with_equal_settings__are_another_input(make_store):
    """A run goes on only with what it began with; its config.toml has the digest."""
    digests = []
    for folder, nuclei in (("a", "middle"), ("b", "middle"), ("c", [(30.0, 30.0)])):
        path = make_store("s", 2, nuclei=nuclei, folder=folder)
        digests.append(open_index([path]).facts()["digest"])
    assert digests[0] == digests[1] != digests[2]
