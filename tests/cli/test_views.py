"""`cytofm views`: what a dump holds, the contact sheet, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from cytofm_cli.cli.options import SlideOptions
from cytofm_cli.cli.views import views
from cytofm_cli.errors import ConfigMismatchError, StoreError, UsageError
from cytofm_cli.nuclei.base import make_table
from cytofm_cli.store.io import Store, open_store
from cytofm_cli.tiles.canvas import open_canvases
from cytofm_cli.tiles.origin import plan_of
from cytofm_cli.tiles.read import ReadPlan
from cytofm_cli.tiles.source import open_tiles
from cytofm_cli.views.config import ViewsConfig
from cytofm_cli.views.draws import sample_keys
from cytofm_cli.views.make import make_views
from cytofm_cli.views.preview import preview
from cytofm_cli.views.recipes import ncp_of, recipe_of
from cytofm_cli.views.run import ViewsJob, dump_views
from cytofm_cli.views.sheet import to_rgb
from cytofm_cli.views.stored import TileNuclei, read_batch, tile_keys

from ..nodes import put_node  # noqa: TID252 - of all tests

SMALL = ("--global-px", 64, "--local-px", 32, "--n-local", 2)
CONFIG = ViewsConfig(global_px=64, local_px=32, n_local=2)


@pytest.fixture(scope="module")
def two(detected, tmp_path_factory) -> Path:
    """Return copies of two of the stores with nuclei."""
    folder = tmp_path_factory.mktemp("two")
    for path in sorted(detected.glob("*.zarr"))[:2]:
        shutil.copytree(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def dumped(cytofm, two, tmp_path_factory) -> Path:
    """Return a folder of dumps of those stores."""
    folder = tmp_path_factory.mktemp("views")
    made = cytofm("views", two, "-o", folder, *SMALL)
    assert made.returncode == 0, made.stderr
    assert [Path(line).name for line in sorted(made.stdout.splitlines())] == [
        f"{path.stem}.views.zarr" for path in sorted(two.glob("*.zarr"))
    ]
    return folder


def _contents(folder: Path) -> dict[str, np.ndarray]:
    return {name: array[...] for name, array in zarr.open_group(folder, mode="r").arrays()}


def _first(folder: Path) -> Path:
    return sorted(folder.glob("*.zarr"))[0]


def test_dump__equals_make_views_of_each_tile_alone(two, dumped):
    store: Store = open_store(_first(two))
    got = _contents(dumped / f"{store.slide_id}.views.zarr")
    recipe, ncp, plan = recipe_of(CONFIG), ncp_of(CONFIG), plan_of(store)
    table = store.nuclei()
    nuclei = TileNuclei(table, store.read("tiles/xy_px0"), plan)
    n_tiles = store.tile.n_tiles
    assert n_tiles > 8  # more than one batch
    assert got["tile"].tolist() == list(range(n_tiles))
    assert sorted(got) == sorted(
        [f"view_{v:02d}" for v in range(4)]
        + ["tile", "boxes_px", "centres_px", "clean", "nucleus_start", "nucleus", "kept"]
    )
    shift = [64, 64, 0, 0]  # a quarter of the tile on every side
    with open_canvases(store) as source:
        for tile in (0, 9, n_tiles - 1):
            one = read_batch(source, nuclei, [tile], ncp, 64)
            assert one.tile_BCHW.shape == (1, 3, 384, 384)
            assert one.label_BHW is not None  # the classical detector draws outlines
            expected = make_views(
                one.tile_BCHW, one.xy_BM2, one.valid_BM, recipe=recipe, ncp=ncp, mpp=plan.mpp,
                keys_B=tile_keys(0, store.slide_id, [tile]), label_BHW=one.label_BHW,
                margin_px=64,
            )  # fmt: skip
            for v, view in enumerate(expected.views):
                np.testing.assert_array_equal(got[f"view_{v:02d}"][tile], to_rgb(view[0], recipe))
            np.testing.assert_array_equal(got["boxes_px"][tile], expected.plan.boxes_BV4[0] - shift)
            np.testing.assert_array_equal(got["clean"][tile], expected.plan.clean_BV[0])
            centre = expected.plan.centre_BV2[0] - 64
            np.testing.assert_allclose(got["centres_px"][tile], centre, atol=1e-4)
            mine = slice(*got["nucleus_start"][tile : tile + 2])
            np.testing.assert_array_equal(got["nucleus"][mine], one.rows[0])
            np.testing.assert_array_equal(got["kept"][mine].T, expected.plan.kept_BVM[0])


def test_dump__nuclei_and_centres_agree_with_the_store(two, dumped):
    store = open_store(_first(two))
    got = _contents(dumped / f"{store.slide_id}.views.zarr")
    xy_px0 = store.read("nuclei/classical/xy_px0")
    corner = store.read("tiles/xy_px0")
    low, high = corner[:, None] - 64, corner[:, None] + 320  # with what views may show around
    near = ((xy_px0[None] >= low) & (xy_px0[None] < high)).all(-1)
    within = ((xy_px0[None] >= low + 64) & (xy_px0[None] < high - 64)).all(-1)
    np.testing.assert_array_equal(np.diff(got["nucleus_start"]), near.sum(1))
    for tile in range(len(corner)):
        mine = slice(*got["nucleus_start"][tile : tile + 2])
        own, around = np.flatnonzero(within[tile]), np.flatnonzero(near[tile] & ~within[tile])
        np.testing.assert_array_equal(got["nucleus"][mine], [*own, *around])
        for v in range(4):
            kept = np.intersect1d(got["nucleus"][mine][got["kept"][mine, v] == 1], own)
            centre = got["centres_px"][tile, v]
            if not len(kept):
                assert np.isnan(centre).all() and got["clean"][tile, v]
                continue
            distance = np.abs(xy_px0[kept] - corner[tile] - 0.5 - centre).max(1)
            assert distance.min() < 1e-3  # a view is centred on a nucleus that survives


def test_dump__attributes_say_where_it_comes_from(two, dumped):
    store = open_store(_first(two))
    group = zarr.open_group(dumped / f"{store.slide_id}.views.zarr", mode="r")
    record = group.attrs["cytofm_views"]
    assert record["config"]["preset"] == "safe"
    assert record["config"]["redraw"] == "view"  # the preset is spelt out
    assert record["config"]["detector"] == "classical"
    assert record["n_tiles"] == store.tile.n_tiles
    assert record["mpp"] == pytest.approx(0.25)


def _job(path: Path, folder: Path, **changes: Any) -> ViewsJob:
    config = dataclasses.replace(CONFIG, **changes.pop("config", {}))
    return ViewsJob(slide_id=path.stem, path=str(path), folder=folder, config=config, **changes)


def _dump(job: ViewsJob) -> tuple[str, dict[str, Any], list[str]]:
    notes: list[str] = []
    return *dump_views(job, lambda done, total: None, notes.append), notes


def test_dump__is_the_same_alone_and_in_threads(two, dumped, tmp_path):
    path = _first(two)
    assert _dump(_job(path, tmp_path, threads=2))[0] == "done"
    name = f"{path.stem}.views.zarr"
    before, after = _contents(dumped / name), _contents(tmp_path / name)
    for key, values in before.items():
        np.testing.assert_array_equal(values, after[key], err_msg=key)
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing staged or claimed is left


def test_dump__skips_what_is_done_and_refuses_other_settings(two, dumped, tmp_path):
    path = _first(two)
    name = f"{path.stem}.views.zarr"
    shutil.copytree(dumped / name, tmp_path / name)
    assert _dump(_job(path, tmp_path))[0] == "skipped"
    with pytest.raises(ConfigMismatchError, match="seed: 0 → 1"):
        _dump(_job(path, tmp_path, seed=1))
    status, facts, _ = _dump(_job(path, tmp_path, seed=1, overwrite=True, max_tiles=3))
    assert (status, facts["n_tiles"], facts["n_views"]) == ("done", 3, 4)
    new, old = _contents(tmp_path / name), _contents(dumped / name)
    assert new["view_00"].shape == (3, 64, 64, 3)
    assert not np.array_equal(new["view_00"][0], old["view_00"][new["tile"][0]])
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_dump__tiles_without_nuclei_are_counted_or_left_out(cytofm, two, tmp_path):
    store = open_store(_first(two))
    path = Path(shutil.copytree(store.path, tmp_path / store.path.name))
    corner = store.read("tiles/xy_px0")
    points = tmp_path / "points.csv"
    # In the first tile and in no other: 100.5 is the centre of pixel 100.
    points.write_text("x,y\n{},{}\n".format(*(corner[0] + 100.5)))
    found = cytofm("detect", path, "--detector", "import", "--weights", points)
    assert found.returncode == 0, found.stderr
    with pytest.raises(StoreError, match="nuclei of 2 detectors"):
        _dump(_job(path, tmp_path / "plain"))
    bare = len(corner) - 1
    plain = _dump(_job(path, tmp_path / "plain", detector="imported"))
    assert f"{bare} without nuclei have plain views" in plain[2][0]
    assert (plain[1]["n_tiles"], plain[1]["n_without_nuclei"]) == (bare + 1, bare)
    only = {"without_nuclei": "drop"}
    drop = _dump(_job(path, tmp_path / "drop", detector="imported", config=only))
    assert f"{bare} without nuclei left out" in drop[2][0]
    made = _contents(tmp_path / "drop" / f"{store.slide_id}.views.zarr")
    assert made["tile"].tolist() == [0]
    np.testing.assert_allclose(made["centres_px"][0], 100.0)
    with pytest.raises(UsageError, match="outlines"):
        _dump(_job(path, tmp_path / "b", detector="imported", config={"region": "boundary"}))
    assert not list(tmp_path.glob("b/*"))


@pytest.mark.slow
def test_preview__is_a_picture_and_the_same_twice(cytofm, two, tmp_path):
    words = ("--preview", 2, "--preset", "paper", "--seed", 3, *SMALL)
    made = cytofm("views", two, "-o", tmp_path, *words, "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    file = tmp_path / "preview-dino-paper.png"
    assert said["preview"] == str(file) and list(tmp_path.iterdir()) == [file]  # no dump
    config = dataclasses.replace(CONFIG, preset="paper")
    sheet, shown = preview(sorted(two.glob("*.zarr")), 2, config=config, seed=3)
    assert said["tiles"] == [dataclasses.asdict(tile) for tile in shown] and len(shown) == 2
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert picture.shape == sheet.shape and sheet.shape[0] > 2 * 256
    # 256 colours of a stained field: off by some levels, not by a nucleus.
    assert np.abs(picture.astype(int) - sheet).mean() < 8


def test_preview__draws_lots_and_keeps_the_order_of_the_stores(two):
    paths = sorted(two.glob("*.zarr"))
    _, few = preview(paths, 3, config=CONFIG)
    _, more = preview(paths[::-1], 5, config=CONFIG)
    chosen, others = ([(tile.slide_id, tile.tile) for tile in shown] for shown in (few, more))
    assert set(chosen) < set(others)  # the same lots, in any order of the stores
    assert chosen == sorted(chosen) and others != sorted(others)


def test_views__without_nuclei_refuse_in_one_line(cytofm, stores, tmp_path):
    path = _first(stores)
    failed = cytofm("views", path, "-o", tmp_path / "views")
    assert failed.returncode == 3
    assert "find them with `cytofm detect`" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("views/*.zarr"))
    with pytest.raises(StoreError, match="holds no nuclei"):
        preview([path], 1, config=CONFIG)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"dump": False}, "nothing to make"),
        ({"config": ViewsConfig(global_px=100)}, "no multiple of the patch"),
    ],
)
def test_views__refuse_what_cannot_be(two, tmp_path, how, message):
    with pytest.raises(UsageError, match=message):
        views([str(two)], tmp_path, **{"config": CONFIG, "run": SlideOptions(), **how})


def test_views__are_kept_apart_from_stores(two):
    with pytest.raises(UsageError, match="holds stores"):
        views([str(two)], two, config=CONFIG, run=SlideOptions())


def test_tile_keys__depend_on_slide_and_tile_only():
    keys = tile_keys(0, "slide", [5, 2, 7])
    np.testing.assert_array_equal(keys[1:2], tile_keys(0, "slide", [2]))
    assert len({*keys.tolist(), *tile_keys(0, "other", [5, 2, 7]).tolist()}) == 6
    assert not np.intersect1d(keys, tile_keys(1, "slide", [5, 2, 7])).size
    # A name whose hash is close to 2⁶⁴ wraps round instead of failing.
    assert sample_keys(0, np.array([2**64 - 1], np.uint64) + np.uint64(2)) == sample_keys(0, 1)


def test_tile_nuclei__maps_corners_and_centres_of_pixels():
    # Tiles of 10 px at half resolution: 20 level-0 px. The centre of tile pixel (0, 0) lies
    # at level-0 (1, 1) from the corner.
    plan = ReadPlan(level=1, downsample=2.0, scale=1.0, tile_px=10, mpp=0.5, slide_mpp=0.25)
    xy = np.array([[101.0, 41.0], [119.9, 59.9], [120.0, 50.0], [99.9, 50.0]])
    square = np.array([[104.0, 44.0], [110.0, 44.0], [110.0, 50.0], [104.0, 50.0]])
    table = make_table(xy, np.ones(4), polygons=[np.zeros((0, 2)), square, square, square])
    nuclei = TileNuclei(table, np.array([[100, 40], [120, 40]], np.int32), plan)
    assert nuclei.rows(0).tolist() == [0, 1]
    assert nuclei.rows(1).tolist() == [2]
    np.testing.assert_allclose(nuclei.to_px(0, xy[:2]), [[0.0, 0.0], [9.45, 9.45]])
    label = nuclei.label_map(0, nuclei.rows(0))
    expected = np.zeros((10, 10), np.int32)
    expected[:2, :2] = 1  # a bare point is a disk of its area, 1 µm²: a radius of 1.13 px
    expected[1, 1] = 0
    expected[2:5, 2:5] = 2  # 6 level-0 px from 4 on: pixels 2, 3, 4
    np.testing.assert_array_equal(label, expected)


def test_read_batch__paints_no_labels_that_nobody_uses(two):
    store = open_store(_first(two))
    nuclei = TileNuclei(store.nuclei(), store.read("tiles/xy_px0"), plan_of(store))
    with open_tiles(store) as source:
        batch = read_batch(source, nuclei, [1, 0], ncp_of(ViewsConfig(preset="none")))
        assert batch.label_BHW is None
        assert batch.tile_BCHW.dtype == torch.uint8
        np.testing.assert_array_equal(batch.tile_BCHW[1].permute(1, 2, 0), source.read(0))


def test_dump__of_before_the_margin_is_not_mixed_with_new_ones(dumped, two, tmp_path):
    slide_id = open_store(_first(two)).slide_id
    shutil.copytree(dumped / f"{slide_id}.views.zarr", tmp_path / f"{slide_id}.views.zarr")
    path = tmp_path / f"{slide_id}.views.zarr" / "zarr.json"
    node = json.loads(path.read_text())
    assert node["attributes"]["cytofm_views"]["margin_px"] == 64
    del node["attributes"]["cytofm_views"]["config"]["version"]
    put_node(path, node)
    job = ViewsJob(slide_id=slide_id, path=str(_first(two)), folder=tmp_path, config=CONFIG)
    with pytest.raises(ConfigMismatchError, match="version: 1 → 3"):
        dump_views(job, lambda *_: None, print)
