"""Packs: one file gives pretraining the tiles, nuclei and sampling of the stores."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from cytofm_cli.errors import CytofmError, InputError, OutputError, StoreError, UsageError
from cytofm_cli.pretrain.config import PackConfig, PretrainConfig, PretrainViews, views_of
from cytofm_cli.pretrain.data import Batches
from cytofm_cli.pretrain.packing import pack
from cytofm_cli.pretrain.plan import make_plan
from cytofm_cli.pretrain.run import pretrain
from cytofm_cli.pretrain.tile_index import TileIndex, open_index
from cytofm_cli.store.pack_file import is_pack, open_pack
from cytofm_cli.views.ncp import PRESETS

from .conftest import tile_pixels

SMALL = {"prototypes": "64", "hidden": "32", "bottleneck": "16"}
PNG = PackConfig(codec="png")


@pytest.fixture
def stores(make_store) -> list[Path]:
    """Slides with a nucleus a tile, with outlines, and with tiles that have none."""
    return [
        make_store("a", 5),
        make_store("b", 3, polygons=True),
        make_store("c", 4, nuclei=[(32.0, 32.0), (100.0, 20.0)]),
    ]


def same_index(one: TileIndex, two: TileIndex, ncp: str, *, pixels: float = 0) -> None:
    """Check that two indices deal out the same tiles, nuclei and views."""
    assert [s.slide_id for s in one.slides] == [s.slide_id for s in two.slides]
    assert (one.n_tiles, one.n_without_nuclei, one.tile_px, one.mpp, one.detector) == (
        two.n_tiles, two.n_without_nuclei, two.tile_px, two.mpp, two.detector,
    )  # fmt: skip
    assert np.array_equal(one.schedule(3, "slides").order(0), two.schedule(3, "slides").order(0))
    read = []
    for index in (one, two):
        read.append(index.read(range(one.n_tiles), PRESETS[ncp]))
        index.close()
    assert read[0].tile_BCHW.shape == read[1].tile_BCHW.shape
    difference = (read[0].tile_BCHW.int() - read[1].tile_BCHW.int()).abs()
    assert difference.max() == 0 if not pixels else 0 < difference.float().mean() <= pixels
    assert np.array_equal(read[0].xy_BM2, read[1].xy_BM2, equal_nan=True)
    assert np.array_equal(read[0].valid_BM, read[1].valid_BM)
    labels = [batch.label_BHW for batch in read]
    assert (labels[0] is None) == (labels[1] is None)
    assert labels[0] is None or torch.equal(labels[0], labels[1])


@pytest.mark.parametrize("ncp", ["safe", "none"])
def test_pack__lossless_tiles_nuclei_and_margins_are_those_of_the_stores(
    stores: list[Path], tmp_path: Path, ncp: str
) -> None:
    report = pack(PNG, stores, tmp_path / "p.pack")
    assert is_pack(report.path)
    facts = {"n_slides": 3, "n_tiles": 12, "tile_px": 64, "mpp": 0.5, "cell_um": None}
    assert facts.items() <= report.facts.items()
    assert report.facts["bytes"] == report.path.stat().st_size
    packed = open_index([report.path])
    same_index(open_index(stores), packed, ncp)
    assert packed.facts() == open_index(stores).facts()  # so a RUN goes on from either


def test_pack__lossless_cells_are_those_of_the_stores(stores: list[Path], tmp_path: Path) -> None:
    config = replace(PNG, unit="cell", cell_um=20.0)
    path = pack(config, stores, tmp_path / "p.pack").path
    packed = open_index([path], cell_um=20.0)
    assert (packed.unit, packed.tile_px, packed.n_tiles) == ("cell", 40, 10)
    same_index(open_index(stores, cell_um=20.0), packed, "safe")


def test_pack__jpeg_is_near_and_its_tables_are_exact(make_store, tmp_path: Path) -> None:
    stores = [make_store("a", 5), make_store("b", 3)]
    path = pack(PackConfig(), stores, tmp_path / "p.pack").path
    # noise of 55 grey levels in each colour is the worst case: some 3 levels at quality 95, 4:4:4
    same_index(open_index(stores), open_index([path]), "safe", pixels=4.0)
    pictured = open_pack(path)
    start, stop = pictured.arrays["image_start"][:2].tolist()
    with Image.open(io.BytesIO(path.read_bytes()[start:stop])) as picture:
        # no colour is stored at half the resolution
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
        other = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(other - pictured.image(0)).max() <= 1
    assert open_index([path]).facts()["digest"] != open_index(stores).facts()["digest"]
    low = pack(PackConfig(quality=50), stores, tmp_path / "low.pack").path
    assert low.stat().st_size < path.stat().st_size * 0.7


def test_pack__tiles_with_nothing_around_them_are_packed_without_margin(
    make_store, tmp_path: Path
) -> None:
    alone = [make_store(name, 1) for name in "ab"]  # a tile is all that there is of its slide
    path = pack(PNG, alone, tmp_path / "alone.pack").path
    said = [record["mirrored"] for record in open_pack(path).header["slides"]]
    assert said == [True, True]
    assert open_pack(path).image(1).shape == (64, 64, 3)
    assert np.array_equal(open_pack(path).image(1), tile_pixels("b", 1, 64)[0])
    same_index(open_index(alone), open_index([path]), "safe")
    row = pack(PNG, [make_store("c", 2)], tmp_path / "row.pack").path
    assert not open_pack(row).header["slides"][0]["mirrored"]
    assert open_pack(row).image(0).shape == (96, 96, 3)


def test_pack__same_stores_same_bytes_and_groups_beside_them(
    stores: list[Path], tmp_path: Path
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("slide_id,group\na,patient 1\nb,patient 2\nc,patient 1\n")
    config = replace(PNG, groups=table)
    one = pack(config, stores, tmp_path / "one.pack").path
    two = pack(config, stores[::-1], tmp_path / "two.pack").path
    assert one.read_bytes() == two.read_bytes()
    records = open_pack(one).header["slides"]
    assert [(r["slide_id"], r["group"]) for r in records] == [
        ("a", "patient 1"), ("b", "patient 2"), ("c", "patient 1"),
    ]  # fmt: skip
    assert str(tmp_path).encode() not in one.read_bytes()


def test_pretrain__from_a_lossless_pack_ends_with_the_weights_of_the_stores(
    stores: list[Path], tmp_path: Path
) -> None:
    path = pack(PNG, stores, tmp_path / "p.pack").path
    config = PretrainConfig(encoder="sr-vit-nano", batch=4, steps=3, device="cpu", threads=1)
    views = views_of("dino", PretrainViews(radius_um=5.0, n_local=2), "sr-vit-nano")
    for data, run in ((stores, "by-stores"), ([path], "by-pack")):
        pretrain(config, views, data, tmp_path / run, settings=SMALL)
    runs = [tmp_path / run / "encoder.safetensors" for run in ("by-stores", "by-pack")]
    left, right = map(load_file, runs)
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert len(left) > 20


def test_batches__of_a_pack_do_not_depend_on_the_threads(
    stores: list[Path], tmp_path: Path
) -> None:
    path = pack(PackConfig(), stores, tmp_path / "p.pack").path
    config = PretrainConfig(encoder="sr-vit-nano", batch=8, steps=2, device="cpu")
    views = views_of("dino", PretrainViews(radius_um=5.0, n_local=2), "sr-vit-nano")
    plan = make_plan(config, views, [path], SMALL)
    drawn = []
    for threads in (1, 3):
        with Batches(
            plan.index, plan.index.schedule(0, "slides"),
            recipe=plan.recipe, ncp=plan.ncp, batch=8, stop=2, threads=threads,
        ) as batches:  # fmt: skip
            drawn.append([view for _ in range(2) for view in next(batches).views])
    assert all(torch.equal(one, two) for one, two in zip(*drawn, strict=True))


def test_pack__and_stores_together_and_one_slide_twice(make_store, tmp_path: Path) -> None:
    a, b = make_store("a", 5), make_store("b", 3)
    path = pack(PNG, [a], tmp_path / "p.pack").path
    same_index(open_index([a, b]), open_index([path, b]), "safe")
    with pytest.raises(InputError, match="two stores of slide a"):
        open_index([path, a])


@pytest.mark.parametrize(
    ("at", "said"),
    [
        (slice(-1, None), "is cut or was changed"),  # the last byte is gone
        (slice(2000, None), "is cut or was changed"),
        (slice(20, None), "is cut or was changed"),
        (slice(5, None), "is no pack"),
        (slice(0, None), "cannot be read"),
    ],
)
def test_open_pack__a_cut_file_is_refused_in_one_line(
    stores: list[Path], tmp_path: Path, at: slice, said: str
) -> None:
    path = pack(PNG, stores, tmp_path / "p.pack").path
    data = bytearray(path.read_bytes())
    del data[at]
    path.write_bytes(data)
    with pytest.raises(CytofmError) as caught:
        open_pack(path)
    assert said in caught.value.message
    assert "\n" not in caught.value.one_line()


def test_open_pack__every_changed_byte_is_found(make_store, tmp_path: Path) -> None:
    path = pack(PNG, [make_store("a", 2)], tmp_path / "p.pack").path
    whole = path.read_bytes()
    start, length = struct.unpack("<QQ", whole[8:24])
    header = json.loads(whole[start:])
    arrays = [place["start"] for place in header["arrays"].values() if 0 not in place["shape"]]
    places = {
        "header is damaged": [start + 5, start + length - 2],
        "tables are damaged": arrays,
        "image 0 is damaged": [64, 64 + 500],
    }
    for said, bytes_ in places.items():
        for at in bytes_:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(StoreError, match=said):
                open_pack(path).image(0)


def test_pack__refuses_what_does_not_go_together(stores: list[Path], tmp_path: Path) -> None:
    path = pack(PNG, stores, tmp_path / "p.pack").path
    with pytest.raises(OutputError, match="is there already"):
        pack(PNG, stores, path)
    assert pack(PNG, stores, path, overwrite=True).facts["n_tiles"] == 12
    with pytest.raises(InputError, match="holds tiles, not cells"):
        open_index([path], cell_um=20.0)
    cells = pack(replace(PNG, unit="cell", cell_um=20.0), stores, tmp_path / "c.pack").path
    for wanted in (None, 24.0):
        with pytest.raises(InputError, match="holds cells of 20 µm") as caught:
            open_index([cells], cell_um=wanted)
        assert caught.value.hint == "--unit cell --cell-um 20"
    with pytest.raises(StoreError, match="holds nuclei of 'test'"):
        open_index([path], "stardist")
    bare = pack(replace(PNG, nuclei=False), stores, tmp_path / "bare.pack").path
    with pytest.raises(StoreError, match="holds no nuclei"):
        open_index([bare])
    assert open_index([bare], need_nuclei=False).n_without_nuclei == 0
    narrow = pack(replace(PNG, margin=False), stores, tmp_path / "narrow.pack").path
    assert open_index([narrow]).read([0], PRESETS["none"]).tile_BCHW.shape == (1, 3, 64, 64)
    with pytest.raises(UsageError, match="margin of 0 px, and views centred on nuclei take 16"):
        open_index([narrow]).read([0], PRESETS["safe"])
    with pytest.raises(UsageError, match="--unit cell needs --nuclei"):
        PackConfig(unit="cell", nuclei=False)


def test_pack__fails_without_leaving_a_file(make_store, tmp_path: Path) -> None:
    broken = make_store("a", 3)
    shard = next((broken / "tiles" / "pixels").glob("c*"))
    data = shard.read_bytes()
    shard.write_bytes(bytes(200) + data[200:])  # no frame of zstd begins so
    with pytest.raises(CytofmError):
        pack(PNG, [broken], tmp_path / "out" / "p.pack")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
