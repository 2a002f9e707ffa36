"""One flipped bit of a chunk or a node is an error where it is read, never another number."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.store import budget, checksum, chunks, zarr3
from cytofm_cli.store.rows import open_rows

from ..nodes import put_node  # noqa: TID252 - of all tests

LAYOUTS = ("one", "raw", "several", "shard")
VALUES = np.arange(26, dtype=np.float32).reshape(13, 2)


def write(path: Path, layout: str) -> Path:
    axes = ("row", "column")
    if layout == "shard":
        zarr3.write_rows(path, VALUES, axes=axes, rows_per_chunk=4)
    else:
        rows = 4 if layout == "several" else None
        compress = layout != "raw"
        zarr3.write_array(path, VALUES, axes=axes, compress=compress, rows_per_chunk=rows)
    return path


def as_before(path: Path) -> None:
    """Turn an array into one of versions without checksums, byte by byte."""
    node = json.loads((path / "zarr.json").read_text())
    first = node["codecs"][0]
    files = [file for file in path.iterdir() if file.name != "zarr.json"]
    if first["name"] == "sharding_indexed":
        inner = first["configuration"]["codecs"]
        for file in files:
            data, table = file.read_bytes(), []
            n = node["chunk_grid"]["configuration"]["chunk_shape"][0]
            n //= first["configuration"]["chunk_shape"][0]
            index = np.frombuffer(data[-16 * n - 4 : -4], "<u8").reshape(-1, 2)
            body = b""
            for offset, size in index.tolist():
                if offset == 2**64 - 1:
                    table += [offset, size]
                    continue
                table += [len(body), size - 4]
                body += data[offset : offset + size - 4]
            packed = np.array(table, "<u8").tobytes()
            file.write_bytes(body + packed + checksum.checksum(packed))
    else:
        inner = node["codecs"]
        for file in files:
            file.write_bytes(file.read_bytes()[:-4])
    assert inner.pop() == {"name": "crc32c"}
    put_node(path / "zarr.json", node)


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    file.write_bytes(bytes(data))


def hashed(path: Path) -> str:
    hasher = hashlib.sha256()
    chunks.hash_array(path, hasher)
    return hasher.hexdigest()


def test_checksum__is_the_castagnoli_crc_of_rfc_3720() -> None:
    assert checksum.checksum(b"123456789") == bytes.fromhex("839206e3")  # check value e3069283
    assert checksum.checksum(bytes(32)) == bytes.fromhex("aa36918a")  # RFC 3720, B.4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks__end_with_a_checksum_that_zarr_checks_too(tmp_path: Path, layout: str) -> None:
    path = write(tmp_path / "a", layout)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], VALUES)
    flip(min(file for file in path.iterdir() if file.name != "zarr.json"), 77)
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        zarr.open_array(path, mode="r")[...]


@settings(max_examples=60, deadline=None)
@given(layout=st.sampled_from(LAYOUTS), number=st.integers(0, 9), bit=st.integers(0, 10_000))
def test_reading__any_flipped_bit_of_a_chunk_is_an_error(
    tmp_path_factory: pytest.TempPathFactory, layout: str, number: int, bit: int
) -> None:
    path = write(tmp_path_factory.mktemp("flip") / "a", layout)
    files = sorted(file for file in path.iterdir() if file.name != "zarr.json")
    flip(files[number % len(files)], bit)
    with open_rows(path) as rows, pytest.raises(ValueError, match="checksum is wrong"):
        rows.read()
    with pytest.raises(ValueError, match="checksum is wrong"):
        hashed(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_before__are_read_and_have_the_id_that_they_had(
    tmp_path: Path, layout: str
) -> None:
    new, old = write(tmp_path / "new", layout), write(tmp_path / "old", layout)
    as_before(old)
    with open_rows(old) as rows:
        np.testing.assert_array_equal(rows.read(), VALUES)
    np.testing.assert_array_equal(zarr.open_array(old, mode="r")[...], VALUES)
    assert hashed(old) == hashed(new)
    if layout == "shard":  # as versions without checksums hashed it: the file as it is
        told = json.dumps([[13, 2], "float32"]).encode() + b"\0c.0.0\0"
        whole = told + (old / "c.0.0").read_bytes()
        assert hashed(new) == hashlib.sha256(whole).hexdigest()


def test_node__what_zarr_and_cytofm_read_of_it_is_checked_and_the_rest_is_free(
    tmp_path: Path,
) -> None:
    zarr3.write_group(tmp_path / "g", {"cytofm": {"mpp": 0.25, "time_utc": "then"}})
    file = tmp_path / "g" / "zarr.json"
    text = file.read_text()
    file.write_text(text.replace("then", "now"))  # when is not what
    zarr.open_group(tmp_path / "g").attrs["ours"] = "added by another program"
    assert checksum.read_node(tmp_path / "g")["attributes"]["ours"]
    file.write_text(text.replace("0.25", "0.24"))
    with pytest.raises(ValueError, match="checksum is wrong"):
        checksum.read_node(tmp_path / "g")
    path = write(tmp_path / "a", "shard")
    node = (path / "zarr.json").read_text()
    assert node.count("13") == 1  # the shape: one row more would be read, of zeros
    (path / "zarr.json").write_text(node.replace("13", "15"))
    with pytest.raises(ValueError, match="checksum is wrong"):
        open_rows(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shape": [10**12, 2]}, "states to hold 8000000000000 bytes"),
        ({"shape": [-1, 2]}, "impossible shape"),
        ({"shape": [2.5, 2]}, "impossible shape"),
        ({"data_type": "float99"}, "impossible dtype"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_node__that_claims_what_its_files_cannot_hold_is_refused_before_memory_is_taken(
    tmp_path: Path, layout: str, changes: dict[str, object], told: str
) -> None:
    path = write(tmp_path / "a", layout)
    node = json.loads((path / "zarr.json").read_text())
    put_node(path / "zarr.json", node | changes)
    with pytest.raises(ValueError, match=told):
        open_rows(path)


def test_zstd__a_frame_that_holds_more_than_its_chunk_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a", "one")
    bomb = zarr3.zstd_encode(bytes(10**8))
    (path / "c.0.0").write_bytes(bomb + checksum.checksum(bomb))
    with open_rows(path) as rows, pytest.raises((ValueError, RuntimeError), match="small"):
        rows.read()


def test_budget__a_blank_mask_is_no_claim(tmp_path: Path) -> None:
    zarr3.write_array(tmp_path / "a", np.zeros((4000, 4000), np.uint8), axes=("y", "x"))
    node = checksum.read_node(tmp_path / "a")
    budget.refuse_claim(tmp_path / "a", node)
    assert (tmp_path / "a" / "c.0.0").stat().st_size < 16_000_000 / 1000
