"""What our writer writes, zarr reads; what our reader reads, zarr wrote or reads alike."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cytofm_cli.store import zarr3
from cytofm_cli.store.chunks import ShardedArrayReader


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32", "float16"])
@pytest.mark.parametrize("compress", [True, False])
def test_write_array__zarr_reads_the_same_values(
    tmp_path: Path, dtype: str, compress: bool
) -> None:
    values = np.arange(30).reshape(10, 3).astype(dtype)
    zarr3.write_array(tmp_path / "a", values, axes=("row", "column"), compress=compress)
    array = zarr.open_array(tmp_path / "a", mode="r")
    assert array.dtype == values.dtype
    assert array.metadata.dimension_names == ("row", "column")
    np.testing.assert_array_equal(array[:], values)


def test_write_array__empty_array_reads_back_empty(tmp_path: Path) -> None:
    zarr3.write_array(tmp_path / "a", np.zeros((0, 2), np.int32), axes=("row", "xy"))
    assert zarr.open_array(tmp_path / "a", mode="r")[:].shape == (0, 2)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 40), rows=st.integers(1, 16), d=st.integers(1, 5))
def test_write_rows__zarr_reads_the_same_values(
    tmp_path_factory: pytest.TempPathFactory, n: int, rows: int, d: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a"
    values = np.random.default_rng(n).normal(size=(n, d)).astype(np.float32)
    zarr3.write_rows(path, values, axes=("row", "feature"), rows_per_chunk=rows)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], values)
    assert len(list(path.iterdir())) == (2 if n else 1)


def test_write_blocks__are_the_bytes_of_the_whole_table(tmp_path: Path) -> None:
    values = np.arange(46, dtype=np.float32).reshape(23, 2)
    layout = {"axes": ("row", "feature"), "rows_per_chunk": 4}
    zarr3.write_rows(tmp_path / "whole", values, **layout)

    def write(name: str, blocks: list[np.ndarray]) -> None:
        zarr3.write_blocks(tmp_path / name, blocks, shape=(23, 2), dtype="float32", **layout)

    write("parts", [values[:8], values[8:20], values[20:]])
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(ValueError, match="20 rows came of 23"):
        write("short", [values[:20]])
    with pytest.raises(ValueError, match="ends inside a chunk of 4"):
        write("cut", [values[:7], values[7:]])


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 9),
    rows_per_shard=st.integers(1, 4),
    split=st.sampled_from([1, 2]),
    missing=st.sets(st.integers(0, 8)),
)
def test_sharded_pixels__zarr_and_our_reader_agree(
    tmp_path_factory: pytest.TempPathFactory,
    n: int,
    rows_per_shard: int,
    split: int,
    missing: set[int],
) -> None:
    path = tmp_path_factory.mktemp("shards") / "pixels"
    tiles = np.random.default_rng(n).integers(0, 255, (n, 8, 8, 3), dtype=np.uint8)
    for index in missing:
        tiles[index : index + 1] = 0
    side = 8 // split
    writer = zarr3.ShardedArrayWriter(
        path,
        shape=tiles.shape,
        dtype="uint8",
        rows_per_shard=rows_per_shard,
        chunk=(1, side, side, 3),
        codecs=[zarr3.BYTES, zarr3.ZSTD],
        axes=("tile", "y", "x", "c"),
    )

    def parts_of(index: int):
        for row in range(index * rows_per_shard, min(n, (index + 1) * rows_per_shard)):
            for y in range(0, 8, side):
                for x in range(0, 8, side):
                    part = np.ascontiguousarray(tiles[row, y : y + side, x : x + side])
                    yield None if row in missing else zarr3.zstd_encode(part.tobytes())

    for shard in range(writer.n_shards):
        writer.write_shard(shard, parts_of(shard))

    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], tiles)
    with ShardedArrayReader(path) as reader:
        decode = zarr3.chunk_decoder(reader.codecs, reader.chunk)
        for row in range(n):
            found = reader.row_chunks(row)
            assert len(found) == split * split
            if row in missing:
                assert found == [None] * len(found)
            else:
                first = decode(found[0])
                np.testing.assert_array_equal(first, tiles[row, :side, :side])


def test_jpeg_chunks__plain_zarr_decodes_them_by_the_published_codec_name(tmp_path: Path) -> None:
    y, x = np.mgrid[:16, :16]
    tile = np.stack([y * 12, x * 12, 128 + 0 * x], axis=-1).astype(np.uint8)
    stream = zarr3.jpeg_encode(tile, 95)
    writer = zarr3.ShardedArrayWriter(
        tmp_path / "pixels",
        shape=(2, 16, 16, 3),
        dtype="uint8",
        rows_per_shard=2,
        chunk=(1, 16, 16, 3),
        codecs=[zarr3.BYTES, zarr3.JPEG],
        axes=("tile", "y", "x", "c"),
    )
    writer.write_shard(0, [stream, stream])
    array = zarr.open_array(tmp_path / "pixels", mode="r")
    np.testing.assert_array_equal(array[1], zarr3.jpeg_decode(stream))
    assert np.abs(array[0].astype(int) - tile).max() <= 4
    names = [codec["name"] for codec in _inner_codecs(tmp_path / "pixels")]
    assert names == ["bytes", "imagecodecs_jpeg", "crc32c"]


def test_sharded_reader__damaged_index_is_refused(tmp_path: Path) -> None:
    zarr3.write_rows(tmp_path / "a", np.ones((3, 2), np.float32), axes=("r", "f"), rows_per_chunk=1)
    shard = next(path for path in (tmp_path / "a").iterdir() if path.name.startswith("c."))
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(bytes(data))
    with (
        ShardedArrayReader(tmp_path / "a") as reader,
        pytest.raises(ValueError, match="the index of shard 0: its checksum is wrong"),
    ):
        reader.row_chunks(0)


def _inner_codecs(path: Path) -> list[dict[str, str]]:
    node = json.loads((path / "zarr.json").read_text())
    return list(node["codecs"][0]["configuration"]["codecs"])


def test_sharded_reader__many_threads_read_what_one_reads(tmp_path: Path) -> None:
    rows = 400
    writer = zarr3.ShardedArrayWriter(
        tmp_path / "a",
        shape=(rows, 2),
        dtype="uint8",
        rows_per_shard=2,
        chunk=(1, 2),
        codecs=[zarr3.BYTES],
        axes=("row", "v"),
    )
    parts = [bytes([row % 251, row // 251]) for row in range(rows)]
    for shard in range(rows // 2):
        writer.write_shard(shard, parts[2 * shard : 2 * shard + 2])
    for _ in range(5):
        with (
            ShardedArrayReader(tmp_path / "a") as reader,
            ThreadPoolExecutor(8) as pool,
        ):
            assert [found[0] for found in pool.map(reader.row_chunks, range(rows))] == parts
