"""`verify_store` finds every flipped bit, whatever else reads the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.errors import StoreError
from cytofm_cli.store import arrays, io, schema
from cytofm_cli.store.verify import verify_store
from cytofm_cli.store.zarr3 import BYTES, JPEG, jpeg_encode

from ..nodes import put_node  # noqa: TID252 - of all tests
from .test_checksum import as_before, flip
from .test_io import STEP, add_embeddings, make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with pixels, tiles and embeddings."""
    path = make_store(tmp_path_factory.mktemp("stores"))
    tile = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    codecs = [BYTES, JPEG]
    writer = arrays.open_shards(
        path, schema.TILE_PIXELS, shape=(3, 16, 16, 3), rows_per_shard=64,
        chunk=(1, 16, 16, 3), codecs=codecs,
    )  # fmt: skip
    writer.write_shard(0, [jpeg_encode(tile, 90)] * 3)
    add_embeddings(path, 1.5)
    return path


def content(text: bytes) -> object:
    """Return what a node says: without when, and without its checksum, whose name may flip."""
    node = json.loads(text)
    attributes = node.get("attributes", {})
    ours = attributes.get("cytofm", {})
    for record in (ours, *ours.get("steps", {}).values()):
        record.pop("time_utc", None)
    kept = {key: value for key, value in attributes.items() if key == "cytofm"}
    if node.get("node_type") == "group" and "cytofm" not in attributes:
        return None  # it says nothing
    return node | {"attributes": kept}


def test_whole_store__has_no_damage_and_all_is_counted(store: Path) -> None:
    verified = verify_store(store)
    assert (verified.damage, verified.notes) == ((), ())
    # xy_px0 of tiles, pixels, values and xy_px0 of the bag: 1 + 64 places + 1 + 1
    assert (verified.n_arrays, verified.n_chunks, verified.n_unchecked) == (4, 67, 0)
    files = [file for file in store.rglob("c.*") if file.is_file()]
    index = 64 * 16 + 4 + 1 * 16 + 4  # of the two shards
    assert verified.n_bytes == sum(file.stat().st_size for file in files) - index


@settings(max_examples=80, deadline=None)
@given(number=st.integers(0, 99), bit=st.integers(0, 100_000))
def test_any_flipped_bit__is_found(
    store: Path, tmp_path_factory: pytest.TempPathFactory, number: int, bit: int
) -> None:
    path = Path(shutil.copytree(store, tmp_path_factory.mktemp("flip") / "a.zarr"))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    file = files[number % len(files)]
    before = file.read_bytes()
    flip(file, bit)
    if file.name == "zarr.json":
        try:
            if content(before) == content(file.read_bytes()):
                return  # white space, a name that nobody reads, or when it was made
        except ValueError:
            pass
    assert verify_store(path).damage, file


def test_damage__names_array_and_chunk_and_the_reader_refuses_it(
    store: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    flip(path / STEP / "values" / "c.0.0", 1)
    said = "chunk 0 of shard 0: its checksum is wrong"
    damage = verify_store(path).damage
    assert len(damage) == 1 and damage[0].startswith(f"{STEP}/values: {said}")
    with pytest.raises(StoreError, match=said):
        io.open_store(path).embeddings()


def test_records__are_held_against_arrays_and_the_root(store: Path, tmp_path: Path) -> None:
    """Without checksums, too: what a step says of itself has a digest and an id."""
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    for file in (path / "zarr.json", path / STEP / "zarr.json"):
        node = json.loads(file.read_text())
        told = node["attributes"]["cytofm"]
        record = told["steps"][STEP] if "steps" in told else told
        record["config"]["encoder"] = "another"
        put_node(file, node)
    assert verify_store(path).damage == (f"{STEP}: its settings are not those of its digest",)
    file = path / "tiles" / "zarr.json"
    node = json.loads(file.read_text())
    node["attributes"]["cytofm"]["mpp"] = 0.25
    put_node(file, node)
    assert set(verify_store(path).damage[:2]) == {
        "tile: its record is another in the root",
        f"{STEP}: its settings are not those of its digest",
    }


@pytest.mark.parametrize("group", [".", "tiles", STEP, "tiles/xy_px0", f"{STEP}/values"])
@pytest.mark.parametrize("name", ["attributes", "cytofm", "cytofm_crc32c"])
def test_damaged_name__of_what_a_node_says_of_itself(
    store: Path, tmp_path: Path, group: str, name: str
) -> None:
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    file = path / group / "zarr.json"
    before = file.read_text()
    file.write_text(before.replace(f'"{name}"', f'"_{name[1:]}"'))
    # A node whose checksum alone has another name says what it said.
    whole = name == "cytofm_crc32c" and not (path / group / "c.0.0").exists()
    assert bool(verify_store(path).damage) is (before != file.read_text() and not whole)


def test_missing_file__is_damage(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    (path / "tiles" / "xy_px0" / "c.0.0").unlink()
    assert "tiles/xy_px0: 0 of 1 files of chunks are there" in verify_store(path).damage
    with pytest.raises(StoreError, match="tiles/xy_px0"):
        io.open_store(path).read("tiles/xy_px0")


def test_store_of_before__is_decoded_and_gross_damage_found(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    for file in path.rglob("zarr.json"):
        node = json.loads(file.read_text())
        if node["node_type"] == "array":
            as_before(file.parent)
        else:
            put_node(file, node)
    verified = verify_store(path)
    assert verified.damage == ()
    assert verified.n_unchecked == verified.n_chunks == 67
    (path / "tiles" / "xy_px0" / "c.0.0").write_bytes(b"no zstd")
    assert any("tiles/xy_px0: c.0.0: " in line for line in verify_store(path).damage)


def test_left_overs__are_named_and_no_damage(store: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(store, tmp_path / "a.zarr"))
    (tmp_path / ".a.tile.host-1.partial").mkdir()
    (path / ".zarr.json.host-1-abc.partial").touch()
    verified = verify_store(path)
    assert verified.damage == ()
    assert [note.rpartition("/")[2] for note in verified.notes] == [
        ".a.tile.host-1.partial",
        ".zarr.json.host-1-abc.partial",
    ]


def test_no_store__is_a_sentence_without_its_stop(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    root = tmp_path / "a.zarr" / "zarr.json"
    put_node(root, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    assert verify_store(root.parent).damage == ("is no store of cytofm",)
