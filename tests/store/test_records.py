"""A record is the JSON that is stored, with names and types; what is not said has a default."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytofm_cli.errors import StoreError
from cytofm_cli.store.records import (
    AttentionRecord,
    EmbeddingRecord,
    LevelRecord,
    NucleiRecord,
    SlideRecord,
    StepRecord,
    TileRecord,
)

# As version 0.1.0 wrote them, cut to what the order of keys needs.
TILE = """{"tool": "cytofm 0.1.0", "config": {"tile_px": 256}, "config_hash": "006c",
"input_fingerprint": "b3cc", "asked": {"seed": 0}, "n_tiles": 19, "n_grid": 20, "n_foreground": 19,
"tile_px": 256, "tile_px0": 256.0, "mpp": 0.5, "level": 0, "scale": 1.0,
"thumbnail_downsample": [3.74, 3.73], "fill": 255, "source_codec": "jpeg",
"store_codec": "zstd (lossless)", "pixel_bytes": 3051559, "n_damaged": 0, "seed": 0,
"illumination": "bright-field", "background_rgb": [192, 248, 253], "foreground_unsure": null,
"time_utc": "2026-11-27T06:37:48+00:00", "id": "3e1f"}"""
NUCLEI = """{"made_from": {"tile": "3e1f"}, "tool": "cytofm 0.1.0", "config": {},
"config_hash": "16", "input_fingerprint": "006c-b3cc", "n": 217,
"stain": {"name": "pap", "axis": [1.0, 1.0, 0.0]},
"nuclei": "dark", "n_quartered": 0, "n_cut": 0, "beyond_tiles": ["slide"],
"detector": "classical", "classes": ["nucleus"], "weights_sha256": null, "nuclei_file": null,
"time_utc": "2026-11-27T06:37:55+00:00", "id": "42a7"}"""
EMBEDDINGS = """{"made_from": {"tile": "3e1f"}, "tool": "cytofm 0.1.0", "config": {},
"config_hash": "4d", "input_fingerprint": "006c-b3cc", "encoder": "handcrafted", "dim": 263,
"n": 19, "unit": "tile", "seen_mpp": 0.5, "cell_um": null, "input_px": null, "resize_px": null,
"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bicubic", "pooling": "none",
"licence": "Apache-2.0", "weights_sha256": null, "network": null, "pos_embed": null,
"assumed": [], "batch_size": 16, "store_codec": "zstd (lossless)", "source_codec": "jpeg",
"seed": 0, "time_utc": "2026-11-27T06:37:57+00:00", "id": "f860"}"""
ATTENTION = """{"made_from": {"embeddings/e/tile": "f860"}, "tool": "cytofm 0.1.0",
"config": {"run": "0f", "method": "abmil", "columns": ["attention"]}, "config_hash": "5e",
"input_fingerprint": "4d-006c", "run_folder": "run", "n": 19, "dim": 1, "basis": "new",
"predicted": "HSIL", "differs": [], "time_utc": "2026-11-27T06:38:00+00:00", "id": "aa"}"""
SLIDE = """{"slide_id": "a", "path": "a.svs", "reader": "vips", "format": "aperio",
"size_px0": [1280, 957], "levels": [{"size_px": [1280, 957], "downsample": 1.0}], "mpp": 0.5,
"mpp_source": "file", "codec": "jpeg", "objective": null, "n_focal_planes": 1, "focal_plane": 0,
"has_icc_profile": false, "bounds_px0": null, "notes": [], "fingerprint": "b3cc"}"""
KINDS: list[tuple[Any, str]] = [
    (TileRecord, TILE),
    (NucleiRecord, NUCLEI),
    (EmbeddingRecord, EMBEDDINGS),
    (AttentionRecord, ATTENTION),
    (SlideRecord, SLIDE),
]
each_kind = pytest.mark.parametrize(("kind", "text"), KINDS, ids=[k.__name__ for k, _ in KINDS])


@each_kind
def test_record__goes_back_to_the_same_json(kind: Any, text: str) -> None:
    stored = json.loads(text)
    assert json.dumps(kind.from_json(stored).to_json()) == json.dumps(stored)


@each_kind
def test_record__made_by_a_step_has_its_keys_in_that_order(kind: Any, text: str) -> None:
    read = kind.from_json(json.loads(text))
    assert json.dumps(replace(read, keys=()).to_json()) == json.dumps(json.loads(text))


@each_kind
def test_record__keeps_what_it_does_not_know_where_it_stood(kind: Any, text: str) -> None:
    stored = {"newer": [1], **json.loads(text), "newest": {"a": None}}
    record = kind.from_json(stored)
    assert dict(record.other)["newest"] == {"a": None}
    assert json.dumps(record.to_json()) == json.dumps(stored)


def test_level__keeps_what_it_does_not_know() -> None:
    stored = json.loads(SLIDE)
    stored["levels"][0]["tile_px"] = 256
    record = SlideRecord.from_json(stored)
    assert record.levels[0] == LevelRecord(
        size_px=(1280, 957), downsample=1.0, other={"tile_px": 256}
    )
    assert record.to_json() == stored


def test_old_records__have_defaults_and_gain_no_keys() -> None:
    stored = json.loads(TILE)
    for key in ("asked", "n_foreground", "n_damaged", "id"):
        del stored[key]
    tile = TileRecord.from_json(stored)
    assert (tile.asked, tile.n_foreground, tile.n_damaged, tile.id) == (None, None, 0, None)
    assert tile.to_json() == stored

    stored = json.loads(EMBEDDINGS)
    for key in ("made_from", "cell_um", "mean", "assumed"):
        del stored[key]
    bag = EmbeddingRecord.from_json(stored)
    assert (bag.made_from, bag.cell_um, bag.mean, bag.assumed) == (None, None, None, None)
    assert bag.to_json() == stored

    stored = json.loads(SLIDE)
    assert SlideRecord.from_json(stored).says_bounds
    del stored["bounds_px0"]
    slide = SlideRecord.from_json(stored)
    assert slide.bounds_px0 is None and not slide.says_bounds
    assert slide.to_json() == stored


def test_record__with_a_change_says_that_too() -> None:
    stored = json.loads(TILE)
    del stored["id"]
    assert replace(TileRecord.from_json(stored), id="x").to_json() == {**stored, "id": "x"}
    assert replace(TileRecord.from_json(stored), fill=0).to_json() == {**stored, "fill": 0}


def test_new_record__leaves_out_what_a_step_has_not_found_out() -> None:
    told = {"config": {}, "config_hash": "h", "input_fingerprint": "f"}
    stored = NucleiRecord(**told, classes=("n",), n_quartered=0).to_json()
    assert "n_cut" not in stored and "made_from" not in stored and "id" not in stored
    assert (stored["n_quartered"], stored["nuclei_file"]) == (0, None)


@pytest.mark.parametrize(
    ("kind", "text", "key"), [(TileRecord, TILE, "mpp"), (SlideRecord, SLIDE, "size_px0")]
)
def test_record__without_what_all_versions_wrote_is_refused(kind: Any, text: str, key: str) -> None:
    stored = json.loads(text)
    del stored[key]
    with pytest.raises(StoreError, match=rf"^a\.zarr: tile is damaged: it does not say {key}\."):
        kind.from_json(stored, "a.zarr: tile")


def test_step__is_known_by_its_id_else_by_settings_and_input() -> None:
    stored = json.loads(TILE)
    assert StepRecord.from_json(stored).identity == "3e1f"
    del stored["id"]
    assert StepRecord.from_json(stored).identity == "006c-b3cc"
    assert StepRecord.from_json(stored).mark == "006c-b3cc"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize(("kind", "text"), [(TileRecord, TILE), (NucleiRecord, NUCLEI)])
@given(data=st.data())
def test_from_json__whatever_stands_in_a_field_is_right_or_a_store_error(
    kind: type[StepRecord], text: str, data: st.DataObject
) -> None:
    stored = json.loads(text)
    name, value = data.draw(st.sampled_from(sorted(stored))), data.draw(VALUES)
    stored[name] = value
    try:
        record = kind.from_json(stored, "a.zarr: the record of x")
    except StoreError as error:
        assert str(error).startswith(f"a.zarr: the record of x is damaged: {name} is ")
    else:
        assert record.to_json()[name] == value or value != value
        assert isinstance(record.config, dict)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_tiles", "19"), ("n_tiles", 1.5), ("mpp", [0.5]), ("config", []), ("config", "x"),
        ("background_rgb", [1, 2]), ("background_rgb", ["a", "b", "c"]), ("store_codec", 3),
        ("thumbnail_downsample", "4"), ("made_from", [1]),
    ],
)  # fmt: skip
def test_from_json__a_value_of_another_kind_is_damage(name: str, value: Any) -> None:
    with pytest.raises(StoreError, match=f"here is damaged: {name} is "):
        TileRecord.from_json(json.loads(TILE) | {name: value}, "here")


@pytest.mark.parametrize("stored", [[], "x", 3, None])
def test_from_json__what_is_no_object_is_damage(stored: Any) -> None:
    with pytest.raises(StoreError, match="here is damaged"):
        StepRecord.from_json(stored, "here")


@pytest.mark.parametrize("size", [[5], [1, 2, 3], ["a", 2], {}, None])
def test_slide_record__a_size_is_two_numbers(size: Any) -> None:
    levels = [{"size_px": [1, 2], "downsample": 1.0}]
    stored = {"slide_id": "a", "path": "a", "mpp": 1, "levels": levels, "size_px0": [1, 2]}
    assert SlideRecord.from_json(stored).size_px0 == (1, 2)
    with pytest.raises(StoreError, match="damaged"):
        SlideRecord.from_json(stored | {"size_px0": size})
    with pytest.raises(StoreError, match="damaged"):
        SlideRecord.from_json(stored | {"levels": [size]})
